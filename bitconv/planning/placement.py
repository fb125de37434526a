"""The data section of a file as it is laid out, tensor after tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitconv.gguf import Metadata, TensorEntry, align, encode_header, type_by_name
from bitconv.layouts.i2_s import ORDER_KEY
from bitconv.layouts.layout import Layout, ScaleT, Trits
from bitconv.layouts.scales import FLOATS_KEY, Scale, block_scales, group_metadata, scale_obstacle
from bitconv.layouts.tiles import Tile, tile_metadata
from bitconv.models.architectures import scale_name
from bitconv.runners import Runner
from bitconv.system.blocks import row_blocks
from bitconv.system.jobs import KeepGoing
from bitconv.system.rawio import write_at


class PlacedMatrix(NamedTuple):
    """A ternary matrix and where it goes.

    offset, and that of its `.scale` tensor if it has one, count from the data section.

    With a `.scale` tensor the scales in the layout's own blocks are 1. group: the columns of a row that share a scale,
    None where the whole tensor has one.
    """

    layout: Layout
    shape: tuple[int, int]
    offset: int
    nbytes: int
    scale_offset: int | None
    group: int | None

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        """A scale as the file will hold it."""
        return scale if self.scale_offset is not None else self.layout.stored_scale(scale)

    @property
    def exact(self) -> bool:
        """Whether every scale is kept in float32, or as one of several, which are never rounded."""
        return self.scale_offset is not None or self.layout.exact_scale or self.group is not None

    def scale_error(self, scale: Scale) -> float:
        """How far off the file's scale is, relative."""
        return 0.0 if isinstance(scale, np.ndarray) else abs(float(self.stored_scale(scale)) / float(scale) - 1)

    def obstacle(self, scale: Scale) -> str | None:
        """Why the tensor cannot have such scales; None where it can."""
        if not isinstance(scale, np.ndarray) and not 0 < self.stored_scale(scale) < np.inf:
            return f"{self.layout.name} cannot hold its scale of {scale}"
        return scale_obstacle(self.layout, scale, self.shape[1])

    def write(
        self,
        descriptor: int,
        data_offset: int,
        scale: Scale,
        read: Callable[[int, int], Trits],
        row_multiple: int,
        keep_going: KeepGoing,
    ) -> None:
        """Write the tensor block by block. read: rows first to last, multiples of row_multiple, as trits."""
        start = data_offset + self.offset
        if self.scale_offset is not None:
            write_at(descriptor, scale.tobytes(), data_offset + self.scale_offset)
            scale = np.float32(1)
        regions = self.layout.regions(*self.shape)
        for first, last in row_blocks(*self.shape, int(np.lcm(self.layout.row_multiple, row_multiple))):
            keep_going()
            scales = block_scales(self.layout, scale, first, last, self.shape[1])
            packed = self.layout.pack_rows(read(first, last), scales)
            for region, data in zip(regions, packed, strict=True):
                write_at(descriptor, data, start + region.offset + first * region.row_bytes)
        if not isinstance(scale, np.ndarray):
            tail = self.layout.tail(scale)
            write_at(descriptor, tail, start + self.nbytes - len(tail))


class DataSection:
    """Tensors placed for a runner. scale_in_blocks: no `.scale` tensors, even where the runner takes them."""

    def __init__(self, runner: Runner, *, scale_in_blocks: bool) -> None:
        self.runner = runner
        self.scale_in_blocks = scale_in_blocks
        self.entries: list[TensorEntry] = []
        self.tiles: dict[tuple[int, int], Tile] = {}
        self.groups: dict[str, int] = {}
        self.byte_order: str | None = None
        self.floats: list[str] = []
        self.size = 0

    def place(self, name: str, shape: tuple[int, ...], type_id: int, nbytes: int) -> int:
        """Place a tensor after those before it. Returns its offset."""
        self.entries.append(TensorEntry(name, shape, type_id, self.size))
        self.size += align(nbytes)
        return self.entries[-1].offset

    def place_dense(self, name: str, shape: tuple[int, ...], type_name: str) -> tuple[int, int]:
        """Place a tensor of a dense type. Returns its offset and its bytes."""
        nbytes = type_by_name(type_name).nbytes(shape)
        return self.place(name, shape, self.runner.type_id(type_name), nbytes), nbytes

    def place_ternary(
        self, name: str, shape: tuple[int, int], layout: Layout, group: int | None, *, beside: bool
    ) -> PlacedMatrix:
        """Place a ternary tensor, with a `.scale` tensor where it has one scale and layout and runner allow for it.

        beside: the runner's graph has a place for one.
        """
        if layout.tile is not None:
            self.tiles[shape] = layout.tile
        if group is not None:
            self.groups[name] = group
        return self._place_matrices(name, shape, shape, 1, layout, group, beside=beside)[0]

    def place_experts(
        self, name: str, shape: tuple[int, int, int], layout: Layout, group: int | None, *, beside: bool
    ) -> list[PlacedMatrix]:
        """The same of a stack of matrices: one after the other, and their scales in one `.scale` tensor."""
        if group is not None:
            self.groups[name] = group
        experts, *matrix = shape
        return self._place_matrices(name, shape, (matrix[0], matrix[1]), experts, layout, group, beside=beside)

    def _place_matrices(
        self,
        name: str,
        shape: tuple[int, ...],
        matrix: tuple[int, int],
        count: int,
        layout: Layout,
        group: int | None,
        *,
        beside: bool,
    ) -> list[PlacedMatrix]:
        nbytes = layout.nbytes(*matrix)
        offset = self.place(name, shape, self.runner.type_id(layout.name), count * nbytes)
        self.byte_order = self.byte_order or layout.byte_order
        scales: list[int | None] = [None] * count
        if beside and group is None and layout.scale_beside and self.runner.scale_tensors and not self.scale_in_blocks:
            first = self.place(scale_name(name), (count,), self.runner.type_id("f32"), 4 * count)
            scales = [first + 4 * i for i in range(count)]
        return [PlacedMatrix(layout, matrix, offset + i * nbytes, nbytes, scales[i], group) for i in range(count)]

    def header(self, metadata: Metadata) -> bytes:
        """The file's header, which records what nothing else in it tells: tiles, groups, another byte order of I2_S.

        The data section follows.
        """
        tiles = tile_metadata(self.tiles) if self.tiles else {}
        groups = group_metadata(self.groups) if self.groups else {}
        order: Metadata = {} if self.byte_order is None else {ORDER_KEY: self.byte_order}
        floats: Metadata = {FLOATS_KEY: self.floats} if self.floats else {}
        return encode_header(metadata | tiles | groups | order | floats, self.entries)
