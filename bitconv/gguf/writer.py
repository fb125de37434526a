"""The header of a GGUF file, version 3, little endian."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from bitconv._kernels import encode_strings
from bitconv.gguf.values import Metadata, encode_value

ALIGNMENT = 32  # the format's default, so general.alignment is not written


class TensorEntry(NamedTuple):
    """A tensor as the header lists it.

    shape is row-major, (rows, columns) or (length,): the header's own order is the reverse, fastest first.
    offset counts from the start of the data section and is a multiple of ALIGNMENT.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def align(offset: int) -> int:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def encode_header(metadata: Metadata, tensors: Sequence[TensorEntry]) -> bytes:
    """Everything before the data section, padded so that the data section starts aligned."""
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [encode_strings([key]), encode_value(value)]
    for tensor in tensors:
        parts.append(encode_strings([tensor.name]))
        parts.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape)))
        parts.append(struct.pack("<IQ", tensor.type_id, tensor.offset))
    header = b"".join(parts)
    return header.ljust(align(len(header)), b"\0")
