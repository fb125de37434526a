"""The way back: the tokenizer files of a Hugging Face model directory from GGUF metadata.

Converted again they give the same tokens, types, merges or scores, ids, flags and chat templates. What GGUF does not
hold is lost: an NFC normalizer, how added tokens treat the text around them (lstrip, rstrip, normalized, single_word),
how SentencePiece treats the text behind a special token (transformers' `legacy`), and names of unused tokens.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.system.errors import BitconvError, Code, option, plain
from bitconv.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from bitconv.tokenizer.special import ROLES, runner_default
from bitconv.tokenizer.spm import SPACE
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary

# The tokens besides eos that end a generation.
_OTHER_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Tokens that are matched in the text before anything else.
_MATCHED_FIRST = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})
# Pieces that SentencePiece knows by their role, in the order of their fields in its TrainerSpec.
_SPM_ROLES = ("unk", "bos", "eos", "pad")


def tokenizer_files(metadata: Metadata, file: Path, pre: str | None) -> dict[str, bytes]:
    """The contents of tokenizer_config.json and of tokenizer.json or tokenizer.model, by file name.

    metadata: that of the GGUF file `file`. pre: the name of a pre-tokenizer, overrules tokenizer.ggml.pre.
    BitconvError for a tokenizer that cannot be written, MalformedGGUF for missing or contradictory keys.
    """
    vocabulary = _vocabulary(metadata, file)
    ids = {role: token_id for role, key in ROLES.items() if (token_id := _token_id(metadata, key, file)) is not None}
    row = None if vocabulary.model == "llama" else _pre_tokenizer(metadata, pre, file)
    if row is None and pre is not None:
        raise BitconvError(
            f"{option('pre', pre)} is for byte-level vocabularies, and this is none", code=Code.OPTIONS, file=file
        )
    stated = metadata if row is None else metadata | {"tokenizer.ggml.pre": row.name}
    adds = {}
    for role in ("bos", "eos"):
        key = f"tokenizer.ggml.add_{role}_token"
        adds[role] = bool(metadata[key]) if key in metadata else role in ids and bool(runner_default(stated, key))
    for role, add in adds.items():
        if add and role not in ids:
            raise MalformedGGUF(f"a prompt gets a {role} token, but {ROLES[role]} is missing", file=file)

    config: dict[str, Any] = {f"{role}_token": vocabulary.tokens[token_id] for role, token_id in ids.items()}
    config |= {f"add_{role}_token": add for role, add in adds.items()}
    if row is None:
        space = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        name, data = "tokenizer.model", _sentencepiece_model(vocabulary, ids, add_space_prefix=space)
        added = {str(token.pop("id")): token for token in _added_tokens(vocabulary)}
        config |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": space, "added_tokens_decoder": added}
    else:
        before, after = ([ids[role]] if adds[role] else [] for role in ("bos", "eos"))
        name, data = "tokenizer.json", encode_json(_byte_level_json(vocabulary, row, before, after))
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": row.cleans}
    return {name: data, "tokenizer_config.json": encode_json(config | _chat_template(metadata))}


def token_ids(metadata: Metadata, file: Path) -> dict[str, int | list[int]]:
    """bos_token_id, eos_token_id and pad_token_id as generation_config.json has them: all ids that end a generation."""
    found: dict[str, int | list[int]] = {}
    for role in ("bos", "eos", "pad"):
        token_id = _token_id(metadata, ROLES[role], file)
        if token_id is not None:
            found[f"{role}_token_id"] = token_id
    ends = [_token_id(metadata, key, file) for key in (ROLES["eos"], *_OTHER_ENDS)]
    if ends[0] is not None and any(end is not None for end in ends[1:]):
        found["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    return found


def encode_json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"


def _vocabulary(metadata: Metadata, file: Path) -> Vocabulary:
    """extra: merges, or scores."""
    model = metadata.get("tokenizer.ggml.model")
    keys = {"gpt2": "tokenizer.ggml.merges", "llama": "tokenizer.ggml.scores"}
    if not isinstance(model, str) or model not in keys:
        raise BitconvError(
            f"tokenizer.ggml.model is {plain(model)}; only gpt2 and llama can be exported",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=file,
        )
    extra = keys[model]
    for key, kind in (
        ("tokenizer.ggml.tokens", list),
        ("tokenizer.ggml.token_type", np.ndarray),
        (extra, list if model == "gpt2" else np.ndarray),
    ):
        if not isinstance(metadata.get(key), kind):
            raise MalformedGGUF(f"{key} is missing or of a wrong type", file=file)
    tokens: Any = metadata["tokenizer.ggml.tokens"]
    types: Any = metadata["tokenizer.ggml.token_type"]
    scores: Any = metadata[extra] if model == "llama" else types
    if (
        not len(tokens) == len(types) == len(scores)
        or not np.isin(types, list(TokenType)).all()
        or len(set(tokens)) < len(tokens)
    ):
        raise MalformedGGUF("its tokens, their types and scores are no vocabulary", file=file)
    return Vocabulary(model, tokens, types, {extra: metadata[extra]})


def _token_id(metadata: Metadata, key: str, file: Path) -> int | None:
    value, tokens = metadata.get(key), metadata.get("tokenizer.ggml.tokens")
    if value is None:
        return None
    if not isinstance(value, np.integer) or not isinstance(tokens, list) or not 0 <= value < len(tokens):
        raise MalformedGGUF(f"{key} is {value}, which is no token", file=file)
    return int(value)


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The tokens of _MATCHED_FIRST, as tokenizer.json lists them."""
    added = []
    for token_id, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True)):
        if kind in _MATCHED_FIRST:
            content = _piece_text(text, kind) if vocabulary.model == "llama" else text
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": token_id, "content": content, **flags, "special": bool(kind != TokenType.USER_DEFINED)})
    return added


