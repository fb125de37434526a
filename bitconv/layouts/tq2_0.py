"""TQ2_0: llama.cpp's two-bit layout, 2.0625 bits a weight, a float16 scale a block."""

from __future__ import annotations

from bitconv.layouts.layout import ScaleT, float16_scale
from bitconv.layouts.scaled_rows import ScaledRows


class TQ2_0(ScaledRows):  # noqa: N801 - the format's name
    """Blocks of 256 in 66 bytes: two halves of 128 codes in 32 bytes, the scale; 0 for a block of zeros.

    Byte j of a half holds its codes j, 32+j, 64+j and 96+j, low bits first.
    """

    name = "tq2_0"
    block = 256
    block_bytes = 66
    scale_beside = True

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        return float16_scale(scale)


LAYOUT = TQ2_0
