"""The data section of a file as it is laid out, tensor after tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitconv.architectures import scale_name
from bitconv.gguf import Metadata, TensorEntry, align, encode_header
from bitconv.layouts import BLOCK_SCALED, EXACT_SCALE, Layout, Trits
from bitconv.rawio import write_at
from bitconv.runners import Runner
from bitconv.ternary import row_blocks
from bitconv.tiles import Tile, tile_metadata


class TernaryPlace(NamedTuple):
    """Where a ternary tensor goes: offset, and that of its `.scale` tensor if it has one, count from the data section.

    With a `.scale` tensor the scales in the layout's own blocks are 1.
    """

    layout: Layout
    shape: tuple[int, int]
    offset: int
    nbytes: int
    scale_offset: int | None

    def stored_scale(self, scale: np.float32) -> np.float32:
        """A scale as the file will hold it."""
        return scale if self.scale_offset is not None else self.layout.stored_scale(scale)

    @property
    def exact(self) -> bool:
        """Whether every scale is kept in float32."""
        return self.scale_offset is not None or self.layout.name in EXACT_SCALE

    def holds(self, scale: np.float32) -> bool:
        return bool(0 < self.stored_scale(scale) < np.inf)

    def write(
        self,
        descriptor: int,
        data_offset: int,
        scale: np.float32,
        read: Callable[[int, int], Trits],
        row_multiple: int,
        check: Callable[[], None],
    ) -> None:
        """Write the tensor block by block. read: rows first to last, multiples of row_multiple, as trits."""
        start = data_offset + self.offset
        if self.scale_offset is not None:
            write_at(descriptor, scale.tobytes(), data_offset + self.scale_offset)
            scale = np.float32(1)
        regions = self.layout.regions(*self.shape)
        for first, last in row_blocks(*self.shape, int(np.lcm(self.layout.row_multiple, row_multiple))):
            check()
            packed = self.layout.pack_rows(read(first, last), scale)
            for region, data in zip(regions, packed, strict=True):
                write_at(descriptor, data, start + region.offset + first * region.row_bytes)
        tail = self.layout.tail(scale)
        write_at(descriptor, tail, start + self.nbytes - len(tail))


class DataSection:
    """Tensors placed for a runner. scale_in_blocks: no `.scale` tensors, even where the runner takes them."""

    def __init__(self, runner: Runner, *, scale_in_blocks: bool) -> None:
        self.runner = runner
        self.scale_in_blocks = scale_in_blocks
        self.entries: list[TensorEntry] = []
        self.tiles: dict[tuple[int, int], Tile] = {}
        self.size = 0

    def place(self, name: str, shape: tuple[int, ...], type_id: int, nbytes: int) -> int:
        """Place a tensor after those before it. Returns its offset."""
        self.entries.append(TensorEntry(name, shape, type_id, self.size))
        self.size += align(nbytes)
        return self.entries[-1].offset

    def place_ternary(self, name: str, shape: tuple[int, int], layout: Layout) -> TernaryPlace:
        """Place a ternary tensor, with a `.scale` tensor where the layout and the runner allow for it."""
        if layout.tile is not None:
            self.tiles[shape] = layout.tile
        return self._place_matrices(name, shape, shape, 1, layout)[0]

    def place_experts(self, name: str, shape: tuple[int, int, int], layout: Layout) -> list[TernaryPlace]:
        """Place a stack of ternary matrices: one after the other, and their scales in one `.scale` tensor."""
        experts, *matrix = shape
        return self._place_matrices(name, shape, (matrix[0], matrix[1]), experts, layout)

    def _place_matrices(
        self, name: str, shape: tuple[int, ...], matrix: tuple[int, int], count: int, layout: Layout
    ) -> list[TernaryPlace]:
        nbytes = layout.nbytes(*matrix)
        offset = self.place(name, shape, self.runner.type_id(layout.name), count * nbytes)
        scales: list[int | None] = [None] * count
        if layout.name in BLOCK_SCALED and self.runner.scale_tensors and not self.scale_in_blocks:
            first = self.place(scale_name(name), (count,), self.runner.type_id("f32"), 4 * count)
            scales = [first + 4 * i for i in range(count)]
        return [TernaryPlace(layout, matrix, offset + i * nbytes, nbytes, scales[i]) for i in range(count)]

    def header(self, metadata: Metadata) -> bytes:
        """The file's header, the tiles used recorded in it. The data section follows."""
        return encode_header(metadata | (tile_metadata(self.tiles) if self.tiles else {}), self.entries)
