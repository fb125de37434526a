"""TL1: bitnet.cpp's table-lookup layout for arm64, two bits a weight, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts import tail_scale
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, Trits
from bitconv.layouts.tiles import Tile, tl1_obstacle


class TL1(Layout):
    """Pairs of columns, 3 * first + second + 4 in a nibble, in the order in which the runner's kernels read them.

    From the outside in: blocks of bm rows, of bk columns, of bmm rows, of 256 / bmm columns, of 16 rows, of 4 columns;
    of those 16 x 4 each row is a byte, the first pair in the high nibble. Then the scale.
    """

    name = "tl1"
    tile: Tile

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.row_multiple = tile.bm

    def obstacle(self, rows: int, columns: int) -> str | None:
        return tl1_obstacle(rows, columns, self.tile)

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns // 4 + tail_scale.TAIL

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns // 4)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        packed = np.empty(trits.size // 4, np.uint8)
        _kernels.tl1_pack(trits, self.tile.bm, self.tile.bk, self.tile.bmm, packed)
        return [packed]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        trits = np.empty((packed[0].size * 4 // columns, columns), np.int8)
        bad = _kernels.tl1_unpack(packed[0], self.tile.bm, self.tile.bk, self.tile.bmm, trits)
        if bad >= 0:
            raise InvalidCode(*divmod(bad, columns))
        return trits, np.empty(0, np.float32)

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size * 4 // x.shape[1]), np.int32)
        _kernels.tl1_matmul(packed[0], self.tile.bm, self.tile.bk, self.tile.bmm, x, product)
        return product

    def tail(self, scale: np.float32) -> bytes:
        return tail_scale.encode(scale)

    def tail_scale(self, tail: bytes) -> np.float32:
        return tail_scale.decode(tail)
