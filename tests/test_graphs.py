"""Families whose graph is a Llama's or Qwen3's but for biases, multipliers or the place of a norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.checkpoint.directory import Checkpoint
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file, save_file

import real_runners
from gguf_file import File
from synthetic import Synthetic, make_checkpoint
from test_verify import Rebuilt

SIZES: dict[str, Any] = {"hidden": 512, "ffn": 768, "heads": 4, "kv_heads": 2, "head_dim": 128}
MODEL_TYPES = {"qwen2": "qwen2", "minicpm": "minicpm", "hunyuan": "hunyuan_v1_dense"}
GRAPHS = {"qwen2": "qwen2", "minicpm": "minicpm", "hunyuan": "hunyuan-dense"}
ALPHA = {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0}
POSITIONS = [40, 150, 250]
TERNARY = {"ternary_floats": True, "marked": False, "dtype": "f32"}


def made(path: Path, family: str, **options: Any) -> Synthetic:
    model = make_checkpoint(path, family, **SIZES | options)
    model.rewrite_config(model_type=MODEL_TYPES[family])
    if family == "hunyuan":
        model.rewrite_config(rope_scaling=ALPHA)
    return model


def in_pytorch(model: Synthetic, tokens: np.ndarray) -> np.ndarray:
    """The log probabilities of the next tokens, (n, vocabulary)."""
    torch = pytest.importorskip("torch")
    from bitconv.inference.torch_reference import load_logits

    with Checkpoint(model.path) as checkpoint:
        logits = load_logits(checkpoint)(tokens.astype(np.int64))
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()


def tensor_bytes(file: Path, name: str) -> bytes:
    """Of a float32 tensor."""
    read = File(file)
    return read.bytes(name, 4 * int(np.prod(read.tensors[name].ne)))


def divergence(expected: np.ndarray, predicted: np.ndarray) -> float:
    return abs(float((np.exp(expected) * (expected - predicted)).sum(axis=1).mean()))


@pytest.mark.parametrize("family", GRAPHS)
@pytest.mark.parametrize(
    "stored", [{}, {"packed": False}, {"convention": "multiply"}, TERNARY, TERNARY | {"group": 128, "dtype": "f16"}]
)
def test_every_form_converts_and_verifies(family: str, stored: dict[str, Any], tmp_path: Path) -> None:
    model = made(tmp_path / "model", family, **stored)
    if "convention" in stored:
        quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
        model.rewrite_config(quantization_config=quantization)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    assert (result.architecture, result.runner) == (GRAPHS[family], "llama.cpp")
    verdict = bitconv.verify(tmp_path / "out.gguf", against=model.path)
    assert verdict.right and verdict.warnings == ()
    assert bitconv.verify(tmp_path / "out.gguf").right
    bitconv.repack(tmp_path / "out.gguf", tmp_path / "f32.gguf", type="f32", runner="llama.cpp")
    assert bitconv.verify(tmp_path / "f32.gguf").right
    if family == "minicpm":  # which transformers has no class for
        with pytest.raises(BitconvError, match="architecture minicpm cannot be exported"):
            bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
        return
    exported = bitconv.export(tmp_path / "f32.gguf", tmp_path / "exported")
    assert exported.scale_convention is None or "group" not in stored
    again = tmp_path / "again.gguf"
    bitconv.convert(tmp_path / "exported", again, type="f32", runner="llama.cpp", embed_type="f16")
    for name in {*model.trits, *(n for n in model.dense if n.endswith(".bias"))}:
        assert tensor_bytes(again, name) == tensor_bytes(tmp_path / "f32.gguf", name)


@pytest.mark.parametrize("family", GRAPHS)
def test_llama_cpp_ignores_scales_beside_the_feed_forward_network_so_none_stand_there(
    family: str, tmp_path: Path
) -> None:
    model = made(tmp_path / "model", family)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    beside = {name.split(".")[2] for name in File(tmp_path / "out.gguf").tensors if name.endswith(".scale")}
    assert beside == {"attn_q", "attn_k", "attn_v", "attn_output"}
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.tensors.append(("blk.0.ffn_up.scale", (1,), 0, np.float32(2).tobytes()))
    faults = [t for t in bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).tensors if t.faults]
    assert "blk.0.ffn_up.scale" in {tensor.name for tensor in faults}


@pytest.mark.torch
@pytest.mark.parametrize("family", GRAPHS)
@pytest.mark.parametrize("stored", [{}, {"convention": "multiply"}, TERNARY])
def test_compare_agrees_and_finds_another_model(family: str, stored: dict[str, Any], tmp_path: Path) -> None:
    model = made(tmp_path / "model", family, **stored)
    if "convention" in stored:
        quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
        model.rewrite_config(quantization_config=quantization)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", embed_type="f32")
    found = bitconv.compare(tmp_path / "out.gguf", model.path).disagreements
    # transformers 5 splits digits as Qwen2 does, by the model_type, whatever this tokenizer.json says.
    assert [text for text in found if not (family == "qwen2" and "tokenized differently" in text)] == []
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    if family == "minicpm":
        rebuilt.metadata["minicpm.residual_scale"] = np.float32(0.5)
    elif family == "hunyuan":
        rebuilt.metadata["hunyuan-dense.rope.freq_base"] = np.float32(10000)
    else:
        rebuilt.metadata["qwen2.rope.freq_base"] = np.float32(10000)
    assert bitconv.compare(rebuilt.write(tmp_path / "bad.gguf"), model.path).disagreements
    assert not bitconv.verify(tmp_path / "bad.gguf", against=model.path).right


@pytest.mark.torch
@pytest.mark.runners
@pytest.mark.parametrize("family", GRAPHS)
@pytest.mark.parametrize(
    ("type_name", "options"),
    [("f32", {"runner": "llama.cpp"}), ("tq2_0", {}), ("q2_0", {}), ("tq1_0", {"scale_in_blocks": True})],
)
def test_llama_cpp_computes_what_pytorch_does(
    family: str, type_name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    model = made(tmp_path / "model", family, **TERNARY)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", **options)
    tokens, predicted = real_runners.llama_cpp(tmp_path / "out.gguf", POSITIONS)
    expected = in_pytorch(model, tokens[:251])[POSITIONS]
    # llama.cpp rounds activations to 8 bits where weights are packed.
    assert divergence(expected, predicted) < (1e-4 if type_name == "f32" else 5e-3)


@pytest.mark.torch
@pytest.mark.runners
@pytest.mark.parametrize("type_name", ["f32", "iq2_bn", "iq1_bn"])
def test_ik_llama_cpp_computes_qwen2(type_name: str, tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    model = made(tmp_path / "model", "qwen2", **TERNARY)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", runner="ik_llama.cpp")
    tokens, losses = real_runners.ik_llama_cpp(tmp_path / "out.gguf")
    window = tokens[: real_runners.WINDOW]
    expected = -in_pytorch(model, window)[np.arange(len(window) - 1), window[1:]]
    assert np.abs(losses[0] - expected).mean() < (1e-2 if type_name == "f32" else 0.1)


@pytest.mark.parametrize(
    ("family", "change", "cause"),
    [
        ("minicpm", {"scale_emb": None}, "scale_emb is None"),
        ("minicpm", {"dim_model_base": 0}, "dim_model_base is 0"),
        ("hunyuan", {"use_qk_norm": False}, "use_qk_norm is False"),
        ("hunyuan", {"use_cla": True}, "use_cla is True"),
        ("hunyuan", {"num_experts": 64}, "num_experts is 64"),
        ("hunyuan", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096}, "sliding window"),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(
    family: str, change: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    model = made(tmp_path / "model", family)
    model.rewrite_config(**change)
    with pytest.raises(BitconvError, match=cause):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    assert not (tmp_path / "out.gguf").exists()


def test_multipliers_in_a_class_that_has_none_are_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    model.rewrite_config(embedding_multiplier=12.0)
    with pytest.raises(BitconvError, match="are multiplied, which the graph of llama does not"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_a_file_of_minicpm_without_its_multipliers_is_a_fault(tmp_path: Path) -> None:
    """llama.cpp would take those of one MiniCPM, and the last upside down."""
    model = made(tmp_path / "model", "minicpm")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    del rebuilt.metadata["minicpm.logit_scale"]
    assert "minicpm.logit_scale is None" in bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults[0]


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    model = made(tmp_path / "model", "qwen2", dtype="f32")
    tensors = load_file(model.path / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, model.path / "model.safetensors")
    with pytest.raises(BitconvError, match=r"layers\.1\.self_attn\.k_proj\.bias: missing"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
