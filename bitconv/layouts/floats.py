"""The unpacked ternary model in floats: every weight is -scale, 0 or +scale, the reference of all comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import type_by_name
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, Trits


class Floats(Layout):
    """trit * scale in f32, f16 or bf16, rounded to nearest even."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.itemsize = type_by_name(name).block_bytes

    def refusal(self, rows: int, columns: int) -> str | None:
        return None

    def stored_scale(self, scale: np.float32) -> np.float32:
        values = np.empty(self.itemsize, np.uint8)
        _kernels.convert_floats(np.atleast_1d(scale).view(np.uint8), "f32", values, self.name)
        rounded = np.empty(4, np.uint8)
        _kernels.convert_floats(values, self.name, rounded, "f32")
        return np.float32(rounded.view("<f4")[0])

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * columns * self.itemsize

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, columns * self.itemsize)]

    def pack_rows(self, trits: Trits, scale: np.float32) -> Sequence[Bytes]:
        values = np.empty(trits.size * self.itemsize, np.uint8)
        _kernels.dequantize(trits.reshape(-1), float(scale), values, self.name)
        return [values]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        values = self._values(packed[0], columns)
        scales = np.abs(values).max(axis=1, keepdims=True)
        # A zero must be +0, as it is written: what is not is damage.
        bad = np.flatnonzero((np.abs(values) != scales) & (values.view(np.uint32) != 0) | ~np.isfinite(values))
        if bad.size:
            row, column = divmod(int(bad[0]), columns)
            what = f"{values[row, column]}, which is not -scale, 0 or +scale: these are no ternary weights"
            raise InvalidCode(row, column, what)
        return np.sign(values).astype(np.int8), scales

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        values = self._values(packed[0], x.shape[1])
        scale = max(np.float64(np.abs(values).max()), np.float64(np.finfo(np.float32).tiny))
        # Exact: a float32 times a sum of this length needs less than float64's 53 bits.
        return (x.astype(np.float64) @ values.T.astype(np.float64) / scale).astype(np.int32)

    def _values(self, raw: Bytes, columns: int) -> npt.NDArray[np.float32]:
        values = np.empty(raw.size // self.itemsize, "<f4")
        _kernels.convert_floats(raw, self.name, values.view(np.uint8), "f32")
        return values.reshape(-1, columns)
