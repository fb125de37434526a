"""Qwen3: plain, as PrismML's Ternary-Bonsai; or with a norm on the input of each ternary projection, as Microsoft's
embedding model and what codys12 and others fine-tuned with transformers' use_rms_norm."""

from dataclasses import replace

from bitconv.models.architectures import QWEN3, QWEN3_INPUT_NORMS
from bitconv.models.families.family import Family

FAMILY = Family(
    name="Qwen3 1.58-bit",
    hf_architecture="Qwen3ForCausalLM",
    architecture=QWEN3,
    native=False,
    checkpoints="prism-ml Ternary-Bonsai-1.7B, -4B, -8B (unpacked)",
    exported=True,
)
INPUT_NORMS_FAMILY = replace(
    FAMILY,
    name="Qwen3 1.58-bit with input norms",
    architecture=QWEN3_INPUT_NORMS,
    checkpoints="fine-tunes with use_rms_norm (codys12) and a head of floats",
    weights="packed, float master (online), or ternary floats (online)",
    tensor="_proj.rms_norm.weight",
    input_norm="rms_norm",
)
# Float weights that its own linear class ternarises (weight_quant_minmax, the absmean rule).
EMBEDDING_FAMILY = Family(
    name="BitNet embedding",
    hf_architecture="Qwen3Model",
    architecture=QWEN3_INPUT_NORMS,
    native=True,
    checkpoints="microsoft BitNet-embedding-0.6B",
    codes="absmean",
    tensor="_proj.norm.weight",
    input_norm="norm",
    embedding=True,
)
