"""GGML tensor types by id: how many bytes a row takes."""

from __future__ import annotations

from typing import NamedTuple


class TensorType(NamedTuple):
    """A type whose rows are whole blocks of `block` values in `block_bytes` bytes."""

    id: int
    name: str
    block: int
    block_bytes: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor. ValueError where its rows are not whole blocks."""
        if shape[-1] % self.block:
            raise ValueError(f"{shape[-1]} columns are not whole {self.name} blocks of {self.block}")
        count = 1
        for size in shape:
            count *= size
        return count // self.block * self.block_bytes


# ggml.h of llama.cpp; ids that ggml has given to two types over time (the ternary ones) are in bitconv.layouts.
_TYPES = (
    TensorType(0, "f32", 1, 4),
    TensorType(1, "f16", 1, 2),
    TensorType(2, "q4_0", 32, 18),
    TensorType(3, "q4_1", 32, 20),
    TensorType(6, "q5_0", 32, 22),
    TensorType(7, "q5_1", 32, 24),
    TensorType(8, "q8_0", 32, 34),
    TensorType(10, "q2_k", 256, 84),
    TensorType(11, "q3_k", 256, 110),
    TensorType(12, "q4_k", 256, 144),
    TensorType(13, "q5_k", 256, 176),
    TensorType(14, "q6_k", 256, 210),
    TensorType(30, "bf16", 1, 2),
)
_BY_ID = {t.id: t for t in _TYPES}
_BY_NAME = {t.name: t for t in _TYPES}


def tensor_type(type_id: int) -> TensorType | None:
    return _BY_ID.get(type_id)


def type_by_name(name: str) -> TensorType:
    return _BY_NAME[name]
