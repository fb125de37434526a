"""TL1: bitnet.cpp's table-lookup layout for arm64, two bits a weight, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts import tail_scale
from bitconv.layouts.layout import NO_SCALES, Bytes, InvalidCode, Region, Scales, Trits
from bitconv.layouts.tiled import TiledLayout
from bitconv.layouts.tiles import Tile, TileRules, first_broken_rule


def _obstacle(rows: int, columns: int, tile: Tile) -> str | None:
    """Why no build of bitnet.cpp computes TL1 of this shape in this tile; None where one can."""
    return first_broken_rule(
        "tl1",
        rows,
        columns,
        tile,
        (tile.bmm in (32, 64), "bmm must be 32 or 64"),
        (tile.bm % tile.bmm == 0, "bm must be a multiple of bmm"),
        (rows % tile.bm == 0, "the rows must be a multiple of bm"),
        (tile.bk * tile.bmm % 256 == 0, "bk must be a multiple of 256 / bmm"),
        (tile.bk <= 256, "bk must be 256 at most, or the sums of a block, in int16, can overflow"),
        (columns % tile.bk == 0, "the columns must be a multiple of bk"),
        (columns % 16 == 0, "the columns must be a multiple of 16, since lookup tables are made for 16 at a time"),
    )


_TILES = TileRules(
    type_name="tl1",
    obstacle=_obstacle,
    shipped={
        "bitnet_b1_58-large": {
            (1536, 4096): Tile(256, 128, 32),
            (1536, 1536): Tile(128, 64, 64),
            (4096, 1536): Tile(256, 128, 32),
        },
        "bitnet_b1_58-3B": {
            (3200, 8640): Tile(160, 64, 32),
            (3200, 3200): Tile(320, 128, 64),
            (8640, 3200): Tile(320, 64, 32),
        },
        "Llama3-8B-1.58-100B-tokens": {
            (14336, 4096): Tile(256, 128, 32),
            (4096, 14336): Tile(128, 64, 64),
            (1024, 4096): Tile(256, 128, 32),
            (4096, 4096): Tile(128, 64, 64),
        },
    },
    candidates=tuple(Tile(bm, bk, 32) for bm in range(32, 321, 32) for bk in range(8, 129, 8)),
    preference=lambda columns, tile: (-tile.bm, -tile.bk),
    needs="it needs rows in multiples of 32, columns in multiples of 16",
    build_option="BITNET_ARM_TL1",
)


class TL1(TiledLayout):
    """Pairs of columns, 3 * first + second + 4 in a nibble, in the order in which the runner's kernels read them.

    From the outside in: blocks of bm rows, of bk columns, of bmm rows, of 256 / bmm columns, of 16 rows, of 4 columns;
    of those 16 x 4 each row is a byte, the first pair in the high nibble. Then the scale.
    """

    name = "tl1"
    max_batch = 1
    tile_rules = _TILES

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
        return trits, NO_SCALES

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size * 4 // x.shape[1]), np.int32)
        _kernels.tl1_matmul(packed[0], self.tile.bm, self.tile.bk, self.tile.bmm, x, product)
        return product

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        rows = packed[0].size * 4 // columns
        return _kernels.Operand.tl1(packed[0], rows, columns, self.tile.bm, self.tile.bk, self.tile.bmm)


LAYOUT = TL1
