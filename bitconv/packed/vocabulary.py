"""The vocabulary in a GGUF file from a stranger: what runners refuse, or silently tokenize otherwise by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitconv._kernels import faulty_merge
from bitconv.gguf import Metadata
from bitconv.packed.keys import Finding, Level
from bitconv.system.errors import plain
from bitconv.tokenizer.pretokenizers import is_known
from bitconv.tokenizer.special import runner_default
from bitconv.tokenizer.vocabulary import TokenType

# With one entry a token.
_PER_TOKEN = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
# What a runner tokenizes differently without, in silence.
_REQUIRED = {
    "llama": ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"),
    "gpt2": (
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.pre",
    ),
}
# Without these, they do not load.
_LOADED = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
# The tokens that a text may get; the misspelt one is the format's.
_ADDED = {"bos": "bos", "eos": "eos", "sep": "seperator"}
_TOKEN_TYPES = [0, *TokenType]  # 0: llama.cpp's LLAMA_TOKEN_TYPE_UNDEFINED


def vocabulary_findings(metadata: Metadata, vocab: int) -> Iterator[Finding]:
    """What is wrong with the tokenizer.* keys of a model of `vocab` tokens. Types are key_findings' business."""
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _REQUIRED:
        yield Finding("tokenizer.ggml.model", f"is {plain(model)}; BitNet models have llama or gpt2", Level.REFUSED)
        return
    for key in _REQUIRED[model]:
        if key not in metadata:
            yield Finding(key, "is missing", Level.REFUSED if key in _LOADED else Level.FAULT)
    for key in _PER_TOKEN:
        value = metadata.get(key)
        if isinstance(value, list | np.ndarray) and len(value) != vocab:
            yield Finding(key, f"has {len(value)} entries, the vocabulary {vocab}", Level.REFUSED)
    for key, value in metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and isinstance(value, np.uint32) and value >= vocab:
            yield Finding(key, f"is {value}, the vocabulary has {vocab} tokens")
    pre = metadata.get("tokenizer.ggml.pre")
    if model == "gpt2" and isinstance(pre, str) and not is_known(pre):
        yield Finding("tokenizer.ggml.pre", f"is {plain(pre)}, which no runner knows", Level.REFUSED)
    for role, token in _ADDED.items():
        key, added = f"tokenizer.ggml.{token}_token_id", f"tokenizer.ggml.add_{role}_token"
        if metadata.get(added, runner_default(metadata, added)) is True and (
            metadata.get(key, runner_default(metadata, key)) is None
        ):
            yield Finding(key, f"is missing, and a text gets a {role} token")
    yield from _content_findings(metadata)


def _content_findings(metadata: Metadata) -> Iterator[Finding]:
    """Of keys that are of their type."""
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    types, scores = metadata.get("tokenizer.ggml.token_type"), metadata.get("tokenizer.ggml.scores")
    if isinstance(types, np.ndarray) and not np.isin(types, _TOKEN_TYPES).all():
        yield Finding("tokenizer.ggml.token_type", "holds what is no type")
    if isinstance(scores, np.ndarray) and scores.dtype == np.float32 and not np.isfinite(scores).all():
        yield Finding("tokenizer.ggml.scores", "holds what is not finite")
    if not isinstance(tokens, list):
        return
    twice = len(tokens) - len(set(tokens))
    if twice:  # llama.cpp stops at an assertion
        yield Finding("tokenizer.ggml.tokens", f"holds {twice} tokens a second time", Level.REFUSED)
    if not isinstance(merges, list):
        return
    rank = faulty_merge(tokens, merges)
    if rank >= 0:
        text = f"holds as merge {rank} {plain(merges[rank])}, not two tokens that make a third"
        yield Finding("tokenizer.ggml.merges", text)
