"""Maple (deepgrove maple-preview): a mixture of ternary experts with a scale a row; layers with a window, and without.

Those without are not rotated. Sources: llama.cpp's conversion/maple.py and src/models/maple.cpp (August
2026), which state what modeling_maple.py does; that itself, and config.json, were not at hand.
"""

from collections.abc import Mapping
from typing import Any

from bitconv.models.architectures import MAPLE
from bitconv.models.families.family import Family, Reference
from bitconv.models.hyperparameters import Config
from bitconv.system.errors import BitconvError, Code

# What the graph computes, by key, and what stands for a missing one.
_NEEDED = {"num_shared_experts": (0, 0), "norm_topk_prob": (True, True), "nope_on_global_attention": (True, False)}


def _in_llama_keys(config: Config) -> Mapping[str, Any]:
    for key, (needed, missing) in _NEEDED.items():
        if config.values.get(key, missing) != needed:
            cause = (
                f"{key} is {config.values.get(key, missing)!r:.80}, and llama.cpp's maple graph is that of {needed!r}"
            )
            raise BitconvError(cause, code=Code.UNSUPPORTED, file=config.file)
    return {
        **config.values,
        "sliding_window": config.integer("sliding_window"),
        "num_local_experts": config.integer("num_experts"),
        "intermediate_size": config.integer("moe_intermediate_size"),
        "swiglu_limit": 7.0,  # what conversion/maple.py writes of every model
    }


FAMILY = Family(
    name="Maple",
    hf_architecture="MapleForCausalLM",
    architecture=MAPLE,
    native=False,
    checkpoints="deepgrove maple-preview (20B-A1B)",
    modules={
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_exps": "mlp.experts.{}.gate_proj",
        "ffn_up_exps": "mlp.experts.{}.up_proj",
        "ffn_down_exps": "mlp.experts.{}.down_proj",
    },
    in_llama_keys=_in_llama_keys,
    experts=True,
    weights="ternary floats",
    reference=Reference.WRITTEN_OUT,
)
