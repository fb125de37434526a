"""The vocabulary in a GGUF file from a stranger: what runners refuse, or silently tokenize otherwise by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitconv.gguf import Metadata, Value
from bitconv.system.errors import plain
from bitconv.tokenizer.vocabulary import TokenType

# The Python type, or an array's dtype, of each key: llama.cpp refuses others, or reads what is not there.
_KINDS: dict[str, type | np.dtype[np.generic]] = {
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.pre": str,
    "tokenizer.ggml.tokens": list,
    "tokenizer.ggml.merges": list,
    "tokenizer.ggml.scores": np.dtype("<f4"),
    "tokenizer.ggml.token_type": np.dtype("<i4"),
    "tokenizer.ggml.add_bos_token": bool,
    "tokenizer.ggml.add_eos_token": bool,
    "tokenizer.ggml.add_space_prefix": bool,
    "tokenizer.chat_template": str,
}
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
_TOKEN_TYPES = [0, *TokenType]  # 0: llama.cpp's LLAMA_TOKEN_TYPE_UNDEFINED


def vocabulary_faults(metadata: Metadata, vocab: int) -> Iterator[str]:
    """What is wrong with the tokenizer.* keys of a model of `vocab` tokens, a line each."""
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _REQUIRED:
        yield f"tokenizer.ggml.model is {plain(model)}; BitNet models have llama or gpt2"
        return
    for key in _REQUIRED[model]:
        if key not in metadata:
            yield f"{key} is missing"
    wrong = {key for key, kind in _KINDS.items() if key in metadata and not _is(metadata[key], kind)}
    yield from (f"{key} is of a type that runners do not read it in" for key in sorted(wrong))
    values = {key: value for key, value in metadata.items() if key not in wrong}
    for key in _PER_TOKEN:
        value = values.get(key)
        if isinstance(value, list | np.ndarray) and len(value) != vocab:
            yield f"{key} has {len(value)} entries, the vocabulary {vocab}"
    for key, value in metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and not (isinstance(value, np.uint32) and value < vocab):
            yield f"{key} is {value}, the vocabulary has {vocab} tokens"
    yield from _content_faults(values)


def _content_faults(values: Metadata) -> Iterator[str]:
    """Of keys that are of their type."""
    tokens, merges = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.merges")
    types, scores = values.get("tokenizer.ggml.token_type"), values.get("tokenizer.ggml.scores")
    if isinstance(types, np.ndarray) and not np.isin(types, _TOKEN_TYPES).all():
        yield "tokenizer.ggml.token_type holds what is no type"
    if isinstance(scores, np.ndarray) and not np.isfinite(scores).all():
        yield "tokenizer.ggml.scores holds what is not finite"
    if not isinstance(tokens, list):
        return
    known = set(tokens)
    if len(known) < len(tokens):  # llama.cpp stops at an assertion
        yield f"tokenizer.ggml.tokens holds {len(tokens) - len(known)} tokens a second time"
    if not isinstance(merges, list):
        return
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not (left in known and right in known and left + right in known):
            yield f"tokenizer.ggml.merges: merge {rank} is {merge!r}, not two tokens that make a third"
            return


def _is(value: Value, kind: type | np.dtype[np.generic]) -> bool:
    if isinstance(kind, np.dtype):
        return isinstance(value, np.ndarray) and value.dtype == kind
    return isinstance(value, kind)
