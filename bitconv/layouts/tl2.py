"""TL2: bitnet.cpp's table-lookup layout for x86, 1.67 bits a weight, one float32 scale a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts import tail_scale
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, Trits
from bitconv.layouts.tiles import Tile, tl2_obstacle


class TL2(Layout):
    """Triples of columns as a magnitude and a sign, and pairs for the columns that bk leaves over.

    Three parts follow each other. Values: of each triple the magnitude of 9 * first + 3 * second + third in a nibble.
    Signs: a bit each. Pairs: 3 * first + second + 4 in a nibble. Each part is in the order in which the runner's
    kernels read it: blocks of bm rows, of bk columns (of 32 in the pairs), of 32 rows, then of 6, 24 and 4 columns.
    Zeros follow up to a size that the tile has no part in, then the scale.
    """

    name = "tl2"
    tile: Tile

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.row_multiple = tile.bm

    def obstacle(self, rows: int, columns: int) -> str | None:
        return tl2_obstacle(rows, columns, self.tile)

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
        return trits, np.empty(0, np.float32)

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        values, signs, pairs = packed
        product = np.empty((x.shape[0], self._rows(values, x.shape[1])), np.int32)
        _kernels.tl2_matmul(values, signs, pairs, self.tile.bm, self.tile.bk, x, product)
        return product

    def _rows(self, values: Bytes, columns: int) -> int:
        return values.size // self._row_bytes(columns)[0]

    def tail(self, scale: np.float32) -> bytes:
        return tail_scale.encode(scale)

    def tail_scale(self, tail: bytes) -> np.float32:
        return tail_scale.decode(tail)
