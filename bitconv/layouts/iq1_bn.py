"""IQ1_BN: ik_llama.cpp's base-three layout, 1.625 bits a weight, a float16 scale a row."""

from __future__ import annotations

from bitconv.layouts.layout import ScaleT, float16_scale
from bitconv.layouts.scaled_rows import ScaledRows


class IQ1_BN(ScaledRows):  # noqa: N801 - the format's name
    """A row is its scale, then blocks of 64 in 13 bytes: for each 16 codes three bytes of five, and a byte of four.

    Five codes make v = c0 + 3*c1 + 9*c2 + 27*c3 + 81*c4, stored as (256*v + 242) / 243; the last byte takes the
    sixteenth code of each 16, v = c15 + 3*c31 + 9*c47 + 27*c63.
    """

    name = "iq1_bn"
    block = 64
    block_bytes = 13
    row_header = 2

    def stored_scale(self, scale: ScaleT) -> ScaleT:
        return float16_scale(scale)


LAYOUT = IQ1_BN
