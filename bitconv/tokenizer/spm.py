"""llama.cpp's model "llama": what tokenizer.model and a SentencePiece-like tokenizer.json have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.files import TokenizerFiles
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary, added_type, assemble

SPACE = "\u2581"  # stands for a space in the pieces
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# The scores that llama.cpp's converters give to tokens which no merge should make.
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0


class Piece(NamedTuple):
    """A token of the model itself. Of all neighbours that make a token, those of the highest score merge first."""

    text: str
    score: float
    type: TokenType


def space_in_front(files: TokenizerFiles, stated: bool, *, default: bool) -> bool:
    """Whether a text starts with a space that is not there.

    stated: what the vocabulary's own file says. transformers' LlamaTokenizer goes by add_prefix_space in
    tokenizer_config.json alone, and by `default` without; its other classes (release 5) do not look at that key.
    """
    key = files.tokenizer_config.get("add_prefix_space")
    if files.is_llama:
        return key if isinstance(key, bool) else default
    if files.json is None and isinstance(key, bool) and key is not stated:
        raise BitconvError(
            f"add_prefix_space is {str(key).lower()}, tokenizer.model says the other, and which one holds depends on "
            "transformers' release where tokenizer_class is not LlamaTokenizer",
            code=Code.CONTRADICTION,
            file=files.directory / "tokenizer_config.json",
            way_out="set tokenizer_class to LlamaTokenizer for the key to hold, or remove the key",
        )
    return stated


def spm_vocabulary(
    files: TokenizerFiles, path: Path, pieces: Mapping[int, Piece], *, add_space_prefix: bool
) -> Vocabulary:
    """The pieces by id, which come from `path`, with the directory's added tokens laid over them.

    add_space_prefix: the text starts with a space that is not there (SentencePiece's add_dummy_prefix). Runners
    put one after every special token too, as transformers does with legacy=True.
    """
    if not BYTE_PIECES.issubset(piece.text for piece in pieces.values()):
        raise BitconvError(
            "lacks byte tokens <0x00> to <0xFF>; llama.cpp needs them for characters without a token",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=path,
        )
    pieces = dict(pieces)
    for token_id, token in files.added.items():
        piece = pieces.get(token_id)
        # <unk>, <s> and </s> are listed as added tokens too, but stay what the model calls them.
        if piece is None or piece.text != token.content or piece.type == TokenType.NORMAL:
            pieces[token_id] = Piece(token.content, _ADDED_SCORE, added_type(token))
    tokens, types = assemble(
        path,
        files.vocab_size,
        # User-defined tokens are found in the text before its spaces are replaced.
        {
            token_id: p.text.replace(SPACE, " ") if p.type == TokenType.USER_DEFINED else p.text
            for token_id, p in pieces.items()
        },
        {token_id: p.type for token_id, p in pieces.items()},
    )
    scores = np.full(files.vocab_size, _UNUSED_SCORE, np.float32)
    scores[list(pieces)] = [piece.score for piece in pieces.values()]
    return Vocabulary(
        "llama",
        tokens,
        types,
        {"tokenizer.ggml.scores": scores, "tokenizer.ggml.add_space_prefix": add_space_prefix},
    )
