"""What the layouts with scales among their rows share: whole blocks, and the shape of the scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, Trits


class ScaledRows(Layout):
    """A layout of rows of whole blocks, `block` columns in `block_bytes` bytes, behind a header of `row_header` bytes.

    The scale stands in each row's header, or where that is empty, in each block.
    """

    block: int
    block_bytes: int
    row_header: int = 0

    def obstacle(self, rows: int, columns: int) -> str | None:
        if columns % self.block:
            return f"{self.name} needs columns in multiples of {self.block}, and {columns} are not"
        return None

    def scale_columns(self, columns: int) -> int:
        return columns if self.row_header else self.block

    def row_bytes(self, columns: int) -> int:
        return self.row_header + columns // self.block * self.block_bytes

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * self.row_bytes(columns)

    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        return [Region(0, self.row_bytes(columns))]

    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        rows, columns = trits.shape
        packed = np.empty(rows * self.row_bytes(columns), np.uint8)
        _kernels.pack_rows(self.name, trits, scales, packed)
        return [packed]

    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        rows = packed[0].size // self.row_bytes(columns)
        trits = np.empty((rows, columns), np.int8)
        scales = np.empty((rows, columns // self.scale_columns(columns)), np.float32)
        bad = _kernels.unpack_rows(self.name, packed[0], trits, scales)
        if bad >= 0:
            raise InvalidCode(*divmod(bad, columns))
        return trits, scales

    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        product = np.empty((x.shape[0], packed[0].size // self.row_bytes(x.shape[1])), np.int32)
        _kernels.matmul_rows(self.name, packed[0], x, product)
        return product

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        return _kernels.Operand.rows(self.name, packed[0], packed[0].size // self.row_bytes(columns), columns)
