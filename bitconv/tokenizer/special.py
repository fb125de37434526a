"""Which tokens have a meaning: begin, end, padding and so on, and which of them a prompt gets by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bitconv.gguf import Metadata, Value
from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.files import TokenizerFiles, steps
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary

# Role in the Hugging Face files -> GGUF key; the misspelt one is the format's.
ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Hugging Face files have no roles for these; runners go by the text as well. First match wins.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>")
_END_OF_MESSAGE = "<|eom_id|>"
# Ends of a generation to every runner, whatever the keys say: the list of bitnet.cpp of October 2024, the shortest.
ENDS_BY_TEXT = (*_END_OF_TURN, "<|endoftext|>", _END_OF_MESSAGE)
# And to llama.cpp of 2026 (src/llama-vocab.cpp) alone.
LATER_ENDS_BY_TEXT = (
    *("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>"),
    *("_<EOT>", "[EOT]", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~["),
)
_FILL_IN_MIDDLE = {
    "tokenizer.ggml.fim_pre_token_id": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "\u2581<PRE>"),
    "tokenizer.ggml.fim_suf_token_id": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "\u2581<SUF>"),
    "tokenizer.ggml.fim_mid_token_id": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\u2581<MID>"),
    "tokenizer.ggml.fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
    "tokenizer.ggml.fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"),
    "tokenizer.ggml.fim_sep_token_id": ("<|file_sep|>",),
}
# Those that some runner finds besides.
_OTHER_FILL_IN_MIDDLE = {
    "tokenizer.ggml.fim_pre_token_id": ("<\uff5cfim\u2581begin\uff5c>", "<|code_prefix|>", "<|prefix|>"),
    "tokenizer.ggml.fim_suf_token_id": ("<\uff5cfim\u2581hole\uff5c>", "<|code_suffix|>", "<|suffix|>"),
    "tokenizer.ggml.fim_mid_token_id": ("<\uff5cfim\u2581end\uff5c>", "<|code_middle|>", "<|middle|>"),
    "tokenizer.ggml.fim_pad_token_id": ("<PAD>", "[PAD]"),
    "tokenizer.ggml.fim_rep_token_id": ("<REPO>",),
}
# The pre-tokenizers with which runners put the begin token in front of a text, if not told otherwise; between the
# sequences of a pair the separator; and those with which they take no begin token of their own.
_BOS_FIRST = frozenset(
    (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        *("tekken", "chameleon"),
    )
)
_SEPARATED = frozenset(("jina-v1-en", "jina-v2-code", "roberta-bpe"))
_NO_BOS = frozenset(("chatglm-bpe", "glm4"))


def special_metadata(files: TokenizerFiles, vocabulary: Vocabulary, *, embedding: bool = False) -> Metadata:
    """The special token ids, add_bos_token and add_eos_token.

    A role's token is the first of these that exists, in the order of llama.cpp's converters: the text in
    tokenizer_config.json, the text in special_tokens_map.json, the id in config.json, the id in
    generation_config.json. The last two may list several eos ids: those besides eos_token_id become eot_token_id
    and eom_token_id; GGUF has no place for more.

    embedding: the eos token is what tokenizer.json's template appends to a text, whatever ends a turn elsewhere: that
    is what runners append (Qwen3 ends turns with <|im_end|>, and its embedding models texts with <|endoftext|>).

    Raises BitconvError for an id beyond the vocabulary, for a missing
    eos token (runners would take one of their own choice), and for a prompt template that runners cannot express.
    """
    ids = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
    roles = {role: _role_id(files, ids, role) for role in ROLES}
    if roles["unk"] is None:
        roles["unk"] = next(iter(np.flatnonzero(vocabulary.types == TokenType.UNKNOWN).tolist()), None)
    if roles["eos"] is None:
        raise BitconvError(
            "no eos token, nor in the tokenizer files",
            code=Code.TOKENIZER,
            file=files.directory / "config.json",
            way_out="add eos_token_id",
        )
    after = _template(files)[1]
    if embedding and len(after) == 1:
        roles["eos"] = after[0]
    add_bos, add_eos = _adds(files, roles)
    if embedding and not add_eos:
        raise BitconvError(
            "nothing is appended to a text (by its post_processor, or add_eos_token in "
            "tokenizer_config.json), but an embedding model reads its vector there",
            code=Code.TOKENIZER,
            file=files.json_path,
        )

    found = {key: roles[role] for role, key in ROLES.items()}
    found["tokenizer.ggml.eot_token_id"], found["tokenizer.ggml.eom_token_id"] = _other_ends(files, ids, roles["eos"])
    for key, texts in _FILL_IN_MIDDLE.items():
        found[key] = _first(ids, texts)
    return {
        **{key: np.uint32(token_id) for key, token_id in found.items() if token_id is not None},
        "tokenizer.ggml.add_bos_token": add_bos,
        "tokenizer.ggml.add_eos_token": add_eos,
    }


def _role_id(files: TokenizerFiles, ids: Mapping[str, int], role: str) -> int | None:
    for names in (files.tokenizer_config, files.special_tokens_map):
        entry = names.get(f"{role}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text in ids:
            return ids[text]
    return next(iter(configured_ids(files, f"{role}_token_id")), None)


def configured_ids(files: TokenizerFiles, key: str) -> list[int]:
    """The ids under `key` in config.json and generation_config.json. Negative ids mean none there."""
    found: dict[int, None] = {}
    for name, config in (("config.json", files.config), ("generation_config.json", files.generation_config)):
        value = config.get(key)
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is None or (isinstance(token_id, int) and token_id < 0):
                continue
            if not isinstance(token_id, int) or token_id >= files.vocab_size:
                raise BitconvError(
                    f"{key} is {value!r}, beyond vocab_size {files.vocab_size}",
                    code=Code.TOKENIZER,
                    file=files.directory / name,
                )
            found[token_id] = None
    return list(found)


def _first(ids: Mapping[str, int], texts: Sequence[str]) -> int | None:
    return next((ids[text] for text in texts if text in ids), None)


def _other_ends(files: TokenizerFiles, ids: Mapping[str, int], eos: int) -> tuple[int | None, int | None]:
    """(eot, eom): the tokens besides eos that end a generation, the end of a turn before others.

    Where there are more, those come first that runners do not know by their texts.
    """
    turn_ends = [ids[text] for text in _END_OF_TURN if text in ids and ids[text] != eos]
    ends = [token_id for token_id in configured_ids(files, "eos_token_id") if token_id != eos]
    eom = ids.get(_END_OF_MESSAGE)
    ends = [token_id for token_id in ends if token_id != eom]
    ends.sort(key=lambda token_id: token_id not in turn_ends)
    if len(ends) + (eom is not None) > 2:
        known = {ids[text] for text in ENDS_BY_TEXT if text in ids}
        first, second, *_ = sorted([*ends, *([] if eom is None else [eom])], key=lambda token_id: token_id in known)
        return first, second
    eot = next(iter(ends or turn_ends), None)
    return eot, next(iter(ends[1:]), None) if eom is None else eom


def _adds(files: TokenizerFiles, roles: dict[str, int | None]) -> tuple[bool, bool]:
    """(add_bos, add_eos). A bos token that only the template names is put into `roles`."""
    before, after = _template(files)
    if roles["bos"] is None and len(before) == 1:
        roles["bos"] = before[0]
    path = files.directory / "tokenizer_config.json"
    # LlamaTokenizer, and what has no tokenizer.json, puts bos in front unless told not to.
    is_llama = files.is_llama or files.json is None
    result = []
    for role, template in (("bos", before), ("eos", after)):
        flag = files.tokenizer_config.get(f"add_{role}_token")
        if not isinstance(flag, bool):
            flag = role == "bos" if is_llama else bool(template)
            if flag and not is_llama and template != [roles[role]]:
                raise BitconvError(
                    f"its post_processor adds the tokens {template}, runners can add {role} only",
                    code=Code.TOKENIZER_UNSUPPORTED,
                    file=files.json_path,
                    way_out=f"set add_{role}_token in {path.name}",
                )
        if flag and roles[role] is None:
            raise BitconvError(
                f"add_{role}_token is true, but there is no {role} token",
                code=Code.TOKENIZER,
                file=path,
                way_out=f"name it as {role}_token",
            )
        result.append(flag)
    return result[0], result[1]


def _template(files: TokenizerFiles) -> tuple[list[int], list[int]]:
    """The ids that tokenizer.json's post-processor puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    try:
        for step in steps((files.json or {}).get("post_processor"), "processors"):
            if step.get("type") == "TemplateProcessing":
                names = [item.get("SpecialToken", {}).get("id") for item in step["single"]]
                text_at = names.index(None)
                before = [token_id for name in names[:text_at] for token_id in step["special_tokens"][name]["ids"]]
                after = [token_id for name in names[text_at + 1 :] for token_id in step["special_tokens"][name]["ids"]]
            elif step.get("type") in ("RobertaProcessing", "BertProcessing"):
                before, after = [step["cls"][1]], [step["sep"][1]]
        if not all(0 <= token_id < files.vocab_size for token_id in before + after):
            raise ValueError
    except (AttributeError, LookupError, TypeError, ValueError):
        raise BitconvError(
            "its post_processor is malformed or has ids beyond vocab_size", code=Code.TOKENIZER, file=files.json_path
        ) from None
    return before, after


