"""Qwen3 with a norm on the input of each ternary projection: Microsoft's embedding model, and what codys12 and others
fine-tuned from Qwen3 with transformers' use_rms_norm."""

from bitconv.architectures import QWEN3
from bitconv.families.family import Family

FAMILY = Family(
    name="Qwen3 1.58-bit",
    hf_architecture="Qwen3ForCausalLM",
    architecture=QWEN3,
    native=False,
    checkpoints="fine-tunes with use_rms_norm (codys12) and a head of floats",
    weights="packed, float master (online), or ternary floats (online)",
    input_norm="rms_norm",
)
# Float weights that its own linear class ternarises (weight_quant_minmax, the absmean rule).
EMBEDDING_FAMILY = Family(
    name="BitNet embedding",
    hf_architecture="Qwen3Model",
    architecture=QWEN3,
    native=True,
    checkpoints="microsoft BitNet-embedding-0.6B",
    input_norm="norm",
    embedding=True,
)
