"""I2_S: bitnet.cpp's two-bit layout, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts import tail_scale
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, Trits

BLOCK = 128


class I2S(Layout):
    """The byte order of every published I2_S file (bitnet.cpp's x86 builds, and arm64 ones to November 2025).

    The codes trit + 1 of all rows, one after the other, in blocks of 128; a block is 32 bytes, and byte j of it
    holds the codes j, 32+j, 64+j and 96+j, high bits first. Then the scale.
    """

    name = "i2_s"

    def obstacle(self, rows: int, columns: int) -> str | None:
        if columns % BLOCK:
            return f"i2_s needs columns in multiples of {BLOCK}, and {columns} are not"
        return None

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns // 4 + tail_scale.TAIL

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns // 4)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        packed = np.empty(trits.size // 4, np.uint8)
        _kernels.i2_s_pack(trits, packed)
        return [packed]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        return _unpack(_kernels.i2_s_unpack, packed[0], columns), np.empty(0, np.float32)

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size * 4 // x.shape[1]), np.int32)
        _kernels.i2_s_matmul(packed[0], x, product)
        return product

    def tail(self, scale: np.float32) -> bytes:
        return tail_scale.encode(scale)

    def tail_scale(self, tail: bytes) -> np.float32:
        return tail_scale.decode(tail)


class I2SByteOrder(I2S):
    """I2_S as other builds of bitnet.cpp order its bytes, under the same type id: nothing in a file tells them apart.

    Read only: rows are put into the published order first, and then are I2_S.

    arm64: blocks of 64 codes in 16 bytes, byte j holding the codes j, 16+j, 32+j and 48+j, high bits first.
    row4: byte (g, k) holds rows 4g to 4g+3 at column k, high bits first.
    """

    def __init__(self, name: str, row_multiple: int, unpack: Callable[[Bytes, Trits], int]) -> None:
        self.name = name
        self.row_multiple = row_multiple
        self._unpack = unpack

    def obstacle(self, rows: int, columns: int) -> str | None:
        if rows % self.row_multiple:
            return f"{self.name} needs rows in multiples of {self.row_multiple}, and {rows} are not"
        return super().obstacle(rows, columns)

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        raise TypeError(f"{self.name} is only read")

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        return _unpack(self._unpack, packed[0], columns), np.empty(0, np.float32)

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        trits, scales = self.unpack_rows(packed, x.shape[1])
        return super().matmul_rows(super().pack_rows(trits, scales), x)


def _unpack(kernel: Callable[[Bytes, Trits], int], packed: Bytes, columns: int) -> Trits:
    trits = np.empty((packed.size * 4 // columns, columns), np.int8)
    bad = kernel(packed, trits)
    if bad >= 0:
        raise InvalidCode(*divmod(bad, columns))
    return trits


I2_S_ARM64 = I2SByteOrder("i2_s_arm64", 1, _kernels.i2_s_arm64_unpack)
I2_S_ROW4 = I2SByteOrder("i2_s_row4", 4, _kernels.i2_s_row4_unpack)
