"""The published checkpoints, each with the keys of its own config.json; sizes are scaled down where nothing hangs on
them. What is built has their tensor names, dtypes and proportions, and converts and verifies.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import make_checkpoint
from tokenizer_support import byte_level, byte_level_json, write_json

pytestmark = pytest.mark.slow

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
HF1BITLLM = {
    **LLAMA,
    "bos_token_id": 1272,
    "eos_token_id": 1273,
    "is_bitnet_config": True,
    "max_position_embeddings": 8192,
    "quantization_config": {"modules_to_not_convert": None, "quant_method": "bitnet"},
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_theta": 500000.0,
    "transformers_version": "4.44.0.dev0",
}
PACKED = {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"}
FALCON3 = {
    **LLAMA,
    "activation": "swiglu",
    "eos_token_id": 11,
    "head_dim": 256,
    "is_bitnet_config": True,
    "max_position_embeddings": 8192,
    "parallel_attn": False,
    "quantization_config": PACKED,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000042,
    "transformers_version": "4.47.0.dev0",
}
FALCON_E = {
    **LLAMA,
    "bos_token_id": 1,
    "eos_token_id": 11,
    "head_dim": 128,
    "is_bitnet_config": True,
    "max_position_embeddings": 32768,
    "quantization_config": PACKED,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000,
}
ONLINE = {"linear_class": "autobitlinear", "modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"}
ONLINE["quantization_mode"] = "online"

# The pre-tokenizers of the Falcons, by the name that bitnet.cpp's own converter gives them.
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
FALCON_STEPS = {
    "falcon3": [PUNCTUATION, byte_level(use_regex=True), {"type": "Digits", "individual_digits": True}],
    "falcon_e": [
        PUNCTUATION,
        byte_level(use_regex=True),
        {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Isolated", "invert": False},
    ],
}

# name -> (config, tokenizer, heads, kv_heads, hidden, ffn). head_dim is as published, the rest in proportion.
LLAMA_CLASS: dict[str, tuple[dict[str, Any], str | None, int, int, int, int]] = {
    "HF1BitLLM/Llama3-8B-1.58-100B-tokens": (HF1BITLLM, None, 32, 8, 1024, 3584),
    "HF1BitLLM/Llama3-8B-1.58-Linear-10B-tokens": (HF1BITLLM, None, 32, 8, 1024, 3584),
    "HF1BitLLM/Llama3-8B-1.58-Sigmoid-k100-10B-tokens": (HF1BITLLM, None, 32, 8, 1024, 3584),
    "tiiuae/Falcon3-1B-Instruct-1.58bit": (FALCON3, "falcon3", 8, 4, 2048, 2048),
    "tiiuae/Falcon3-3B-Base-1.58bit": (FALCON3 | {"bos_token_id": 11}, "falcon3", 3, 1, 768, 2304),
    "tiiuae/Falcon3-7B-Instruct-1.58bit": (FALCON3 | {"bos_token_id": 11}, "falcon3", 3, 1, 768, 5760),
    "tiiuae/Falcon3-10B-Base-1.58bit": (
        FALCON3 | {"bos_token_id": 1, "max_position_embeddings": 32768},
        "falcon3",
        3,
        1,
        768,
        5760,
    ),
    "tiiuae/Falcon-E-1B-Base": (FALCON_E, "falcon_e", 4, 1, 512, 2304),
    "tiiuae/Falcon-E-3B-Instruct": (FALCON_E, "falcon_e", 4, 1, 512, 3328),
    "tiiuae/Falcon-E-3B-Base, online": (FALCON_E | {"quantization_config": ONLINE}, "falcon_e", 4, 1, 512, 3328),
}


@pytest.mark.parametrize("name", LLAMA_CLASS)
def test_llama_class_checkpoints_convert_and_verify(tmp_path: Path, name: str) -> None:
    config, tokenizer, heads, kv_heads, hidden, ffn = LLAMA_CLASS[name]
    head_dim = config.get("head_dim", hidden // heads)
    packed = config["quantization_config"] is not ONLINE
    vocab = 1281 if tokenizer is None else 263  # no multiple of anything, and more than the tokenizer has
    model = make_checkpoint(
        tmp_path / "model",
        "llama",
        packed=packed,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=1,
        shards=2,
        vocab=vocab,
    )
    model.rewrite_config(rope_theta=None, rms_norm_eps=None, head_dim=None)
    model.rewrite_config(**config)
    if tokenizer is not None:
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (model.path / file).unlink()
        structure = byte_level_json(added=[{"content": "<|endoftext|>"}])
        structure["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": FALCON_STEPS[tokenizer]}
        write_json(model.path, tokenizer=structure)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right

    file = File(tmp_path / "out.gguf")
    assert file.tensors.keys() == model.trits.keys() | model.dense.keys()
    for tensor, trits in model.trits.items():
        expected = ROW_LAYOUTS["i2_s"].pack(trits, 0).tobytes() + model.scales[tensor].tobytes()
        assert file.bytes(tensor, len(expected)) == expected, tensor
    assert file.metadata["llama.rope.freq_base"] == np.float32(config["rope_theta"])
    assert file.metadata["llama.rope.dimension_count"] == head_dim
    assert file.metadata.get("llama.attention.key_length", hidden // heads) == head_dim
    assert file.metadata["llama.vocab_size"] == len(file.metadata["tokenizer.ggml.tokens"]) == vocab
    assert file.metadata["tokenizer.ggml.pre"] == ("llama-bpe" if tokenizer is None else "falcon")
    assert file.metadata["tokenizer.ggml.eos_token_id"] == config["eos_token_id"]


# prism-ml/Ternary-Bonsai-*-unpacked: nothing says BitNet, and the context is extended fourfold by YaRN.
BONSAI = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
}


@pytest.mark.parametrize(("context", "tied"), [(8192, True), (16384, False)], ids=["1.7B", "8B"])
def test_ternary_bonsai_converts_exactly_and_verifies(tmp_path: Path, context: int, tied: bool) -> None:
    sizes = {"hidden": 512, "ffn": 1536, "heads": 4, "kv_heads": 1, "head_dim": 128}
    stored = {"dtype": "f16", "marked": False, "ternary_floats": True, "group": 128}
    model = make_checkpoint(tmp_path / "model", "plain_qwen3", tied=tied, **sizes, **stored)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": context}
    model.rewrite_config(**BONSAI, max_position_embeddings=4 * context, rope_scaling=scaling)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    assert (result.architecture, result.runner, result.exact_scales) == ("qwen3", "llama.cpp", True)
    assert {tensor.group for tensor in result.tensors if tensor.name in model.trits} == {128}
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    file = File(tmp_path / "out.gguf")
    assert ("output.weight" in file.tensors) != tied
    assert file.metadata["qwen3.context_length"] == 4 * context
    assert file.metadata["qwen3.rope.scaling.original_context_length"] == context


ONEBITLLM = {
    "architectures": ["BitnetForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "input_bits": 8,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "pad_token_id": 1024,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "transformers_version": "4.39.0",
    "use_cache": True,
    "vocab_size": 1026,
    "weight_bits": 1,
}
# hidden_size, intermediate_size, heads.
SIZES = {"large": (1536, 4096, 16), "xl": (2048, 5460, 32), "3B": (3200, 8640, 32)}
ALL = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
NONE: set[str] = set()
DOWN = {"ffn_down"}
FFN = {"ffn_gate", "ffn_up", "ffn_down"}
TYPES = ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "q2_0", "iq2_bn", "iq1_bn", "f16")
# What has to fall back, by type: 5460 and 8640 columns are no multiples of 128, 3200 none of 256, 5460 none of 64, and
# tl1 and tl2 need rows in multiples of 32, which 5460 is not.
FALLBACKS = {
    "large": (NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE),
    "xl": (DOWN, FFN, FFN, DOWN, DOWN, DOWN, DOWN, DOWN, NONE),
    "3B": (DOWN, NONE, NONE, ALL, ALL, NONE, NONE, NONE, NONE),
}


def onebitllm(path: Path, size: str) -> Path:
    """bitnet_b1_58-`size` of one layer in its true shapes. The weights are a hole in the file: all zero."""
    hidden, ffn, heads = SIZES[size]
    model = make_checkpoint(path, "1bitllm", layers=1)
    model.rewrite_config(
        **ONEBITLLM,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
    )
    write_json(path, added_tokens={"</line>": 1025, "<pad>": 1024})
    shapes = {f"model.layers.0.self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{p}_proj": (ffn, hidden) for p in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj": (hidden, ffn), "model.embed_tokens": (1026, hidden)}
    shapes |= {"model.norm": (hidden,), "model.layers.0.mlp.ffn_layernorm": (ffn,)}
    for norm in ("input_layernorm", "post_attention_layernorm", "self_attn.inner_attn_ln"):
        shapes[f"model.layers.0.{norm}"] = (hidden,)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("type_name", TYPES)
def test_1bitllm_checkpoints_in_all_layouts_that_their_shapes_allow(tmp_path: Path, size: str, type_name: str) -> None:
    expected = FALLBACKS[size][TYPES.index(type_name)]
    model = onebitllm(tmp_path / "model", size)
    result = bitconv.convert(model, tmp_path / "out.gguf", type=type_name, fallback="f16", dry_run=True)
    assert result.architecture == "bitnet"
    tensors = {tensor.name.split(".")[2]: tensor for tensor in result.tensors if tensor.name.startswith("blk.")}
    assert {name for name in ALL if tensors[name].fallback is not None} == expected
    assert {name: tensors[name].type for name in ALL} == {n: "f16" if n in expected else type_name for n in ALL}
    if expected:
        with pytest.raises(bitconv.BitconvError, match="fallback='f16'"):
            bitconv.convert(model, tmp_path / "out.gguf", type=type_name, dry_run=True)


@pytest.mark.parametrize(("size", "type_name"), [("xl", "i2_s"), ("3B", "q2_0")])
def test_1bitllm_checkpoints_with_odd_columns_verify(tmp_path: Path, size: str, type_name: str) -> None:
    model = onebitllm(tmp_path / "model", size)
    rng = np.random.default_rng(0)
    block = rng.standard_normal(1 << 16).astype(np.float16).tobytes()
    with (model / "model.safetensors").open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        end = (model / "model.safetensors").stat().st_size
        for at in range(8 + length, end, len(block)):
            file.seek(at)
            file.write(block[: end - at])
    bitconv.convert(model, tmp_path / "out.gguf", type=type_name, fallback="f16")
    assert bitconv.verify(tmp_path / "out.gguf", against=model).right
