"""Llama with ternary projections (HF1BitLLM/Llama3-8B-1.58-*, Falcon3-*-1.58bit): packed, SiLU, no sub-norms."""

from bitconv.models.architectures import LLAMA
from bitconv.models.families.family import Family

FAMILY = Family(
    name="Llama 1.58-bit",
    hf_architecture="LlamaForCausalLM",
    architecture=LLAMA,
    native=False,
    checkpoints="HF1BitLLM Llama3-8B-1.58, tiiuae Falcon3-1.58bit and Falcon-E",
    # The exporter makes all four releases byte for byte (arXiv 2610.07853).
    codes="Falcon-E: absmean-bf16 (onebitllms 0.0.4)",
    exported=True,
)
