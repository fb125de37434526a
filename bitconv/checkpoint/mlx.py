"""Weights that MLX has quantized to codes of two bits, read as the floats that they stand for.

mlx_lm.convert -q stores three tensors for a matrix: `.weight`, 16 codes in each uint32, low bits first, and for each
group of columns in `.scales` and `.biases` what a code is multiplied by and what is added (mlx.core.quantize, mode
affine). Where the bias is the scale's negative, 0, 1 and 2 stand for -scale, 0 and +scale, which are found as in any
floats. MLX's own quantizer keeps one sign of ternary floats and halves the other: those are none. Source: what
mlx.core.quantize and dequantize of MLX 0.32.4 give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.stored_tensor import FLOAT_DTYPES, ITEMSIZE, StoredTensor
from bitconv.system.errors import Code

Read = Callable[[StoredTensor, int, "npt.NDArray[np.uint8]"], None]
_CODES = 16  # in a uint32


@dataclass(frozen=True)
class QuantizedTensor(StoredTensor):
    """As if it were stored in floats of the scales' type, row-major."""

    parts: tuple[StoredTensor, ...] = ()

    @property
    def file_nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def without_two_bits(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without the keys that say so, where MLX has quantized the model to two bits; else as it is."""
    stated = config.get("quantization")
    if not isinstance(stated, Mapping) or stated.get("bits") != 2 or stated.get("mode", "affine") != "affine":
        return config
    return {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}


def dequantized(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with one of floats in place of each three. BitconvError where they do not fit together."""
    result = dict(tensors)
    for name, codes in tensors.items():
        if codes.dtype != "u32" or not name.endswith(".weight"):
            continue
        stem = name.removesuffix("weight")
        scales, biases = (result.pop(f"{stem}{part}", None) for part in ("scales", "biases"))
        if scales is None or biases is None:
            cause = f"two-bit codes without {stem}{'scales' if scales is None else 'biases'}"
            raise codes.error(cause, code=Code.INCOMPLETE)
        matching = scales.dtype in FLOAT_DTYPES and (scales.dtype, scales.shape) == (biases.dtype, biases.shape)
        rows, words = codes.shape if len(codes.shape) == 2 else (0, 0)
        groups = scales.shape[-1] if len(scales.shape) == 2 and scales.shape[0] == rows else 0
        if not matching or not groups or words * _CODES % groups:
            raise scales.error(
                f"{scales.dtype} {scales.shape} does not fit codes of shape {codes.shape} and {biases.name}, "
                f"{biases.dtype} {biases.shape}",
                code=Code.TENSOR_FORM,
            )
        shape = (rows, words * _CODES)
        result[name] = QuantizedTensor(name, codes.file, scales.dtype, shape, codes.offset, (), (codes, scales, biases))
    return result


def read(tensor: QuantizedTensor, start: int, out: npt.NDArray[np.uint8], read_stored: Read) -> None:
    """Fill `out` with the floats' bytes from byte `start` on."""
    codes, scales, biases = tensor.parts
    stride = tensor.shape[1] * ITEMSIZE[tensor.dtype]
    first, last = start // stride, -(-(start + out.size) // stride)
    words = np.empty((last - first, codes.shape[1]), "<u4")
    _fill(codes, first, words, read_stored)
    shifts = np.arange(0, 32, 2, dtype=np.uint32)
    levels = (words[..., None] >> shifts & 3).astype(np.float32).reshape(last - first, scales.shape[1], -1)
    scale, bias = (_floats(part, first, last, read_stored)[..., None] for part in (scales, biases))
    with np.errstate(invalid="ignore", over="ignore"):  # what becomes of it is refused below
        values = np.ascontiguousarray(levels * scale + bias).reshape(-1)
    raw = np.empty(values.size * ITEMSIZE[tensor.dtype], np.uint8)
    bad = _kernels.convert_floats(values.view(np.uint8), "f32", raw, tensor.dtype)
    if bad >= 0:
        row = first + bad // tensor.shape[1]
        raise scales.error(f"row {row} makes a weight of {values[bad]}", code=Code.TENSOR_VALUE)
    out[:] = raw[start - first * stride :][: out.size]


def _floats(part: StoredTensor, first: int, last: int, read_stored: Read) -> npt.NDArray[np.float32]:
    """Rows of scales or biases in float32; infinite ones stay so."""
    raw = np.empty((last - first, part.shape[1] * ITEMSIZE[part.dtype]), np.uint8)
    _fill(part, first, raw, read_stored)
    if part.dtype == "bf16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view(f"<f{ITEMSIZE[part.dtype]}").astype(np.float32)


def _fill(part: StoredTensor, first: int, rows: npt.NDArray[Any], read_stored: Read) -> None:
    """Read rows from `first` on into an array of them."""
    read_stored(part, first * rows.shape[1] * rows.itemsize, rows.view(np.uint8).reshape(-1))
