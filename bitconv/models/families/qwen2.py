"""Qwen2 and Qwen2.5 with ternary projections, whose q, k and v have a bias: floats that are added to the scaled output.

Sources: transformers' Qwen2Attention and its BitLinear; llama.cpp's qwen2 graph (2026).
"""

from bitconv.models.architectures import QWEN2
from bitconv.models.families.family import Family

FAMILY = Family(
    name="Qwen2 1.58-bit",
    hf_architecture="Qwen2ForCausalLM",
    architecture=QWEN2,
    native=False,
    checkpoints="fine-tunes of Qwen2 and Qwen2.5",
    exported=True,
)
