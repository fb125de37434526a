"""microsoft/bitnet-b1.58-2B-4T: packed, or bfloat16 master weights (-bf16). Squared ReLU, sub-norms."""

from dataclasses import replace

from bitconv.models.architectures import BITNET, BITNET_B158
from bitconv.models.families.family import Family

FAMILY = Family(
    name="Microsoft b1.58",
    hf_architecture="BitNetForCausalLM",
    architecture=BITNET_B158,
    native=True,
    checkpoints="microsoft bitnet-b1.58-2B-4T, -bf16",
    # The release and float32 disagree on 1.53 % of the codes, on ties (arXiv 2610.07853).
    codes="not absmean in float32 (2B-4T: 1.53 % of the codes, ties)",
    modules={"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    exported=True,
)
# transformers' BitNetForCausalLM applies any hidden_act: with SiLU it computes what 1bitLLM's class does, which
# transformers lacks. An exported 1bitLLM model is this.
SILU_FAMILY = replace(
    FAMILY,
    name="1bitLLM b1.58 for transformers",
    architecture=BITNET,
    hidden_act="silu",
    codes="absmean",
    checkpoints="what bitconv export makes of 1bitLLM files",
)
