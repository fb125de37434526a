"""The values of a stored tensor of floats, in a type of dense tensors."""

from __future__ import annotations

import numpy as np

from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import ITEMSIZE, StoredTensor
from bitconv.layouts import QUANTIZED
from bitconv.layouts.dense import decode, encode
from bitconv.layouts.layout import Bytes
from bitconv.system.errors import Code, option


def dense_values(checkpoint: Checkpoint, stored: StoredTensor, type_name: str, first: int, last: int) -> Bytes:
    """Values first to last (exclusive), whole blocks, of a stored float tensor as bytes of a dense type.

    BitconvError where a value is NaN or infinite, or the type cannot hold it.
    """
    itemsize = ITEMSIZE[stored.dtype]
    raw = np.empty((last - first) * itemsize, np.uint8)
    checkpoint.read(stored, first * itemsize, raw)
    data, bad = encode(raw, stored.dtype, type_name)
    if bad >= 0:
        number = decode(raw[bad * itemsize : (bad + 1) * itemsize], stored.dtype)[0][0]
        where = list(map(int, np.unravel_index(first + bad, stored.shape)))
        if np.isfinite(number):
            others = f"{option('embed_type', 'f32')} or {option('embed_type', 'bf16')}"
            blocks = " in its block's scale" if type_name in QUANTIZED else ""
            raise stored.error(
                f"element {where} is {number:g}, which {type_name} cannot hold{blocks}",
                code=Code.LAYOUT,
                way_out=f"pass {others}",
            )
        raise stored.error(f"element {where} is {number}; a weight must be finite", code=Code.TENSOR_VALUE)
    return data
