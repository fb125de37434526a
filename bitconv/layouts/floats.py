"""The unpacked ternary model in floats: every weight is -scale, 0 or +scale, the reference of all comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import type_by_name
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, ScaleT, Trits


class Floats(Layout):
    """trit * scale in f32, f16 or bf16, rounded to nearest even.

    group: the columns of a row that share a scale, which the values alone do not tell; None for all.
    """

    def __init__(self, name: str, group: int | None = None) -> None:
        self.name = name
        self.group = group
        self.exact_scale = name == "f32"
        self.itemsize = type_by_name(name).block_bytes

    def obstacle(self, rows: int, columns: int) -> str | None:
        return None

    def scale_columns(self, columns: int) -> int:
        return columns if self.group is None else self.group

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        values = np.zeros(scale.size * self.itemsize, np.uint8)  # what follows one that becomes infinite stays 0
        _kernels.convert_floats(scale.reshape(-1).view(np.uint8), "f32", values, self.name)
        rounded: Any = np.zeros(scale.shape, np.float32)
        _kernels.convert_floats(values, self.name, rounded.reshape(-1).view(np.uint8), "f32")
        result: ScaleT = rounded[()]
        return result

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns * self.itemsize

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns * self.itemsize)]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        values = np.empty(trits.size * self.itemsize, np.uint8)
        _kernels.dequantize(trits.reshape(-1), scales, values, self.name)
        return [values]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        values = self._values(packed[0], columns)
        groups, scales = self._groups(values)
        # A zero must be +0, as it is written: what is not is damage.
        different = (np.abs(groups) != scales[..., None]) & (groups.view(np.uint32) != 0)
        bad = np.flatnonzero(different | ~np.isfinite(groups))
        if bad.size:
            row, column = divmod(int(bad[0]), columns)
            what = f"{values[row, column]}, which is not -scale, 0 or +scale: these are no ternary weights"
            raise InvalidCode(row, column, what)
        return np.sign(values).astype(np.int8), scales

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        groups, scales = self._groups(self._values(packed[0], x.shape[1]))
        units = groups / np.where(scales == 0, np.float32(1), scales)[..., None]
        # By no BLAS, whose threads would work beside those that were asked for.
        trits = units.reshape(-1, x.shape[1]).astype(np.int32)
        product: npt.NDArray[np.int32] = np.einsum("nk,rk->nr", x.astype(np.int32), trits)
        return product

    def _groups(self, values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Scales]:
        """Values (rows, columns) as (rows, groups, columns of a group), and the largest magnitudes (rows, groups)."""
        rows, columns = values.shape
        group = self.scale_columns(columns)
        groups = values.reshape(rows, columns // group, group)
        return groups, np.abs(groups).max(axis=2)

    def _values(self, raw: Bytes, columns: int) -> npt.NDArray[np.float32]:
        values = np.empty(raw.size // self.itemsize, "<f4")
        _kernels.convert_floats(raw, self.name, values.view(np.uint8), "f32")
        return values.reshape(-1, columns)
