"""The end of a tensor that has one scale: bitnet.cpp's I2_S, TL1 and TL2."""

from __future__ import annotations

import numpy as np

TAIL = 32


def encode(scale: np.float32) -> bytes:
    """The float32 scale and 28 bytes that nobody reads: zeros here, junk in files of others."""
    return scale.tobytes().ljust(TAIL, b"\0")


def decode(tail: bytes) -> np.float32:
    return np.float32(np.frombuffer(tail, "<f4", 1)[0])
