"""The types of dense weights: floats, and ggml's quantized blocks of them, in the bytes that llama-quantize makes.

See docs/types/ for what a block holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import type_by_name
from bitconv.layouts import FLOATS
from bitconv.layouts.layout import Bytes


def dense_obstacle(name: str, columns: int) -> str | None:
    """Why a tensor of so many columns cannot have this type; None where it can."""
    block = type_by_name(name).block
    return f"{name} needs columns in multiples of {block}, and {columns} are not" if columns % block else None


def encode(raw: Bytes, dtype: str, name: str) -> tuple[Bytes, int]:
    """Floats of a type as bytes of a dense type, rounded to nearest even or quantized.

    Also the index of a value that is not finite, or that the type cannot hold, or -1.
    """
    data = np.empty(type_by_name(name).nbytes((raw.size // type_by_name(dtype).block_bytes,)), np.uint8)
    if name in FLOATS:
        return data, _kernels.convert_floats(raw, dtype, data, name)
    return data, _kernels.quantize(raw, dtype, data, name)


def decode(raw: Bytes, name: str) -> tuple[npt.NDArray[np.float32], int]:
    """The values of bytes of a dense type, and the index of the first that is not finite, or -1."""
    kind = type_by_name(name)
    values = np.empty(raw.size // kind.block_bytes * kind.block, np.float32)
    if name in FLOATS:
        return values, _kernels.convert_floats(raw, name, values.view(np.uint8), "f32")
    return values, _kernels.dequantize_blocks(raw, name, values)
