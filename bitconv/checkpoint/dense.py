"""The values of a tensor of floats, in another type of floats."""

from __future__ import annotations

import numpy as np

from bitconv import _kernels
from bitconv.checkpoint.directory import ITEMSIZE, Checkpoint, StoredTensor
from bitconv.layouts.layout import Bytes
from bitconv.system.errors import Code, option


def dense_values(checkpoint: Checkpoint, stored: StoredTensor, type_name: str, first: int, last: int) -> Bytes:
    """Values first to last (exclusive) of a stored float tensor as bytes of a float type, rounded to nearest even.

    BitconvError where a value is NaN or infinite, or becomes infinite.
    """
    itemsize = ITEMSIZE[stored.dtype]
    raw = np.empty((last - first) * itemsize, np.uint8)
    checkpoint.read(stored, first * itemsize, raw)
    data = np.empty((last - first) * ITEMSIZE[type_name], np.uint8)
    bad = _kernels.convert_floats(raw, stored.dtype, data, type_name)
    if bad >= 0:
        value = np.empty(4, np.uint8)
        _kernels.convert_floats(raw[bad * itemsize : (bad + 1) * itemsize], stored.dtype, value, "f32")
        number = value.view("<f4")[0]
        where = list(map(int, np.unravel_index(first + bad, stored.shape)))
        if np.isfinite(number):
            raise stored.error(
                f"element {where} is {number:g}, which {type_name} cannot hold",
                code=Code.LAYOUT,
                way_out=f"pass {option('embed_type', 'f32')} or {option('embed_type', 'bf16')}",
            )
        raise stored.error(f"element {where} is {number}; a weight must be finite", code=Code.TENSOR_VALUE)
    return data
