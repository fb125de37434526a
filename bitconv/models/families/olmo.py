"""NousResearch/OLMo-Bitnet-1B: OLMo's blocks, every linear layer of which starts with an RMSNorm without weights.

Where the norms of the blocks are RMSNorms without weights too (layer_norm_type "rms"), what they give has unit RMS
already, and normalising it again changes nothing: then the model is the bitnet graph with norms of ones, those on the
inputs of attn_out and ff_out being its sub-norms. A LayerNorm ("default", which stands for a missing key) subtracts
the mean, as no norm of the graph does. q, k and v are one layer, up and gate another: one mean for all of its rows.
Sources: allenai/OLMo's olmo/config.py and model.py (OLMoSequentialBlock, SwiGLU, RotaryEmbedding), and BitLinear158 in
the model's own model.py. Its config.json was not at hand: keys and defaults are OLMo's.
"""

from collections.abc import Mapping
from typing import Any

from bitconv.checkpoint.refusals import OLMO_NORMS
from bitconv.models.architectures import BITNET
from bitconv.models.families.family import Family, Reference
from bitconv.models.hyperparameters import Config
from bitconv.system.errors import BitconvError, Code

_MODULES = {
    "token_embd": "wte",
    "output": "ff_out",
    "attn_q": "att_proj",
    "attn_k": "att_proj",
    "attn_v": "att_proj",
    "attn_output": "attn_out",
    "ffn_up": "ff_proj",
    "ffn_gate": "ff_proj",
    "ffn_down": "ff_out",
}
# What the graph computes, by key; the first is OLMo's default.
_NEEDED = {
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "block_type": ("sequential",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "scale_logits": (False,),
    "activation_type": ("swiglu",),
}


def _in_llama_keys(config: Config) -> Mapping[str, Any]:
    values = config.values
    norms = values.get("layer_norm_type", "default")
    if norms != "rms" or values.get("layer_norm_with_affine"):
        said = f"layer_norm_type {norms!r:.40}"
        raise OLMO_NORMS.error(config.file, said if norms != "rms" else f"{said} with layer_norm_with_affine")
    for key, needed in _NEEDED.items():
        if values.get(key, needed[0]) not in needed:
            cause = f"{key} is {values[key]!r:.80}, and the bitnet graph is that of {needed[0]!r}"
            raise BitconvError(cause, code=Code.UNSUPPORTED, file=config.file)
    heads = config.integer("n_heads")
    kv_heads = config.integer("n_kv_heads", 1 if values.get("multi_query_attention") else heads)
    hidden = config.integer("d_model")
    both = config.integer("mlp_hidden_size", config.integer("mlp_ratio", 4) * hidden)  # of up and gate
    return {
        **values,
        "hidden_size": hidden,
        "intermediate_size": both // 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": config.integer("n_layers"),
        "max_position_embeddings": config.integer("max_sequence_length"),
        "vocab_size": config.integer("embedding_size", config.integer("vocab_size")),
        "rms_norm_eps": config.number("layer_norm_eps", 1e-5),
        "rope_theta": config.number("rope_theta", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": values.get("weight_tying", True),
    }


class _Olmo(Family):
    def source_name(self, slot_name: str) -> str:
        *block, slot, _ = slot_name.split(".")
        module = f"blocks.{block[1]}.{_MODULES[slot]}" if block else _MODULES[slot]
        return f"model.transformer.{module}.weight"


FAMILY = _Olmo(
    name="OLMo-Bitnet",
    hf_architecture="OLMoModelForCausalLM",
    architecture=BITNET,
    native=True,
    checkpoints="NousResearch OLMo-Bitnet-1B, where layer_norm_type is rms",
    in_llama_keys=_in_llama_keys,
    fused=("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_gate"),
    unit_norms=True,
    codes="absmean",
    reference=Reference.WRITTEN_OUT,
)
