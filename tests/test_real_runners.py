"""The proof that files run: in llama.cpp, ik_llama.cpp and bitnet.cpp they agree with the model in PyTorch.

llama.cpp and ik_llama.cpp come as wheels with the test requirements. bitnet.cpp has none, so its tests run where
BITCONV_BITNET_CPP names its llama-perplexity. Where that build has TL2 kernels (-DBITNET_X86_TL2=ON, and it still
computes all other types), BITCONV_BITNET_CPP_KERNEL_CONFIG names the kernel_config.ini that they were made from; it
must have the shapes of all three checkpoints.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import numpy.typing as npt
import pytest

import real_runners
from real_runners import FIXTURES

ONEBITLLM, MICROSOFT, LLAMA = CHECKPOINTS = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")
BITNET_CPP = os.environ.get("BITCONV_BITNET_CPP")
KERNEL_CONFIG = os.environ.get("BITCONV_BITNET_CPP_KERNEL_CONFIG")
PERPLEXITY_TOLERANCE = 0.005  # relative


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
def float_perplexity_in_bitnet_cpp(name: str, directory: Path) -> float:
    assert BITNET_CPP is not None
    return real_runners.bitnet_cpp(BITNET_CPP, convert(name, directory, "f16", runner="bitnet.cpp"))


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
