"""microsoft/bitnet-b1.58-2B-4T: packed, or bfloat16 master weights (-bf16). Squared ReLU, sub-norms."""

from bitconv.architectures import BITNET_B158
from bitconv.families.family import Family

FAMILY = Family(
    name="Microsoft b1.58",
    hf_architecture="BitNetForCausalLM",
    architecture=BITNET_B158,
    native=True,
    modules={"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
)