def _byte_level_json(vocabulary: Vocabulary, row: PreTokenizer, before: list[int], after: list[int]) -> dict[str, Any]:
    """tokenizer.json. before, after: the ids that a text gets in front and behind.

    Added tokens stand in the model's vocabulary too: so they keep their ids, whatever ids are not used.
    """
    tokens, unused = vocabulary.tokens, TokenType.UNUSED
    vocab = {
        text: token_id
        for token_id, (text, kind) in enumerate(zip(tokens, vocabulary.types.tolist(), strict=True))
        if kind != unused
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizer_steps(row)},
        "post_processor": _template(tokens, before, after),
        "decoder": _byte_level_step(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.ignore_merges,
            "vocab": vocab,
            "merges": vocabulary.extra["tokenizer.ggml.merges"],
        },
    }


def _pre_tokenizer(metadata: Metadata, pre: str | None, file: Path) -> PreTokenizer:
    """The table's row of a name. Of several with one name the first is what runners do."""
    name = metadata.get("tokenizer.ggml.pre") if pre is None else pre
    # A character class that stands for a long list of letters is not written out.
    rows = [row for row in PRE_TOKENIZERS if not any("<cased letters>" in split for split in row.splits)]
    for row in rows:
        if row.name == name:
            return row
    names = ", ".join(dict.fromkeys(row.name for row in rows))
    if name is None:
        raise BitconvError(
            "tokenizer.ggml.pre is missing",
            code=Code.TOKENIZER,
            file=file,
            way_out=f"name the pre-tokenizer with {option('pre', 'NAME')}: {names}",
        )
    raise BitconvError(
        f"the pre-tokenizer {plain(name)} cannot be exported",
        code=Code.TOKENIZER_UNSUPPORTED,
        file=file,
        way_out=f"name the nearest with {option('pre', 'NAME')}: {names}",
    )


def _pre_tokenizer_steps(row: PreTokenizer) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for split in row.splits:
        if split == "<ByteLevel>":
            steps.append(_byte_level_step())
        elif split == "<Punctuation>":
            steps.append({"type": "Punctuation", "behavior": "Contiguous"})
        else:
            steps.append({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False})
    return steps if _byte_level_step() in steps else [*steps, _byte_level_step()]


def _byte_level_step() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _template(tokens: list[str], before: list[int], after: list[int]) -> dict[str, Any]:
    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            *({"SpecialToken": {"id": tokens[token_id], "type_id": type_id}} for token_id in before),
            {"Sequence": {"id": name, "type_id": type_id}},
            *({"SpecialToken": {"id": tokens[token_id], "type_id": type_id}} for token_id in after),
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            tokens[token_id]: {"id": tokens[token_id], "ids": [token_id], "tokens": [tokens[token_id]]}
            for token_id in [*before, *after]
        },
    }


def _chat_template(metadata: Metadata) -> dict[str, Any]:
    """A template alone, or the named ones with their names."""
    key = "tokenizer.chat_template"
    texts = {name: text for name, text in metadata.items() if isinstance(text, str)}
    templates = {name.removeprefix(f"{key}."): text for name, text in texts.items() if name.startswith(f"{key}.")}
    if not templates:
        return {"chat_template": texts[key]} if key in texts else {}
    if key in texts:
        templates["default"] = texts[key]
    return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


def _piece_text(text: str, kind: int) -> str:
    """A token in SentencePiece's spelling: GGUF has the spaces of user-defined tokens as they are in the text."""
    return text.replace(" ", SPACE) if kind == TokenType.USER_DEFINED else text


def _sentencepiece_model(vocabulary: Vocabulary, ids: dict[str, int], *, add_space_prefix: bool) -> bytes:
    """tokenizer.model: a ModelProto of sentencepiece_model.proto, whose field numbers these are.

    BPE on the text as it is, with byte tokens for characters that have none: llama.cpp's SPM tokenizer.
    """
    scores: Any = vocabulary.extra["tokenizer.ggml.scores"]
    pieces = [
        _bytes_field(1, _piece_text(text, kind).encode("utf-8"))
        + _key(2, 5)
        + struct.pack("<f", score)
        + _int_field(3, int(kind))
        for text, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    ]
    trainer = [_int_field(3, 2), _int_field(4, len(pieces)), _int_field(35, 1)]  # BPE, vocab_size, byte_fallback
    trainer += [_int_field(40 + i, ids.get(role, -1)) for i, role in enumerate(_SPM_ROLES)]
    trainer += [
        _bytes_field(45 + i, vocabulary.tokens[ids[role]].encode("utf-8"))
        for i, role in enumerate(_SPM_ROLES)
        if role in ids
    ]
    # name, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = [_bytes_field(1, b"identity"), _int_field(3, add_space_prefix), _int_field(4, 0), _int_field(5, 1)]
    return (
        b"".join(_bytes_field(1, piece) for piece in pieces)
        + _bytes_field(2, b"".join(trainer))
        + _bytes_field(3, b"".join(normalizer))
    )


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _int_field(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value % (1 << 64))


def _bytes_field(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
