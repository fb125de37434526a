"""A ternary tensor of an open GGUF file, read as trits a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import TensorInfo
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Scales, Trits
from bitconv.layouts.scales import Scale
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, plain
from bitconv.system.jobs import KeepGoing
from bitconv.system.rawio import read_at


class FaultyTensor(BitconvError):  # noqa: N818 - it is a BitconvError
    """What is wrong with one tensor's data; the message names neither file nor tensor."""

    def __init__(self, cause: str, *, code: Code = Code.FAULTY, **where: Any) -> None:
        super().__init__(cause, code=code, **where)


@dataclass(frozen=True)
class Rows:
    """A block of rows: packed as the file holds them, a part for each region, and unpacked.

    scales: float32 (rows, columns / group) of a tensor that has several, 0 only where all trits are; else None.
    """

    packed: list[Bytes]
    trits: Trits
    scales: Scales | None


class TernaryTensor:
    """One packed tensor. `scale`: what multiplies its trits, float32, once it is known.

    A scale in the tail or in a `.scale` tensor is known at once; one among the rows when the first row that has one
    has been read. Every scale must be finite and positive and all of them the same, or the tensor is faulty.

    group: the columns of a row that share a scale, where the file says that there are several; then `scale` stays
    None, and those of a group must be the same.
    """

    def __init__(
        self,
        descriptor: int,
        info: TensorInfo,
        layout: Layout,
        scale_tensor: TensorInfo | None,
        group: int | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.info = info
        self.layout = layout
        self.group = group
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
        return Rows(packed, trits, self._take_scales(trits, scales, first))

    def values(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """The same rows as floats, float32 (rows, columns): each trit times its scale."""
        rows = self.read(first, last)
        one = np.float32(1) if self.scale is None else self.scale  # none is known yet where all trits so far are 0
        return dequantized(rows.trits, one if rows.scales is None else rows.scales)

    def find_scale(self, keep_going: KeepGoing) -> Scale:
        """The scale, reading rows until one has it. A tensor of zeros without any has the scale 1.

        Where there are several, all of them, reading all rows.
        """
        several = []
        for first, last in row_blocks(self.rows, self.columns, self.layout.row_multiple):
            if self.scale is not None:
                return self.scale
            keep_going()
            scales = self.read(first, last).scales
            if scales is not None:
                several.append(scales)
        if several:
            return np.concatenate(several)
        return np.float32(1) if self.scale is None else self.scale

    def _take_scales(self, trits: Trits, scales: Scales, first: int) -> Scales | None:
        if scales.size == 0:
            return None
        # A block of zeros has the scale 0 in llama.cpp's own files, since it is the largest magnitude there.
        zeros = (scales.view(np.uint32) == 0) & ~trits.reshape(*scales.shape, -1).any(axis=2)
        # One tensor, or as many groups as it has, of stored scales that must be the same; NaN is not.
        shape = (1, 1, -1) if self.group is None else (len(trits), self.columns // self.group, -1)
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
        largest: Scales = np.where(zeros, np.float32(-np.inf), scales).max(axis=2)
        if not ((scales == largest[..., None]) | zeros).all():
            raise FaultyTensor(f"its scales differ within rows {first} to {first + len(trits) - 1}")
        of_zeros = zeros.all(axis=2)
        for scale in np.unique(largest[~of_zeros]):
            if self.group is None:
                self._take_scale(scale)
            else:
                _check(scale)
        if self.group is None:
            return None
        scales = np.where(of_zeros, np.float32(0), largest)
        return scales if self._factor is None else scales * self._factor

    def _take_scale(self, stored: np.float32) -> None:
        _check(stored)
        scale = stored if self._factor is None else np.float32(stored * self._factor)
        if self.scale is None:
            self.scale = scale
        elif scale != self.scale:
            raise FaultyTensor(f"its scales differ: {plain(self.scale)} and {plain(scale)}")

    def _read(self, raw: Bytes, offset: int) -> None:
        if not read_at(self.descriptor, raw, offset):
            raise FaultyTensor("the file has become shorter while it was read")


def dequantized(trits: Trits, scale: Scale) -> npt.NDArray[np.float32]:
    """Each trit of rows times its scale, float32 (rows, columns)."""
    several = isinstance(scale, np.ndarray)
    scales = np.ascontiguousarray(scale) if several else np.full((len(trits), 1), scale)
    values = np.empty(trits.shape, np.float32)
    _kernels.dequantize(trits.reshape(-1), scales, values.reshape(-1).view(np.uint8), "f32")
    return values


def matrices(
    descriptor: int, info: TensorInfo, layout: Layout, scale_tensor: TensorInfo | None, group: int | None = None
) -> Iterator[TernaryTensor]:
    """The matrices of a ternary tensor: itself, or those of a stack of experts, each with its own scale."""
    for i, matrix in enumerate(stacked(info, layout)):
        scale = None if scale_tensor is None else replace(scale_tensor, shape=(1,), offset=scale_tensor.offset + 4 * i)
        yield TernaryTensor(descriptor, matrix, layout, scale, group)


def stacked(info: TensorInfo, layout: Layout) -> list[TensorInfo]:
    """The same matrices as the file has them: shapes and offsets."""
    *stack, rows, columns = info.shape
    nbytes = layout.nbytes(rows, columns)
    return [replace(info, shape=(rows, columns), offset=info.offset + i * nbytes) for i in range(*stack or (1,))]


def _check(scale: np.float32) -> None:
    if not (np.isfinite(scale) and scale > 0):
        raise FaultyTensor(f"its scale is {plain(scale)}, not finite and positive")
