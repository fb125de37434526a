"""Q2_0: llama.cpp's two-bit layout of small blocks, 2.25 bits a weight, a float16 scale a block."""

from __future__ import annotations

from bitconv.layouts.layout import ScaleT, float16_scale
from bitconv.layouts.scaled_rows import ScaledRows


class Q2_0(ScaledRows):  # noqa: N801 - the format's name
    """Blocks of 64 in 18 bytes: the scale, then 16 bytes, byte j holding the codes 4j to 4j+3, low bits first.

    Code 3 would be +2: valid for llama.cpp, but no trit.
    """

    name = "q2_0"
    block = 64
    block_bytes = 18
    scale_beside = True

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        return float16_scale(scale)


LAYOUT = Q2_0
