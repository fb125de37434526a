"""A vocabulary in the form GGUF stores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitconv.gguf import Metadata
from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.files import AddedToken


class TokenType(IntEnum):
    """tokenizer.ggml.token_type: llama.cpp's ids, which are those of SentencePiece's piece types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id.

    model: tokenizer.ggml.model, "llama" (SentencePiece) or "gpt2" (byte-level BPE).
    tokens: vocab_size texts, all different. types: their TokenType, int32 of shape (vocab_size,).
    extra: the metadata that only this model has: merges and pre, or scores and add_space_prefix.
    """

    model: str
    tokens: list[str]
    types: npt.NDArray[np.int32]
    extra: Metadata = field(default_factory=dict)

    def metadata(self) -> Metadata:
        return {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            **self.extra,
        }


def added_type(token: AddedToken) -> TokenType:
    return TokenType.CONTROL if token.special else TokenType.USER_DEFINED


def assemble(
    path: Path, vocab_size: int, entries: Iterable[tuple[int, str, TokenType]]
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Order (id, text, type) entries from `path`, no id twice, into texts and types, both of length vocab_size.

    Ids without an entry (rows of the embedding that only pad it) become unused tokens [PAD<id>], as in
    llama.cpp's converters. Raises BitconvError for an id beyond vocab_size and for a text that stands twice.
    """
    tokens: list[str | None] = [None] * vocab_size
    types = [TokenType.UNUSED] * vocab_size
    for token_id, text, kind in entries:
        if token_id >= vocab_size:
            raise BitconvError(
                f"token {text!r} has id {token_id}, but config.json's vocab_size is {vocab_size}",
                code=Code.CONTRADICTION,
                file=path,
                way_out="use the tokenizer files that belong to this checkpoint",
            )
        tokens[token_id] = text
        types[token_id] = kind
    texts = [f"[PAD{token_id}]" if text is None else text for token_id, text in enumerate(tokens)]
    if len(set(texts)) < vocab_size:
        ((text, _),) = Counter(texts).most_common(1)
        first, second, *_ = (token_id for token_id, other in enumerate(texts) if other == text)
        raise BitconvError(
            f"token {text!r} stands twice, with the ids {first} and {second}", code=Code.TOKENIZER, file=path
        )
    return texts, np.array(types, np.int32)
