"""Arithmetics of the absmean rule: the same formula makes other trits in other types.

Weights of float32, float16 or bfloat16 are rounded to the type of an arithmetic; the mean of their magnitudes is added
in float32 or better and rounded to the type once, as torch.mean does; its least value, its inverse, and the product of
that with each weight are rounded to the type; the product is rounded to an integer.

The product grows with the magnitude of the weight. So an arithmetic is one number for a tensor: the least magnitude
that is no zero, here as a bit pattern of the stored type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.stored_tensor import ITEMSIZE

# BitNet b1.58: the mean is clamped before it is inverted (clamp_(min=1e-5) in every implementation of the rule).
MIN_MEAN = 1e-5

TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
INFINITY = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00}


@dataclass(frozen=True)
class Arithmetic:
    """dtype: of the weights, the mean, its inverse and the product. away: one half becomes 1, in place of 0."""

    dtype: str
    away: bool = False

    @property
    def name(self) -> str:
        return f"{TYPES[self.dtype]}{', half away from zero' if self.away else ''}"

    def inverse(self, mean: np.float32) -> np.float32:
        """What weights are multiplied by. mean: of their magnitudes, in float32. May be infinite, or 0."""
        mean = max(rounded(mean, self.dtype), rounded(np.float32(MIN_MEAN), self.dtype))
        with np.errstate(divide="ignore"):
            return rounded(np.float32(1) / mean, self.dtype)

    def threshold(self, stored: str, mean: np.float32) -> int:
        """The bit pattern of the least magnitude that is no zero, of weights stored as a type."""
        inverse = self.inverse(mean)
        if inverse == 0:
            return INFINITY[stored]
        # Infinite of a mean of nearly nothing, in float16.
        return _kernels.threshold(stored, float(min(inverse, np.finfo(np.float32).max)), self.dtype, self.away)


# What is told apart. The first is what BitNet models compute at inference in transformers.
ARITHMETICS = tuple(Arithmetic(dtype, away) for dtype in TYPES for away in (False, True))
FLOAT32 = ARITHMETICS[0]


def rounded(value: np.float32, dtype: str) -> np.float32:
    """To the nearest of the type, ties to even."""
    raw, out = np.array([value], "<f4").view(np.uint8), np.empty(4, np.uint8)
    short = out[: ITEMSIZE[dtype]]
    _kernels.convert_floats(raw, "f32", short, dtype)
    _kernels.convert_floats(short.copy(), dtype, out, "f32")
    return np.float32(out.view("<f4")[0])


def abs_sum(raw: npt.NDArray[np.uint8], dtype: str, to: str) -> float:
    """The sum of the magnitudes of floats, each rounded to a type first; not finite if one is not."""
    if to not in (dtype, "f32"):  # float32 holds every float of 16 bits
        out = np.empty(raw.size // ITEMSIZE[dtype] * ITEMSIZE[to], np.uint8)
        if _kernels.convert_floats(raw, dtype, out, to) >= 0:
            return np.inf
        raw, dtype = out, to
    return _kernels.abs_sum(raw, dtype)


def counts_from(raw: npt.NDArray[np.uint8], dtype: str, patterns: npt.NDArray[np.uint32]) -> Any:
    """How many magnitudes have each bit pattern or a larger one."""
    counts = np.empty(patterns.size, np.int64)
    _kernels.count_from(raw, dtype, patterns, counts)
    return counts
