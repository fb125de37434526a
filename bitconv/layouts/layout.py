"""What a format of ternary tensors is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.layouts.tiles import Tile

Trits = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]
# Of rows in a layout whose tail holds the scale.
NO_SCALES: Scales = np.empty(0, np.float32)
# The kernels' layout of two bits for the most shapes, and its block of columns.
_TWO_BIT, _TWO_BIT_BLOCK = "i2_s_arm64", 64
# One scale, or an array of them of any shape.
ScaleT = TypeVar("ScaleT", np.float32, Scales)


class Region(NamedTuple):
    """A run of bytes in which the rows of a tensor follow each other, `row_bytes` bytes each, from `offset` on."""

    offset: int
    row_bytes: int


class InvalidCode(ValueError):  # noqa: N818 - the term of the formats
    """Packed bytes hold what stands for no trit: at `row` (of the block given) and `column`."""

    def __init__(self, row: int, column: int, what: str = "an invalid code") -> None:
        super().__init__(f"{what} at row {row}, column {column}")
        self.row = row
        self.column = column
        self.what = what


class Layout(ABC):
    """How a matrix of M rows and K columns of trits and its scales are written.

    Blocks of whole rows are written alone, so that a tensor can be streamed: every multiple of row_multiple rows
    takes row_bytes bytes a row of each region. What follows the regions is the tail. tile: of TL1 and TL2.

    exact_scale: a scale is stored in float32. scale_beside: where a runner multiplies by a `.scale` tensor beside the
    weight, the scales in here can be 1. max_batch: the most tokens at a time that a runner computes right, where that
    is not any number. byte_order: one of I2_S_ORDERS, where it is not the published one.
    """

    name: str
    row_multiple: int = 1
    tile: Tile | None = None
    exact_scale: bool = False
    scale_beside: bool = False
    max_batch: int | None = None
    byte_order: str | None = None

    @abstractmethod
    def obstacle(self, rows: int, columns: int) -> str | None:
        """Why this layout cannot take a matrix of this shape; None where it can."""

    def in_byte_order(self, order: str | None) -> Layout:
        """This layout as a file has it that is in one of I2_S_ORDERS; only I2_S has others than the published one."""
        return self

    def scale_columns(self, columns: int) -> int | None:
        """The columns of a row that share a stored scale; None where the tail holds one for the whole tensor."""
        return None

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        """Scales after the rounding that storing it costs: what a runner will multiply by."""
        return scale

    @abstractmethod
    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of the whole tensor, tail included."""

    @abstractmethod
    def regions(self, rows: int, columns: int) -> Sequence[Region]:
        """Where the rows lie in the tensor."""

    @abstractmethod
    def pack_rows(self, trits: Trits, scales: Scales) -> Sequence[Bytes]:
        """The bytes, for each region, of int8 (rows, columns) trits and scales as unpack_rows returns them."""

    def tail(self, scale: np.float32) -> bytes:
        """What stands at the end of the tensor, the same for every shape."""
        return b""

    @abstractmethod
    def unpack_rows(self, packed: Sequence[Bytes], columns: int) -> tuple[Trits, Scales]:
        """The inverse: int8 (rows, columns) and the float32 scales that stand among the rows, from each region.

        scales: of shape (rows, columns / scale_columns), 0 allowed where all trits are; empty where the tail holds the
        tensor's scale. InvalidCode where a code is no trit.
        """

    @abstractmethod
    def matmul_rows(self, packed: Sequence[Bytes], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
        """The product over the packed bytes: x (n, columns) int8 times the rows' trits, (n, rows) int32, exact."""

    def operand(self, packed: Sequence[Bytes], columns: int) -> _kernels.Operand:
        """The same rows for a forward pass: as they are, or where no kernel multiplies them so, packed in two bits."""
        return trits_operand(self.unpack_rows(packed, columns)[0])

    def tail_scale(self, tail: bytes) -> np.float32 | None:
        """The scale that the tail holds; None in a layout whose scales stand among the rows."""
        return None


def float16_scale(scale: ScaleT) -> ScaleT:
    """Scales rounded to the nearest float16: 0 or infinite where float16 cannot hold them."""
    with np.errstate(over="ignore", under="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def trits_operand(trits: Trits) -> _kernels.Operand:
    """Rows of trits, int8 (rows, columns), packed where a kernel takes so many columns."""
    if trits.shape[1] % _TWO_BIT_BLOCK:
        return _kernels.Operand.trits(trits)
    packed = np.empty(trits.size // 4, np.uint8)
    _kernels.pack_rows(_TWO_BIT, trits, NO_SCALES, packed)
    return _kernels.Operand.rows(_TWO_BIT, packed, *trits.shape)
