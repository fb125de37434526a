"""MiniCPM (openbmb BitCPM4-0.5B and -8B): a Llama whose embedding, layers and logits are multiplied by numbers.

Its 1B and 3B are stock Llama. Sources: scale_emb, scale_depth and dim_model_base in modeling_minicpm.py; llama.cpp's
conversion/minicpm.py and its minicpm graph (2026). Its class is not in transformers; no config.json of BitCPM itself
was at hand.
"""

from collections.abc import Mapping
from typing import Any

from bitconv.models.architectures import MINICPM
from bitconv.models.families.family import Family
from bitconv.models.hyperparameters import Config


def _in_llama_keys(config: Config) -> Mapping[str, Any]:
    layers, hidden = config.integer("num_hidden_layers"), config.integer("hidden_size")
    return {
        "rope_theta": 10000.0,  # configuration_minicpm.py
        **config.values,
        "embedding_multiplier": config.number("scale_emb"),
        "residual_multiplier": config.number("scale_depth") / layers**0.5,
        "logits_scaling": hidden / config.integer("dim_model_base"),
    }


FAMILY = Family(
    name="MiniCPM (BitCPM)",
    hf_architecture="MiniCPMForCausalLM",
    architecture=MINICPM,
    native=False,
    checkpoints="openbmb BitCPM4-0.5B, BitCPM-CANN-0.5B and -8B",
    in_llama_keys=_in_llama_keys,
    reference_class="LlamaForCausalLM",
)
