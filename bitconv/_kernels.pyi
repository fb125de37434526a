"""The native kernels, for `bitconv.layouts` and the code that reads checkpoints.

Arrays are C-contiguous; results are written into `out` (and `scales`), which the caller provides. Matrices are
trits int8 [rows, cols], activations x int8 [n, cols], products int32 [n, rows], out[v, r] being the sum over k
of trit[r, k] * x[v, k]. Floats are raw little-endian bytes of dtype "f32", "f16" or "bf16".

Every unpack returns the lowest index in `out` that an invalid code stands for, or -1; with an invalid code the
contents of `out` are undefined. Another dtype or memory order, or an array that is not aligned for its type, raises
TypeError; another size, or a scale that its type cannot hold, raises ValueError. Where scales may have any size, each
one is that of size / len(scales) consecutive values. The GIL is released while a kernel runs.
"""

import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]:
    """Return the instruction sets that can be used here, the portable one first, the fastest last."""

def isa() -> str:
    """Return the instruction set in use: the fastest, or the one that the environment's BITCONV_ISA names."""

def use_isa(name: str) -> None:
    """Use this instruction set from now on, in all threads."""

def abs_sum(x: NDArray[np.uint8], dtype: str) -> float:
    """Return the sum of |x| in float64: the same bits on every CPU, not finite if an element is not.

    There are 64 partial sums, number l adding the elements i with i % 64 = l in ascending order; then
    number l takes l + 32, for l < 32, then l + 16, and so on down to 1.
    """

def ternarize(x: NDArray[np.uint8], dtype: str, inverse_scale: float, out: NDArray[np.int8]) -> None:
    """Write clip(round_half_even(float32(x) * inverse_scale), -1, 1), the product in float32; 0 for NaN."""

def ternary_scales(x: NDArray[np.uint8], dtype: str, scales: NDArray[np.float32]) -> int:
    """Write the largest magnitude of the floats of each scale.

    Returns the lowest index of a float that is neither zero nor plus or minus that finite magnitude, or -1; with one,
    the contents of `scales` are undefined.
    """

def unpack_hf(packed: NDArray[np.uint8], quarter: int, out: NDArray[np.int8]) -> int:
    """Write bits 2q+1:2q of each byte minus 1, q = quarter: one of the four rows in a row of bytes."""

def convert_floats(x: NDArray[np.uint8], dtype: str, out: NDArray[np.uint8], out_dtype: str) -> int:
    """Convert, rounding to nearest even.

    Returns the lowest index of an element that is not finite, before or after, or -1.
    """

def dequantize(trits: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[np.uint8], out_dtype: str) -> None:
    """Write trits * scales, rounded to nearest even; +0 for trit 0."""

def float_matmul(w: NDArray[np.uint8], dtype: str, x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def matmul(trits: NDArray[np.int8], x: NDArray[np.int8], out: NDArray[np.int32]) -> None:
    """Multiply an unpacked matrix, by code that shares nothing with the packed layouts' products."""

# The layouts that store row after row, by name: those of kernels/layouts/list.hpp. scales: [rows, cols / block] or
# [rows], as the layout has them, or an empty array.

def row_layouts() -> list[str]:
    """Return the names."""

def pack_rows(layout: str, trits: NDArray[np.int8], scales: NDArray[np.float32], out: NDArray[np.uint8]) -> None: ...
def unpack_rows(layout: str, packed: NDArray[np.uint8], out: NDArray[np.int8], scales: NDArray[np.float32]) -> int: ...
def matmul_rows(layout: str, packed: NDArray[np.uint8], x: NDArray[np.int8], out: NDArray[np.int32]) -> None: ...

# ggml's blocks of dense weights, q8_0, q6_k and q4_k, of floats f32, f16 or bf16. quantize returns the index of a
# value that is not finite or too large, dequantize_blocks the first in a block whose scale is not finite, or -1.

def quantize(x: NDArray[np.uint8], dtype: str, out: NDArray[np.uint8], out_dtype: str) -> int: ...
def dequantize_blocks(packed: NDArray[np.uint8], dtype: str, out: NDArray[np.float32]) -> int: ...

# TL1: trits [rows, cols] with rows % bm = 0; packed has rows * cols / 4 bytes.

def tl1_pack(trits: NDArray[np.int8], bm: int, bk: int, bmm: int, out: NDArray[np.uint8]) -> None: ...
def tl1_unpack(packed: NDArray[np.uint8], bm: int, bk: int, bmm: int, out: NDArray[np.int8]) -> int: ...
def tl1_matmul(
    packed: NDArray[np.uint8], bm: int, bk: int, bmm: int, x: NDArray[np.int8], out: NDArray[np.int32]
) -> None: ...

# TL2 in its three parts, with t = cols - cols % bk: values has rows * t / 6 bytes (the absolute values of
# triples), signs rows * t / 24, pairs rows * (cols - t) / 4. Each is contiguous a block of bm rows.

def tl2_pack(
    trits: NDArray[np.int8],
    bm: int,
    bk: int,
    values: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    pairs: NDArray[np.uint8],
) -> None: ...
def tl2_unpack(
    values: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    pairs: NDArray[np.uint8],
    bm: int,
    bk: int,
    out: NDArray[np.int8],
) -> int: ...
def tl2_matmul(
    values: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    pairs: NDArray[np.uint8],
    bm: int,
    bk: int,
    x: NDArray[np.int8],
    out: NDArray[np.int32],
) -> None: ...
