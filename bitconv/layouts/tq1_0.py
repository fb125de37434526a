"""TQ1_0: llama.cpp's base-three layout, 1.6875 bits a weight, a float16 scale a block."""

from __future__ import annotations

from bitconv.layouts.layout import ScaleT, float16_scale
from bitconv.layouts.scaled_rows import ScaledRows


class TQ1_0(ScaledRows):  # noqa: N801 - the format's name
    """Blocks of 256 in 54 bytes: 48 bytes of five codes each, 4 bytes of four, the scale; 0 for a block of zeros.

    Five codes make v = c0*81 + c1*27 + c2*9 + c3*3 + c4, stored as (v * 256 + 242) / 243. Byte j (0 to 31) takes the
    codes j, 32+j, 64+j, 96+j and 128+j; byte 32+j (j 0 to 15) the codes 160+j, 176+j, 192+j, 208+j and 224+j; byte
    48+j (j 0 to 3) the codes 240+j, 244+j, 248+j and 252+j, with 0 for a fifth.
    """

    name = "tq1_0"
    block = 256
    block_bytes = 54
    scale_beside = True

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        return float16_scale(scale)


LAYOUT = TQ1_0
