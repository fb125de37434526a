"""1bitLLM/bitnet_b1_58-*: the reproduction of the b1.58 paper. Float32 master weights, SiLU, sub-norms."""

from bitconv.models.architectures import BITNET
from bitconv.models.families.family import Family, Reference

FAMILY = Family(
    name="1bitLLM b1.58",
    hf_architecture="BitnetForCausalLM",
    architecture=BITNET,
    native=True,
    checkpoints="1bitLLM bitnet_b1_58-large, -xl, -3B",
    modules={"attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"},
    # Its own class ternarises at run time (utils_quant.py), in float32.
    codes="absmean",
    # transformers lacks its class, and loads such a checkpoint as a plain Llama without the sub-norms.
    reference=Reference.WRITTEN_OUT,
)
