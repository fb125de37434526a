"""I2_S: bitnet.cpp's two-bit layout, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.layouts import I2_S_ORDERS, tail_scale
from bitconv.layouts.layout import NO_SCALES, Bytes, InvalidCode, Layout, Region, Scales, Trits

BLOCK = 128
ORDER_KEY = "bitconv.i2_s_order"


class I2S(Layout):
    """The byte order of every published I2_S file (bitnet.cpp's x86 builds, and arm64 ones to November 2025).

    The codes trit + 1 of all rows, one after the other, in blocks of 128; a block is 32 bytes, and byte j of it
    holds the codes j, 32+j, 64+j and 96+j, high bits first. Then the scale.
    """

    name = "i2_s"
    kernel = "i2_s"
    block = BLOCK
    exact_scale = True

    def in_byte_order(self, order: str | None) -> Layout:
        return I2S() if order in (None, "published") else _ORDERS[order]

    def obstacle(self, rows: int, columns: int) -> str | None:
        if columns % self.block:
            return f"{self.kernel} needs columns in multiples of {self.block}, and {columns} are not"
        return None

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns // 4 + tail_scale.TAIL

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns // 4)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        packed = np.empty(trits.size // 4, np.uint8)
        _kernels.pack_rows(self.kernel, trits, NO_SCALES, packed)
        return [packed]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        trits = np.empty((packed[0].size * 4 // columns, columns), np.int8)
        bad = _kernels.unpack_rows(self.kernel, packed[0], trits, NO_SCALES)
        if bad >= 0:
            raise InvalidCode(*divmod(bad, columns))
        return trits, NO_SCALES

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size * 4 // x.shape[1]), np.int32)
        _kernels.matmul_rows(self.kernel, packed[0], x, product)
        return product

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        return _kernels.Operand.rows(self.kernel, packed[0], packed[0].size * 4 // columns, columns)

    def tail(self, scale: np.float32) -> bytes:
        return tail_scale.encode(scale)

    def tail_scale(self, tail: bytes) -> np.float32:
        return tail_scale.decode(tail)


class Arm64I2S(I2S):
    """I2_S as bitnet.cpp's builds for arm64 from November 2025 on order its bytes, under the same type id.

    Blocks of 64 codes in 16 bytes, byte j holding the codes j, 16+j, 32+j and 48+j, high bits first.
    """

    kernel = "i2_s_arm64"
    block = 64
    byte_order = "arm64"


class Row4I2S(I2S):
    """I2_S as builds of bitnet.cpp for x86 with other settings (no ACT_PARALLEL) order its bytes. Read only.

    Byte (g, k) holds rows 4g to 4g+3 at column k, high bits first.
    """

    kernel = "i2_s_row4"
    row_multiple = 4
    byte_order = "row4"

    def obstacle(self, rows: int, columns: int) -> str | None:
        if rows % self.row_multiple:
            return f"{self.kernel} needs rows in multiples of {self.row_multiple}, and {rows} are not"
        return super().obstacle(rows, columns)

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        raise TypeError(f"{self.kernel} is only read")

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        """Of the rows in the published order."""
        trits, scales = self.unpack_rows(packed, x.shape[1])
        published = I2S()
        return published.matmul_rows(published.pack_rows(trits, scales), x)

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        return Layout.operand(self, packed, columns)


def order_from_metadata(metadata: Metadata, file: object) -> str | None:
    """The byte order that a GGUF file records; None in files without a record. MalformedGGUF for a bad record."""
    order = metadata.get(ORDER_KEY)
    if order is None or (isinstance(order, str) and order in I2_S_ORDERS):
        return order
    raise MalformedGGUF(f"{ORDER_KEY} is not one of {', '.join(I2_S_ORDERS)}", file=file)


_ORDERS: dict[str | None, Layout] = {"arm64": Arm64I2S(), "row4": Row4I2S()}
LAYOUT = I2S
