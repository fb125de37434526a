"""microsoft/bitnet-b1.58-2B-4T as bitnet.cpp's GPU pipeline keeps it (its folder gpu/): one .pt file, fused matrices.

convert_safetensors.py makes model_state.pt of master weights, convert_checkpoint.py from that model_state_fp16.pt of
weights that are ternary already and model_state_int2.pt of packed ones. q, k and v are fused row after row, gate and
up likewise, each with the scale that it has of its own; the rows of q and k are in the interleaved order, as that
pipeline rotates them; output.weight is the embedding once more. (The pipeline's own CUDA kernel spreads the three
scales of wqkv evenly over its rows, which is wrong with fewer key-value heads; they belong to q, k and v.)
"""

from collections.abc import Collection, Mapping
from typing import Any

from bitconv.models.architectures import BITNET_B158
from bitconv.models.families.family import Family, Reference
from bitconv.models.quantization import ScaleConvention, Storage

_MODULES = {
    "token_embd": "tok_embeddings",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wqkv",
    "attn_k": "attention.wqkv",
    "attn_v": "attention.wqkv",
    "attn_sub_norm": "attention.attn_sub_norm",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w13",
    "ffn_up": "feed_forward.w13",
    "ffn_sub_norm": "feed_forward.ffn_sub_norm",
    "ffn_down": "feed_forward.w2",
    "output_norm": "norm",
    "output": "output",
}


class _GpuFamily(Family):
    def source_name(self, slot_name: str) -> str:
        *block, slot, _ = slot_name.split(".")
        module = f"layers.{block[1]}.{_MODULES[slot]}" if block else _MODULES[slot]
        return f"{module}.weight"

    def storage(
        self, config: Mapping[str, Any], file: object, names: Collection[str]
    ) -> tuple[Storage, ScaleConvention]:
        # What config.json says is of the checkpoint that this one was made of.
        packed = any(name.endswith(".weight_scale") for name in names)
        return Storage.INT2 if packed else Storage.MASTER, ScaleConvention.MULTIPLY


FAMILY = _GpuFamily(
    name="Microsoft b1.58, GPU pipeline",
    hf_architecture="BitNetForCausalLM",
    architecture=BITNET_B158,
    native=True,
    checkpoints="what bitnet.cpp's gpu/ makes of microsoft bitnet-b1.58-2B-4T-bf16",
    interleaved_rows=True,
    reference=Reference.WRITTEN_OUT,
    tensor="tok_embeddings.weight",
    weights="packed (model_state_int2.pt), ternary floats (model_state_fp16.pt), or float master (model_state.pt)",
    codes="absmean-bf16 (gpu/convert_checkpoint.py)",
)
