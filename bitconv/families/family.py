"""What a model family is: how its checkpoints name the tensors of a GGUF architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitconv.architectures import Architecture

# GGUF slot within a block -> module within a layer of transformers' Llama, which BitNet models extend.
_LLAMA_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_LEVEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


@dataclass(frozen=True)
class Family:
    """name: as publishers call it. hf_architecture: the entry of config.json's "architectures".

    native: the model class ternarises float weights itself, without a quantization_config.
    checkpoints: those that are published, in words.
    modules: slots whose modules are not named as in Llama; those of a block without the layer. Projections of one
    module are fused: its rows are those of its slots, in the order of the file. layers: what precedes a layer's number.
    interleaved_rows: the rows of q and k are in the order of interleaved rotation.
    """

    name: str
    hf_architecture: str
    architecture: Architecture
    native: bool
    checkpoints: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    interleaved_rows: bool = False

    def source_name(self, slot_name: str) -> str:
        """The checkpoint's name of a slot's tensor."""
        modules = _TOP_LEVEL | _LLAMA_MODULES | dict(self.modules)
        *block, slot, _ = slot_name.split(".")
        module = f"{self.layers}.{block[1]}.{modules[slot]}" if block else modules[slot]
        return f"{module}.weight"
