"""TL2: bitnet.cpp's table-lookup layout for x86, 1.67 bits a weight, one float32 scale a tensor."""

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
    """Why no build of bitnet.cpp computes TL2 of this shape in this tile; None where one can.

    bk being 240 at most, fewer than 256 columns are packed in pairs, and so the data fits the tensor's size.
    """
    return first_broken_rule(
        "tl2",
        rows,
        columns,
        tile,
        (tile.bmm == 32, "bmm must be 32, the only one that its kernels have"),
        (tile.bm % 32 == 0, "bm must be a multiple of 32"),
        (rows % tile.bm == 0, "the rows must be a multiple of bm"),
        (tile.bk % 24 == 0, "bk must be a multiple of 24"),
        (tile.bk <= 240, "bk must be 240 at most, or the sums of a block, in int16, can overflow"),
        (columns % tile.bk % 32 == 0, "the columns left over by bk must be a multiple of 32"),
        (columns >= 256, "there must be 256 columns or more"),
    )


_TILES = TileRules(
    type_name="tl2",
    obstacle=_obstacle,
    shipped={
        "bitnet_b1_58-large": {
            (1536, 4096): Tile(256, 96, 32),
            (1536, 1536): Tile(128, 192, 32),
            (4096, 1536): Tile(256, 96, 32),
        },
        "bitnet_b1_58-3B": {
            (3200, 8640): Tile(160, 96, 32),
            (3200, 3200): Tile(320, 96, 32),
            (8640, 3200): Tile(320, 96, 32),
        },
        "Llama3-8B-1.58-100B-tokens": {
            (14336, 4096): Tile(256, 96, 32),
            (4096, 14336): Tile(128, 96, 32),
            (1024, 4096): Tile(256, 96, 32),
            (4096, 4096): Tile(128, 96, 32),
        },
    },
    candidates=tuple(Tile(bm, bk, 32) for bm in range(32, 321, 32) for bk in range(24, 241, 24)),
    # The fewest columns in pairs, which take more of the runner's memory for tables than triples: it sets aside 11
    # bytes a column, which more than columns / 16 in pairs overrun. Then bk closest to 96, the usual one.
    preference=lambda columns, tile: (columns % tile.bk, abs(tile.bk - 96), tile.bk, -tile.bm),
    needs="it needs rows in multiples of 32, and 256 columns or more that a bk of 24, 48, ... or 240 divides but for "
    "a multiple of 32",
    build_option="BITNET_X86_TL2",
)


class TL2(TiledLayout):
    """Triples of columns as a magnitude and a sign, and pairs for the columns that bk leaves over.

    Three parts follow each other. Values: of each triple the magnitude of 9 * first + 3 * second + third in a nibble.
    Signs: a bit each. Pairs: 3 * first + second + 4 in a nibble. Each part is in the order in which the runner's
    kernels read it: blocks of bm rows, of bk columns (of 32 in the pairs), of 32 rows, then of 6, 24 and 4 columns.
    Zeros follow up to a size that the tile has no part in, then the scale.
    """

    name = "tl2"
    # Its generated kernels give NaN for 8 and more.
    max_batch = 4
    tile_rules = _TILES

    def nbytes(self, rows: int, columns: int) -> int:
        # ggml_nbytes of bitnet.cpp: as if 256 columns were in pairs, whatever the tile leaves over.
        data = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
        return -(-data // 32) * 32 + tail_scale.TAIL

    def _row_bytes(self, columns: int) -> tuple[int, int, int]:
        """Bytes of a row's values, signs and pairs."""
        pairs = columns % self.tile.bk
        return (columns - pairs) // 6, (columns - pairs) // 24, pairs // 4

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        values, signs, pairs = self._row_bytes(columns)
        return [Region(0, values), Region(rows * values, signs), Region(rows * (values + signs), pairs)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        rows, columns = trits.shape
        values, signs, pairs = (np.empty(rows * size, np.uint8) for size in self._row_bytes(columns))
        _kernels.tl2_pack(trits, self.tile.bm, self.tile.bk, values, signs, pairs)
        return [values, signs, pairs]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        values, signs, pairs = packed
        trits = np.empty((self._rows(values, columns), columns), np.int8)
        bad = _kernels.tl2_unpack(values, signs, pairs, self.tile.bm, self.tile.bk, trits)
        if bad >= 0:
            raise InvalidCode(*divmod(bad, columns))
        return trits, NO_SCALES

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        values, signs, pairs = packed
        product = np.empty((x.shape[0], self._rows(values, x.shape[1])), np.int32)
        _kernels.tl2_matmul(values, signs, pairs, self.tile.bm, self.tile.bk, x, product)
        return product

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        values, signs, pairs = packed
        rows = self._rows(values, columns)
        return _kernels.Operand.tl2(values, signs, pairs, rows, columns, self.tile.bm, self.tile.bk)

    def _rows(self, values: Bytes, columns: int) -> int:
        return values.size // self._row_bytes(columns)[0]


LAYOUT = TL2
