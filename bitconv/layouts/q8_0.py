"""Q8_0: ggml's eight-bit blocks, for ternary tensors whose shape no packed layout takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, ScaleT, Trits, float16_scale

BLOCK = 32
BLOCK_BYTES = 34
LARGEST = np.float32(127)


class Q8_0(Layout):  # noqa: N801 - the format's name
    """Blocks of 32 in 34 bytes: a float16 d, then int8 values. +1 is 127 * d, with d = scale / 127, or 0 for zeros."""

    name = "q8_0"

    def obstacle(self, rows: int, columns: int) -> str | None:
        if columns % BLOCK:
            return f"q8_0 needs columns in multiples of {BLOCK}, and {columns} are not"
        return None

    def scale_columns(self, columns: int) -> int:
        return BLOCK

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        return float16_scale(scale / LARGEST) * LARGEST

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns // BLOCK * BLOCK_BYTES

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns // BLOCK * BLOCK_BYTES)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        blocks = trits.reshape(-1, BLOCK)
        packed = np.empty((len(blocks), BLOCK_BYTES), np.uint8)
        # ggml derives d from the block's largest magnitude, which a block of zeros does not have.
        d = np.where(blocks.any(axis=1), scales.reshape(-1) / LARGEST, np.float32(0))
        packed[:, :2] = d.astype("<f2")[:, None].view(np.uint8)
        packed[:, 2:] = (blocks * np.int8(LARGEST)).view(np.uint8)
        return [packed.reshape(-1)]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        values, d = _split(packed[0], columns)
        bad = np.flatnonzero((values != 0) & (np.abs(values.astype(np.int16)) != LARGEST))
        if bad.size:
            raise InvalidCode(*divmod(int(bad[0]), columns))
        return np.sign(values), d * LARGEST

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        values, _ = _split(packed[0], x.shape[1])
        product = np.empty((x.shape[0], values.shape[0]), np.int32)
        _kernels.matmul(np.sign(values), x, product)
        return product


LAYOUT = Q8_0


def _split(packed: Bytes, columns: int) -> tuple[npt.NDArray[np.int8], Scales]:
    blocks = packed.reshape(-1, BLOCK_BYTES)
    values = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).reshape(-1, columns)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return values, d.reshape(len(values), -1)
