"""I2_S: bitnet.cpp's two-bit layout, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts import tail_scale
from bitconv.layouts.layout import NO_SCALES, Bytes, InvalidCode, Layout, Region, Scales, Trits

BLOCK = 128


class I2S(Layout):
    """The byte order of every published I2_S file (bitnet.cpp's x86 builds, and arm64 ones to November 2025).

    The codes trit + 1 of all rows, one after the other, in blocks of 128; a block is 32 bytes, and byte j of it
    holds the codes j, 32+j, 64+j and 96+j, high bits first. Then the scale.
    """

    name = "i2_s"
    exact_scale = True

    def in_byte_order(self, order: str | None) -> Layout:
        return self if order is None else _ORDERS[order]

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
        _kernels.pack_rows("i2_s", trits, NO_SCALES, packed)
        return [packed]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        trits = np.empty((packed[0].size * 4 // columns, columns), np.int8)
        bad = _kernels.unpack_rows(self.name, packed[0], trits, NO_SCALES)
        if bad >= 0:
            raise InvalidCode(*divmod(bad, columns))
        return trits, NO_SCALES

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size * 4 // x.shape[1]), np.int32)
        _kernels.matmul_rows("i2_s", packed[0], x, product)
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

    def __init__(self, name: str, row_multiple: int) -> None:
        self.name = name
        self.row_multiple = row_multiple

    def obstacle(self, rows: int, columns: int) -> str | None:
        if rows % self.row_multiple:
            return f"{self.name} needs rows in multiples of {self.row_multiple}, and {rows} are not"
        return super().obstacle(rows, columns)

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        raise TypeError(f"{self.name} is only read")

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        trits, scales = self.unpack_rows(packed, x.shape[1])
        return super().matmul_rows(super().pack_rows(trits, scales), x)


_ORDERS = {"arm64": I2SByteOrder("i2_s_arm64", 1), "row4": I2SByteOrder("i2_s_row4", 4)}
LAYOUT = I2S
