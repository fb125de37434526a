"""The tokenizer in a GGUF file, run by the `tokenizers` library: what a runner makes of the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.rebuild import tokenizer_files
from bitconv.tokenizer.spm import SPACE
from bitconv.tokenizer.vocabulary import TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(metadata: Metadata, file: Path) -> Tokenizer:
    """The tokenizer of the GGUF file `file`. encode(text) gives the tokens of a prompt, those put around it included.

    BitconvError where `tokenizers` is not installed and for a tokenizer that cannot be rebuilt, MalformedGGUF
    for one that contradicts itself.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BitconvError(
            "the tokenizers package is missing", code=Code.PACKAGE, way_out="pip install 'bitconv[eval]'"
        ) from None
    files = tokenizer_files(metadata, file, None)
    if "tokenizer.json" in files:
        text = files["tokenizer.json"].decode("utf-8")
    else:
        text = json.dumps(_spm_json(metadata, json.loads(files["tokenizer_config.json"])))
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower, for a merge of what is no token say
        raise MalformedGGUF(f"its tokenizer cannot be built: {' '.join(str(error).split())}", file=file) from None


def _spm_json(metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """A SentencePiece-like tokenizer.json. config: the tokenizer_config.json that belongs to the metadata.

    Runners put the space that is not there in front of the text behind every special token too (llama.cpp's
    llm_tokenizer_spm_session), as the Prepend normalizer does.
    """
    tokens: Any = metadata["tokenizer.ggml.tokens"]
    types: Any = metadata["tokenizer.ggml.token_type"]
    scores: Any = metadata["tokenizer.ggml.scores"]
    ids = {text: token_id for token_id, text in enumerate(tokens)}
    unknown = [text for text, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN]
    # With the spaces of user-defined ones as they are in a text, which the files for SentencePiece have not.
    added = [
        {**token, "id": int(number), "content": tokens[int(number)]}
        for number, token in config["added_tokens_decoder"].items()
    ]
    prefix = [{"type": "Prepend", "prepend": SPACE}] if config["add_prefix_space"] else []
    around = [config[f"{role}_token"] if config[f"add_{role}_token"] else None for role in ("bos", "eos")]
    template: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    for text, place in zip(around, (0, 2), strict=True):
        if text is not None:
            template.insert(place, {"SpecialToken": {"id": text, "type_id": 0}})
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in around if text is not None
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(iter(unknown), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(tokens, types, scores),
        },
    }


def _merges(tokens: list[str], types: Any, scores: Any) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, that of the highest score first: SPM merges any such neighbours."""
    mergeable = {
        text: (-score, token_id)
        for token_id, (text, kind, score) in enumerate(zip(tokens, types.tolist(), scores.tolist(), strict=True))
        if kind == TokenType.NORMAL
    }
    return [
        (text[:at], text[at:])
        for text in sorted(mergeable, key=mergeable.__getitem__)
        for at in range(1, len(text))
        if text[:at] in mergeable and text[at:] in mergeable
    ]