def runner_default(metadata: Metadata, key: str) -> Value | None:
    """What llama.cpp and its kin take for a tokenizer.* key that a file lacks; None where they have nothing for it.

    Source: llama_vocab's load of llama.cpp (2026).
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        found = _found_by_text(tokens, key)
        if found is not None:
            return np.uint32(found)
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    sentencepiece = isinstance(model, str) and model == "llama"
    split = pre if isinstance(pre, str) and not sentencepiece else ""
    defaults: Metadata = {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_bos_token": sentencepiece or split in _BOS_FIRST,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_sep_token": split in _SEPARATED,
        "tokenizer.ggml.add_space_prefix": sentencepiece,
    }
    ids = {"unknown": 0, "bos": 1, "eos": 2} if sentencepiece else {"bos": 11, "eos": 11}
    if split in _NO_BOS:
        del ids["bos"]
    defaults |= {f"tokenizer.ggml.{role}_token_id": np.uint32(token_id) for role, token_id in ids.items()}
    return defaults.get(key)


def _found_by_text(tokens: list[str], key: str) -> int | None:
    """The token that every runner takes for a missing key."""
    # Of several that may end a turn, any is taken, and by their texts all of them end a generation.
    ends = {"tokenizer.ggml.eot_token_id": ENDS_BY_TEXT[:-1], "tokenizer.ggml.eom_token_id": (_END_OF_MESSAGE,)}
    if key in ends:
        return next((tokens.index(text) for text in ends[key] if text in tokens), None)
    known = _FILL_IN_MIDDLE.get(key, ())
    found = [text for text in (*known, *_OTHER_FILL_IN_MIDDLE.get(key, ())) if text in tokens]
    return tokens.index(found[0]) if len(found) == 1 and found[0] in known else None
