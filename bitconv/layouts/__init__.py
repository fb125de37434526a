"""The layouts of ternary tensors, one file each, by name.

This is the registry, and it imports none of them, since help texts need the names only. bitconv.layouts.registry makes
layouts of names.
"""

# A line for each file of this folder that holds a packed layout, as LAYOUT.
PACKED = (
    "i2_s",
    "tl1",
    "tl2",
    "tq1_0",
    "tq2_0",
    "q2_0",
    "iq2_bn",
    "iq1_bn",
)
FLOATS = ("f32", "f16", "bf16")
# What the ternary tensors of a file can be asked to be.
TERNARY_TYPES = (*PACKED, *FLOATS)
# What one of them can be besides, where its shape or its scales ask for it.
EIGHT_BIT = "q8_0"
# What dense tensors can be: floats, and ggml's quantized blocks of them.
QUANTIZED = ("q8_0", "q6_k", "q4_k")
DENSE_TYPES = ("f16", "f32", "bf16", *QUANTIZED)
# The byte orders of I2_S: that of all published files, and those of other builds of bitnet.cpp.
I2_S_ORDERS = ("published", "arm64", "row4")
