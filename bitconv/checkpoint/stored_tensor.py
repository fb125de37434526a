"""A tensor as a checkpoint stores it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from bitconv.system.errors import BitconvError, Code

# safetensors dtype -> (our name, bytes); the float names are those of the kernels.
DTYPES = {
    "F64": ("f64", 8),
    "F32": ("f32", 4),
    "F16": ("f16", 2),
    "BF16": ("bf16", 2),
    "I64": ("i64", 8),
    "I32": ("i32", 4),
    "I16": ("i16", 2),
    "I8": ("i8", 1),
    "U32": ("u32", 4),
    "U8": ("u8", 1),
    "BOOL": ("bool", 1),
}
ITEMSIZE = dict(DTYPES.values())
FLOAT_DTYPES = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint file: `offset` is in bytes from the start of the file, row-major, little endian.

    row_order: the rows as they are to be read, where that is not in their own order.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    row_order: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def file_nbytes(self) -> int:
        """What it takes in the checkpoint's files."""
        return self.nbytes

    def error(self, cause: str, *, code: Code, way_out: str | None = None) -> BitconvError:
        return BitconvError(cause, code=code, file=self.file, tensor=self.name, way_out=way_out)
