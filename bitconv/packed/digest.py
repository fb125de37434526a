"""What tells a model by its trits and scales, whatever the layout: two digests, defined in docs/verification.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bitconv.layouts.i2_s import BLOCK, I2S
from bitconv.layouts.layout import NO_SCALES, Layout, Scales
from bitconv.packed.ternary_tensor import Rows

_I2_S = I2S()


class TensorDigest(NamedTuple):
    """What is hashed of a tensor: its name and shape, and the SHA-256 of its trits and of its scales."""

    head: bytes
    trits: bytes
    scales: bytes


class TensorHash:
    """Takes the rows of a ternary tensor in order, those of stacked matrices one matrix after the other."""

    def __init__(self, name: str, shape: tuple[int, ...], layout: Layout) -> None:
        self._head = f"{name} {'x'.join(map(str, shape))}\n".encode()
        self._is_packed = type(layout) is I2S and shape[-1] % BLOCK == 0
        self._trits = hashlib.sha256()
        self._scales = hashlib.sha256()
        self._holds_any = False

    def update(self, rows: Rows) -> None:
        trits = rows.trits
        self._holds_any = self._holds_any or bool(trits.any())
        if rows.scales is not None:
            # A scale of nothing but zeros may be anything.
            used = trits.reshape(*rows.scales.shape, -1).any(axis=2)
            self._add_scales(np.where(used, rows.scales, np.float32(0)))
        if self._is_packed:
            (packed,) = rows.packed
        else:
            missing = -trits.shape[1] % BLOCK
            if missing:
                trits = np.pad(trits, ((0, 0), (0, missing)))
            (packed,) = _I2_S.pack_rows(np.ascontiguousarray(trits), NO_SCALES)
        self._trits.update(packed.data)

    def end_matrix(self, scale: np.float32 | None) -> None:
        """scale: that of all rows since the last end, where they have one."""
        if scale is not None:
            self._add_scales(np.array([scale if self._holds_any else 0], np.float32))
        self._holds_any = False

    def _add_scales(self, scales: Scales) -> None:
        self._scales.update(scales.astype("<f4").tobytes())

    def result(self) -> TensorDigest:
        return TensorDigest(self._head, self._trits.digest(), self._scales.digest())


def model_digests(tensors: Iterable[TensorDigest]) -> tuple[str, str]:
    """(of the trits, of trits and scales) of a model, in hexadecimal."""
    trits, both = hashlib.sha256(), hashlib.sha256()
    for tensor in sorted(tensors):
        trits.update(tensor.head + tensor.trits)
        both.update(tensor.head + tensor.trits + tensor.scales)
    return trits.hexdigest(), both.hexdigest()
