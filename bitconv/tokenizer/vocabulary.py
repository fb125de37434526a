"""A vocabulary in the form GGUF stores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
    path: Path, vocab_size: int, texts: Mapping[int, str], types: Mapping[int, TokenType]
) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Texts from `path` by id, and the types of those that are no normal tokens, both of length vocab_size.

    Ids without a text (rows of the embedding that only pad it) become unused tokens [PAD<id>], as in
    llama.cpp's converters. BitconvError for an id beyond vocab_size and for a text that stands twice.
    """
    beyond = next((token_id for token_id in texts if token_id >= vocab_size), None)
    if beyond is not None:
        raise BitconvError(
            f"token {texts[beyond]!r} has id {beyond}, but config.json's vocab_size is {vocab_size}",
            code=Code.CONTRADICTION,
            file=path,
            way_out="use the tokenizer files that belong to this checkpoint",
        )
    numbers = np.full(vocab_size, TokenType.UNUSED, np.int32)
    numbers[list(texts)] = TokenType.NORMAL
    numbers[list(types)] = list(types.values())
    padding = {token_id: f"[PAD{token_id}]" for token_id in range(vocab_size) if token_id not in texts}
    tokens = list(map({**texts, **padding}.__getitem__, range(vocab_size)))
    if len(set(tokens)) < vocab_size:
        ((text, _),) = Counter(tokens).most_common(1)
        first, second, *_ = (token_id for token_id, other in enumerate(tokens) if other == text)
        raise BitconvError(
            f"token {text!r} stands twice, with the ids {first} and {second}", code=Code.TOKENIZER, file=path
        )
    return tokens, numbers
