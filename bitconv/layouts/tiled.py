"""What the layouts share whose bytes depend on tile sizes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bitconv.layouts import tail_scale
from bitconv.layouts.layout import Layout
from bitconv.layouts.tiles import Tile, TileRules


class TiledLayout(Layout):
    """A layout of bitnet.cpp's table-lookup kernels: one float32 scale at the end, and rows in blocks of a tile's bm.

    tile_rules: which tiles there can be.
    """

    tile: Tile
    tile_rules: ClassVar[TileRules]
    exact_scale = True

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.row_multiple = tile.bm

    def obstacle(self, rows: int, columns: int) -> str | None:
        return self.tile_rules.obstacle(rows, columns, self.tile)

    def tail(self, scale: np.float32) -> bytes:
        return tail_scale.encode(scale)

    def tail_scale(self, tail: bytes) -> np.float32:
        return tail_scale.decode(tail)
