"""config.json of a packed checkpoint: the way back of hyperparameters.from_config and of quantization.storage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv.gguf import Metadata
from bitconv.models.families import Family
from bitconv.models.hyperparameters import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, Hyperparameters, Llama3Rope
from bitconv.models.quantization import ScaleConvention
from bitconv.system.errors import BitconvError, Code, plain

# 1bitLLM's own class is a Llama to transformers, which lacks it.
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "BitNetForCausalLM": "bitnet",
    "BitnetForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "HunYuanDenseV1ForCausalLM": "hunyuan_v1_dense",
}
_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
# What does which to weight_scale in transformers' integrations/bitnet.py (5.23): BitLinear and AutoBitLinear.
_LINEAR_CLASSES = {
    ScaleConvention.DIVIDE: {"linear_class": "bitlinear"},
    ScaleConvention.MULTIPLY: {"linear_class": "autobitlinear", "quantization_mode": "offline"},
}


def config_json(
    family: Family,
    sizes: Hyperparameters,
    scaling: dict[str, Any] | None,
    *,
    tied: bool,
    dtype: str,
    convention: ScaleConvention | None,
) -> dict[str, Any]:
    """Everything but the token ids.

    scaling: what rope_scaling gives. dtype: "bf16", "f16" or "f32", what transformers is to run the model in.
    convention: None where ternary weights are floats.
    """
    architecture = family.architecture
    quantization: dict[str, Any] = {}
    if convention is not None:
        quantization = {
            "quant_method": "bitnet",
            **_LINEAR_CLASSES[convention],
            "modules_to_not_convert": ["lm_head"],
            **({"use_rms_norm": True, "rms_norm_eps": _decimal(sizes.rms_eps)} if architecture.input_norms else {}),
        }
    experts = {"num_local_experts": sizes.experts, "num_experts_per_tok": sizes.experts_used, "sliding_window": None}
    return {
        "architectures": [family.hf_architecture],
        "model_type": _MODEL_TYPES[family.hf_architecture],
        "attention_bias": False,
        **({"head_dim": sizes.head_dim} if architecture.free_head_dim else {}),
        "hidden_act": architecture.activation,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "max_position_embeddings": sizes.context,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        **(experts if sizes.experts else {}),
        **({"quantization_config": quantization} if quantization else {}),
        "rms_norm_eps": _decimal(sizes.rms_eps),
        "rope_scaling": scaling,
        **_beside_rope_scaling(scaling),
        "rope_theta": _decimal(sizes.rope_base),
        "tie_word_embeddings": tied,
        "torch_dtype": _DTYPES[dtype],
        "vocab_size": sizes.vocab,
    }


def rope_scaling(
    metadata: Metadata,
    architecture: str,
    sizes: Hyperparameters,
    factors: Mapping[str, npt.NDArray[np.float32]],
    kinds: Collection[str],
    file: object,
) -> dict[str, Any] | None:
    """rope_scaling of config.json, None where there is none.

    factors: the tensors of rope factors that are there. kinds: of scaling that `convert` takes of such a model.

    BitconvError for what `convert` does not write either.
    """
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    factor = metadata.get(f"{architecture}.rope.scaling.factor")
    for name, values in factors.items():
        if not np.isfinite(values).all() or (values <= 0).any():
            raise BitconvError("its factors are not all finite and positive", code=Code.FAULTY, file=file, tensor=name)
    one_list = factors.get(ROPE_FREQS)
    if one_list is not None and (one_list == 1).all():
        one_list = None
    unscaled = sizes.rope_magnitude == 1 and one_list is None
    if kind == "linear" and isinstance(factor, np.floating) and factor > 0 and unscaled:
        return {"rope_type": "linear", "factor": _decimal(factor)}
    if kind == "yarn" and "yarn" in kinds and sizes.rope_yarn is not None and unscaled:
        original = sizes.rope_yarn.original_context
        stated = _decimal(sizes.rope_yarn.factor)
        return {"rope_type": "yarn", "factor": stated, "original_max_position_embeddings": original}
    if kind == "longrope" and ROPE_FREQS not in factors and sizes.rope_linear_factor is None and sizes.rope_long:
        return _longrope(sizes, factors[ROPE_SHORT], factors[ROPE_LONG], sizes.rope_long.original_context)
    if kind != "none":
        raise BitconvError(
            f"{architecture}.rope.scaling.type {plain(kind)} cannot be exported beside what else the file says of rope "
            "(linear, yarn and longrope alone can)",
            code=Code.GGUF_UNSUPPORTED,
            file=file,
        )
    if unscaled:
        return None
    if one_list is None:
        one_list = np.ones(sizes.head_dim // 2, np.float32)
    rope = _llama3_rope(one_list, sizes) if sizes.rope_magnitude == 1 else None
    if rope is None:
        return _longrope(sizes, one_list, one_list, sizes.context)
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_context,
    }


def _beside_rope_scaling(scaling: dict[str, Any] | None) -> dict[str, Any]:
    """What of longrope transformers 4 looks for beside rope_scaling, and transformers 5 there first."""
    if scaling is None or scaling["rope_type"] != "longrope":
        return {}
    return {"original_max_position_embeddings": scaling["original_max_position_embeddings"]}


def _longrope(
    sizes: Hyperparameters, short: npt.NDArray[np.float32], long: npt.NDArray[np.float32], original: int
) -> dict[str, Any]:
    """Factors as they are. With attention_factor stated, transformers makes nothing of `factor`, and asks for it."""
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": _decimal(sizes.rope_magnitude),
        "short_factor": [_decimal(value) for value in short],
        "long_factor": [_decimal(value) for value in long],
        "original_max_position_embeddings": original,
    }


def _llama3_rope(factors: npt.NDArray[np.float32], sizes: Hyperparameters) -> Llama3Rope | None:
    """The scaling that makes these factors; None where none does.

    Between the two ends the factors are those of a blend that is linear in the frequency, which tells the other
    numbers up to one common multiple of low, high and original_context: low is 1, as in every published model.
    """
    factor = _decimal(factors[-1])
    frequencies = sizes.rope_base ** -(np.arange(0, sizes.head_dim, 2) / sizes.head_dim) / (2 * np.pi)
    between = (factors > 1) & (factors < factors[-1])
    if factor <= 1 or not np.isfinite(factors).all() or between.sum() < 2:
        return None
    blend = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(frequencies[between], blend, 1)
    if slope <= 0 or offset >= 0:
        return None
    rope = Llama3Rope(factor, 1.0, round(1 - 1 / offset, 4), round(-slope / offset))
    # llama.cpp's own converter computes them in float32.
    return rope if np.allclose(rope.factors(sizes.rope_base, sizes.head_dim), factors, rtol=1e-5, atol=0) else None


def _decimal(value: float | np.floating[Any]) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
