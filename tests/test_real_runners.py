"""The proof that files run: in llama.cpp, ik_llama.cpp and bitnet.cpp they agree with the model in PyTorch.

llama.cpp and ik_llama.cpp come as wheels with the test requirements. bitnet.cpp has none, so its tests run where
BITCONV_BITNET_CPP names its llama-perplexity. Where that build has TL2 kernels (-DBITNET_X86_TL2=ON, and it still
computes all other types), BITCONV_BITNET_CPP_KERNEL_CONFIG names the kernel_config.ini that they were made from; it
must have the shapes of all three checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import numpy.typing as npt
import pytest
import torch

import real_runners
from real_runners import FIXTURES

pytestmark = [pytest.mark.runners, pytest.mark.torch]

ONEBITLLM, MICROSOFT, LLAMA = CHECKPOINTS = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")
BITNET_CPP = os.environ.get("BITCONV_BITNET_CPP")
BITNET_CPP_ARM64 = os.environ.get("BITCONV_BITNET_CPP_ARM64")
KERNEL_CONFIG = os.environ.get("BITCONV_BITNET_CPP_KERNEL_CONFIG")
PERPLEXITY_TOLERANCE = 0.005  # relative
EMULATED_TIMEOUT = 3600  # seconds
# How far a quantized embedding and head may move the predictions of the f16 file: its perplexity, relative, or the
# divergence in nats. The smallest checkpoint loses more to 4 bits, in PyTorch as in the runners.
QUANTIZED = {"q8_0": 0.001, "q6_k": 0.003, "q4_k": 0.01}
LEAST_BITS = {(ONEBITLLM, "q4_k"): 0.02}


def convert(name: str, directory: Path, type_name: str, **options: Any) -> Path:
    file = directory / f"{name}-{type_name}.gguf"
    bitconv.convert(FIXTURES / name, file, type=type_name, **options)
    return file


def check_tokens(name: str, tokens: npt.NDArray[np.int32]) -> None:
    reference = json.loads((FIXTURES / "reference.json").read_text())[name]
    assert len(tokens) == reference["tokens"]
    assert tokens[: len(reference["first_tokens"])].tolist() == reference["first_tokens"]


@pytest.mark.parametrize("name", [LLAMA, ONEBITLLM])
@pytest.mark.parametrize(
    ("type_name", "options"),
    [
        *(pytest.param(t, {}, id=t) for t in ("f32", "f16", "bf16", "tq1_0", "tq2_0", "q2_0")),
        *(pytest.param(t, {"scale_in_blocks": True}, id=f"{t}-blocks") for t in ("tq1_0", "tq2_0", "q2_0")),
        pytest.param("tq1_0", {"tensor_types": [("attn_[qkv]", "q8_0")]}, id="tq1_0-and-q8_0"),
    ],
)
def test_llama_cpp_predicts_the_next_tokens_of_the_model(
    name: str, type_name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    file = convert(name, tmp_path, type_name, runner="llama.cpp", **options)
    with np.load(FIXTURES / "next_token_reference.npz") as reference:
        positions, expected = reference[f"{name}/positions"], reference[f"{name}/log_probabilities"]
    tokens, predicted = real_runners.llama_cpp(file, positions.tolist())
    check_tokens(name, tokens)
    divergence = (np.exp(expected) * (expected - predicted)).sum(axis=1)
    assert divergence.mean() < 0.01
    assert np.mean(expected.argmax(axis=1) == predicted.argmax(axis=1)) >= 0.95


@pytest.mark.parametrize(
    ("name", "type_name", "fallback"),
    [
        *((name, type_name, "error") for name in CHECKPOINTS for type_name in ("f32", "f16")),
        *((name, type_name, "error") for name in (LLAMA, MICROSOFT) for type_name in ("iq1_bn", "iq2_bn")),
        (ONEBITLLM, "iq2_bn", "q8_0"),  # all but ffn_down have too few columns
    ],
)
def test_perplexity_in_ik_llama_cpp_is_that_of_the_model(
    name: str, type_name: str, fallback: str, tmp_path: Path
) -> None:
    pytest.importorskip("ik_llama_cpp")
    file = convert(name, tmp_path, type_name, runner="ik_llama.cpp", fallback=fallback)
    tokens, losses = real_runners.ik_llama_cpp(file)
    check_tokens(name, tokens)
    reference = json.loads((FIXTURES / "reference.json").read_text())[name]
    assert losses.size == reference["scored"]
    assert np.exp(losses.mean()) == pytest.approx(reference["ppl"], rel=PERPLEXITY_TOLERANCE)


@cache
def predictions_in_llama_cpp(name: str, embed_type: str, directory: Path) -> npt.NDArray[np.float32]:
    file = directory / f"{name}-{embed_type}-llama.gguf"
    bitconv.convert(FIXTURES / name, file, type="q2_0", runner="llama.cpp", embed_type=embed_type)
    return real_runners.llama_cpp(file, range(0, 2000, 100)).log_probabilities


@pytest.mark.parametrize("name", [LLAMA, ONEBITLLM])
@pytest.mark.parametrize("embed_type", QUANTIZED)
def test_llama_cpp_takes_quantized_embeddings_and_heads(
    name: str, embed_type: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("xllamacpp")
    expected = predictions_in_llama_cpp(name, "f16", tmp_path_factory.getbasetemp())
    predicted = predictions_in_llama_cpp(name, embed_type, tmp_path)
    divergence = (np.exp(expected) * (expected - predicted)).sum(axis=1).mean()
    assert divergence < LEAST_BITS.get((name, embed_type), QUANTIZED[embed_type])


@cache
def perplexity_in_ik_llama_cpp(name: str, embed_type: str, directory: Path) -> float:
    file = directory / f"{name}-{embed_type}-ik.gguf"
    options: dict[str, Any] = {"type": "iq2_bn", "fallback": "f16"}  # 1bitLLM's has too few columns
    bitconv.convert(FIXTURES / name, file, runner="ik_llama.cpp", embed_type=embed_type, **options)
    return float(np.exp(real_runners.ik_llama_cpp(file).losses.mean()))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("embed_type", QUANTIZED)
def test_ik_llama_cpp_takes_quantized_embeddings_and_heads(
    name: str, embed_type: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("ik_llama_cpp")
    expected = perplexity_in_ik_llama_cpp(name, "f16", tmp_path_factory.getbasetemp())
    tolerance = LEAST_BITS.get((name, embed_type), QUANTIZED[embed_type])
    assert perplexity_in_ik_llama_cpp(name, embed_type, tmp_path) == pytest.approx(expected, rel=tolerance)


def with_several_scales(directory: Path, group: int | None) -> Path:
    """The Llama checkpoint as ternary floats, each row's (or group of columns') scale changed; exact in float16."""
    from safetensors.torch import load_file, save_file

    model = directory / "model"
    shutil.copytree(FIXTURES / LLAMA, model)
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    stored = load_file(model / "model.safetensors")
    tensors = {name: values.float() for name, values in stored.items() if "_proj." not in name}
    for name, packed in stored.items():
        if name.endswith("_proj.weight"):
            trits = np.concatenate([(packed.numpy() >> shift & 3).astype(np.float32) - 1 for shift in (0, 2, 4, 6)])
            rows, columns = trits.shape
            factors = random.uniform(0.7, 1.4, (rows, 1 if group is None else columns // group))
            scales = (factors / stored[f"{name}_scale"].float().numpy()).astype(np.float16).astype(np.float32)
            tensors[name] = torch.from_numpy(trits * np.repeat(scales, columns // scales.shape[1], axis=1))
    save_file(tensors, model / "model.safetensors")
    return model


@pytest.mark.parametrize("type_name", ["iq2_bn", "iq1_bn"])
def test_ik_llama_cpp_multiplies_each_row_by_its_scale(type_name: str, tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    file = tmp_path / "out.gguf"
    bitconv.convert(with_several_scales(tmp_path, None), file, type=type_name)
    _, losses = real_runners.ik_llama_cpp(file)
    expected = bitconv.evaluate(file, real_runners.TEXT, window=real_runners.WINDOW)
    assert np.exp(losses.mean()) == pytest.approx(expected.perplexity, rel=PERPLEXITY_TOLERANCE)


@pytest.mark.parametrize(
    ("type_name", "group"), [("tq1_0", None), ("tq2_0", None), ("q2_0", None), ("q2_0", 64), ("tq2_0", 256)]
)
def test_llama_cpp_multiplies_each_block_by_its_scale(type_name: str, group: int | None, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = with_several_scales(tmp_path, group)
    positions = list(range(0, 2000, 100))
    predictions = []
    for name in (type_name, "f32"):
        bitconv.convert(model, tmp_path / f"{name}.gguf", type=name, runner="llama.cpp")
        predictions.append(real_runners.llama_cpp(tmp_path / f"{name}.gguf", positions).log_probabilities)
    predicted, expected = predictions
    assert (np.exp(expected) * (expected - predicted)).sum(axis=1).mean() < 0.01


def with_ternary_embeddings(name: str, directory: Path) -> Path:
    """A checkpoint with the embedding, and the head if it has one, made ternary: worse, and the same everywhere."""
    from safetensors.torch import load_file, save_file

    model = directory / "model"
    shutil.copytree(FIXTURES / name, model)
    for shard in model.glob("*.safetensors"):
        tensors = load_file(shard)
        for source in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
            values = tensors[source].float()
            scale = values.abs().mean().to(torch.bfloat16).float()
            tensors[source] = ((values / scale).round().clamp(-1, 1) * scale).to(torch.bfloat16)
        save_file(tensors, shard)
    return model


@pytest.mark.parametrize("name", [LLAMA, ONEBITLLM])
@pytest.mark.parametrize("embed_type", ["tq1_0", "tq2_0", "q2_0"])
def test_llama_cpp_looks_up_and_multiplies_by_ternary_embeddings(name: str, embed_type: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = with_ternary_embeddings(name, tmp_path)
    predictions = []
    for kind in (embed_type, "f32"):
        bitconv.convert(model, tmp_path / f"{kind}.gguf", type="q2_0", runner="llama.cpp", embed_type=kind)
        predictions.append(real_runners.llama_cpp(tmp_path / f"{kind}.gguf", range(0, 1000, 100)).log_probabilities)
    predicted, expected = predictions
    assert (np.exp(expected) * (expected - predicted)).sum(axis=1).mean() < 1e-3


@pytest.mark.parametrize("head_type", ["iq1_bn", "iq2_bn"])
def test_ik_llama_cpp_multiplies_by_ternary_heads(head_type: str, tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    model = with_ternary_embeddings(LLAMA, tmp_path)
    perplexities = []
    for kind in (head_type, "f32"):
        bitconv.convert(model, tmp_path / f"{kind}.gguf", type="iq2_bn", head_type=kind)
        perplexities.append(np.exp(real_runners.ik_llama_cpp(tmp_path / f"{kind}.gguf").losses.mean()))
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)


@pytest.mark.skipif(BITNET_CPP is None, reason="BITCONV_BITNET_CPP is not set")
@pytest.mark.parametrize("name", [LLAMA, ONEBITLLM])
@pytest.mark.parametrize("embed_type", ["tq1_0", "tq2_0", "i2_s"])
def test_bitnet_cpp_takes_ternary_embeddings_and_heads(name: str, embed_type: str, tmp_path: Path) -> None:
    assert BITNET_CPP is not None
    model = with_ternary_embeddings(name, tmp_path)
    options: dict[str, Any] = {"embed_type": embed_type}
    if embed_type == "i2_s":  # in which it cannot look up rows
        options = {"head_type": embed_type}
        if name != LLAMA:
            pytest.skip("the model has no head of its own")
    perplexities = []
    for kind, chosen in (("ternary", options), ("f32", {"embed_type": "f32"})):
        bitconv.convert(model, tmp_path / f"{kind}.gguf", fallback="f16", **chosen)
        perplexities.append(real_runners.bitnet_cpp(BITNET_CPP, tmp_path / f"{kind}.gguf"))
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)


@cache
def float_perplexity_in_bitnet_cpp(name: str, directory: Path) -> float:
    assert BITNET_CPP is not None
    return real_runners.bitnet_cpp(BITNET_CPP, convert(name, directory, "f16", runner="bitnet.cpp"))


@pytest.mark.skipif(BITNET_CPP is None, reason="BITCONV_BITNET_CPP is not set")
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("embed_type", QUANTIZED)
def test_bitnet_cpp_takes_quantized_embeddings_and_heads(name: str, embed_type: str, tmp_path: Path) -> None:
    assert BITNET_CPP is not None
    perplexities = []
    for kind in ("f16", embed_type):
        bitconv.convert(FIXTURES / name, tmp_path / f"{kind}.gguf", embed_type=kind)
        perplexities.append(real_runners.bitnet_cpp(BITNET_CPP, tmp_path / f"{kind}.gguf"))
    tolerance = LEAST_BITS.get((name, embed_type), QUANTIZED[embed_type])
    assert perplexities[1] == pytest.approx(perplexities[0], rel=tolerance)


@pytest.mark.skipif(BITNET_CPP is None, reason="BITCONV_BITNET_CPP is not set")
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("type_name", ["i2_s", "tq1_0", "tq2_0", "tl2"])
def test_perplexity_in_bitnet_cpp_is_that_of_the_float_file(
    name: str, type_name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert BITNET_CPP is not None
    options: dict[str, Any] = {}
    batch = 512
    if type_name == "tl2":
        if KERNEL_CONFIG is None:
            pytest.skip("BITCONV_BITNET_CPP_KERNEL_CONFIG is not set")
        options, batch = {"kernel_config": KERNEL_CONFIG}, 4  # NaN for larger batches: bitnet.cpp's kernels
    file = convert(name, tmp_path, type_name, runner="bitnet.cpp", **options)
    expected = float_perplexity_in_bitnet_cpp(name, tmp_path_factory.getbasetemp())
    assert real_runners.bitnet_cpp(BITNET_CPP, file, batch=batch) == pytest.approx(expected, rel=PERPLEXITY_TOLERANCE)


@pytest.mark.skipif(BITNET_CPP_ARM64 is None, reason="BITCONV_BITNET_CPP_ARM64 is not set")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_build_for_arm64_reads_the_byte_order_of_its_runner_and_no_other(name: str, tmp_path: Path) -> None:
    """A build from November 2025 on, by qemu's binfmt or a script that runs it."""
    assert BITNET_CPP_ARM64 is not None
    floats = convert(name, tmp_path, "f32", runner="bitnet.cpp")
    files = [convert(name, tmp_path, "i2_s", runner="bitnet.cpp-arm64"), tmp_path / "published.gguf"]
    bitconv.repack(files[0], files[1], type="i2_s")
    expected, right, garbage = (
        real_runners.bitnet_cpp(BITNET_CPP_ARM64, file, timeout=EMULATED_TIMEOUT) for file in (floats, *files)
    )
    assert right == pytest.approx(expected, rel=PERPLEXITY_TOLERANCE)
    assert garbage > 10 * expected
