"""SentencePiece (tokenizer.model): llama.cpp's model "llama".

The file is one protobuf message. It is read here field by field, since the sentencepiece library shows neither the
model's type nor its normalizer, and its message classes need the protobuf library too. Field numbers are those of
sentencepiece_model.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import read_whole
from bitconv.tokenizer.bpe import read_bpe
from bitconv.tokenizer.files import TokenizerFiles
from bitconv.tokenizer.spm import Piece, space_in_front, spm_vocabulary
from bitconv.tokenizer.spm_json import adds_space_prefix
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")  # a token in base64 and its rank, a line each
_BPE = 2  # TrainerSpec.ModelType; 1, Unigram, is the default


def sentencepiece_vocabulary(files: TokenizerFiles) -> Vocabulary:
    """The pieces of tokenizer.model. A tokenizer.json beside it must agree, but has no scores to use.

    Raises BitconvError for a model that llama.cpp's SPM tokenizer, BPE on the text as it is, cannot express.
    """
    path = files.directory / "tokenizer.model"
    data = read_whole(path, files.directory)
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (
            dict(_fields(b"".join(value for number, value in fields if number == wanted))) for wanted in (2, 3)
        )
    except (AttributeError, LookupError, TypeError, ValueError, struct.error):
        pieces = []
    if not pieces and _TIKTOKEN.match(data):
        raise BitconvError(
            "not a SentencePiece model but tiktoken's vocabulary, as in Llama 3's original release, which lacks the "
            "special tokens",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=path,
            way_out="put the tokenizer.json and tokenizer_config.json of the model's Hugging Face release beside it",
        )
    if not pieces:
        raise BitconvError("not a SentencePiece model", code=Code.TOKENIZER, file=path)
    if trainer.get(3, 1) != _BPE:
        raise BitconvError(
            "its model is not BPE; llama.cpp's SPM tokenizer would split text otherwise",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=path,
        )
    for spec, number, default, expected, name in (
        (trainer, 24, 0, 0, "treat_whitespace_as_suffix"),
        (normalizer, 2, b"", b"", "precompiled_charsmap"),
        (normalizer, 4, 1, 0, "remove_extra_whitespaces"),
        (normalizer, 5, 1, 1, "escape_whitespaces"),
    ):
        if spec.get(number, default) != expected:
            raise BitconvError(
                f"its {name} changes text, and llama.cpp's SPM tokenizer does not",
                code=Code.TOKENIZER_UNSUPPORTED,
                file=path,
            )
    stated = bool(normalizer.get(3, 1))
    if files.json is not None:
        bpe = read_bpe(files.json_path, files.json)
        if not files.is_llama:  # then transformers runs tokenizer.json as it is
            stated = adds_space_prefix(bpe, files.json)
        for text, token_id in bpe.vocab.items():
            if token_id < len(pieces) and pieces[token_id].text != text:
                raise BitconvError(
                    f"token {token_id} is {text!r}, but {path.name} has {pieces[token_id].text!r}",
                    code=Code.CONTRADICTION,
                    file=files.json_path,
                    way_out="remove the file that does not belong to this checkpoint",
                )
    space = space_in_front(files, stated, default=True)
    return spm_vocabulary(files, path, dict(enumerate(pieces)), add_space_prefix=space)


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields.get(1, b"").decode("utf-8"), score, TokenType(fields.get(3, TokenType.NORMAL)))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: int for a varint, else bytes. Raises ValueError."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while position < len(message):
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError("truncated")

    while position < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
        else:
            length = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
            value = message[position : position + length]
            if len(value) < length:
                raise ValueError("truncated")
            position += length
            yield number, value
