"""IQ2_BN: ik_llama.cpp's two-bit layout, 2 bits a weight, a float32 scale a row."""

from bitconv.layouts.scaled_rows import ScaledRows


class IQ2_BN(ScaledRows):  # noqa: N801 - the format's name
    """A row is its scale, then blocks of 64 in 16 bytes: byte j holds codes j, 16+j, 32+j and 48+j, low bits first."""

    name = "iq2_bn"
    block = 64
    block_bytes = 16
    row_header = 4
    exact_scale = True


LAYOUT = IQ2_BN
