"""A ternary tensor of an open GGUF file, read as trits a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bitconv.errors import BitconvError
from bitconv.gguf import TensorInfo
from bitconv.layouts import Bytes, InvalidCode, Layout, Scales, Trits
from bitconv.rawio import read_at
from bitconv.ternary import row_blocks


class FaultyTensor(BitconvError):  # noqa: N818 - it is a BitconvError
    """What is wrong with one tensor's data; the message names neither file nor tensor."""


@dataclass(frozen=True)
class Rows:
    """A block of rows: packed as the file holds them, a part for each region, and unpacked."""

    packed: list[Bytes]
    trits: Trits


class TernaryTensor:
    """One packed tensor. `scale`: what multiplies its trits, float32, once it is known.

    A scale in the tail or in a `.scale` tensor is known at once; one among the rows when the first row that has one
    has been read. Every scale must be finite and positive and all of them the same, or the tensor is faulty.
    """

    def __init__(self, descriptor: int, info: TensorInfo, layout: Layout, scale_tensor: TensorInfo | None) -> None:
        self.descriptor = descriptor
        self.info = info
        self.layout = layout
        self.rows, self.columns = info.shape
        self.scale: np.float32 | None = None
        self._factor: np.float32 | None = None
        if scale_tensor is not None:
            raw = np.empty(4, np.uint8)
            self._read(raw, scale_tensor.offset)
            self._factor = np.float32(raw.view("<f4")[0])
            _check(self._factor)
        tail = np.empty(len(layout.tail(np.float32(1))), np.uint8)
        self._read(tail, info.offset + layout.nbytes(self.rows, self.columns) - tail.size)
        stored = layout.tail_scale(tail.tobytes())
        if stored is not None:
            self._take_scale(stored)

    def read(self, first: int, last: int) -> Rows:
        """Rows first to last (exclusive), first a multiple of the layout's row_multiple."""
        packed = []
        for region in self.layout.regions(self.rows, self.columns):
            raw = np.empty((last - first) * region.row_bytes, np.uint8)
            self._read(raw, self.info.offset + region.offset + first * region.row_bytes)
            packed.append(raw)
        try:
            trits, scales = self.layout.unpack_rows(packed, self.columns)
        except InvalidCode as bad:
            raise FaultyTensor(f"row {first + bad.row}, column {bad.column} holds {bad.what}") from None
        self._take_scales(trits, scales, first)
        return Rows(packed, trits)

    def find_scale(self, check: Callable[[], None]) -> np.float32:
        """The scale, reading rows until one has it. A tensor of zeros without any has the scale 1."""
        for first, last in row_blocks(self.rows, self.columns, self.layout.row_multiple):
            if self.scale is not None:
                return self.scale
            check()
            self.read(first, last)
        return np.float32(1) if self.scale is None else self.scale

    def _take_scales(self, trits: Trits, scales: Scales, first: int) -> None:
        if scales.ndim == 2:
            # A block of zeros has the scale 0 in llama.cpp's own files, since it is the largest magnitude there.
            zeros = (scales.view(np.uint32) == 0) & ~trits.reshape(*scales.shape, -1).any(axis=2)
            scales = scales[~zeros]
        if scales.size == 0:
            return
        if scales.min() == scales.max():  # False for NaN
            self._take_scale(scales.flat[0])
        else:
            raise FaultyTensor(f"its scales differ within rows {first} to {first + len(trits) - 1}")

    def _take_scale(self, stored: np.float32) -> None:
        _check(stored)
        scale = stored if self._factor is None else np.float32(stored * self._factor)
        if self.scale is None:
            self.scale = scale
        elif scale != self.scale:
            raise FaultyTensor(f"its scales differ: {self.scale} and {scale}")

    def _read(self, raw: Bytes, offset: int) -> None:
        if not read_at(self.descriptor, raw, offset):
            raise FaultyTensor("the file has become shorter while it was read")


def matrices(
    descriptor: int, info: TensorInfo, layout: Layout, scale_tensor: TensorInfo | None
) -> Iterator[TernaryTensor]:
    """The matrices of a ternary tensor: itself, or those of a stack of experts, each with its own scale."""
    *stack, rows, columns = info.shape
    for i in range(*stack or (1,)):
        start = info.offset + i * layout.nbytes(rows, columns)
        scale = None if scale_tensor is None else replace(scale_tensor, shape=(1,), offset=scale_tensor.offset + 4 * i)
        yield TernaryTensor(descriptor, replace(info, shape=(rows, columns), offset=start), layout, scale)


def _check(scale: np.float32) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise FaultyTensor(f"its scale is {scale}, not finite and positive")
