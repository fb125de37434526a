"""Mistral with ternary projections: Llama's tensors and graph, under which llama.cpp runs it too.

Attention to a window (sliding_window) is in no graph of Llama; a window as long as the context is none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bitconv.models.families import llama
from bitconv.models.hyperparameters import Config


def _in_llama_keys(config: Config) -> Mapping[str, Any]:
    values = config.values
    if values.get("sliding_window") is None:
        return values
    if config.integer("sliding_window") < config.integer("max_position_embeddings"):
        return values
    return {**values, "sliding_window": None}


FAMILY = replace(
    llama.FAMILY,
    name="Mistral 1.58-bit",
    hf_architecture="MistralForCausalLM",
    checkpoints="fine-tunes of Mistral without a window",
    in_llama_keys=_in_llama_keys,
    codes="",  # not those of Llama's labs
    exported=False,
)
