"""Quantizing dense weights: the bytes that llama-quantize makes, on every instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from bitconv import _kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

# f32: rows of values; q8_0, q6_k, q4_k: what bitnet.cpp's llama-quantize made of them.
GOLDEN = np.load(Path(__file__).parent / "golden" / "embeddings.npz")
BLOCKS = {"q8_0": (32, 34), "q6_k": (256, 210), "q4_k": (256, 144)}
GGML = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q6_k": gguf.GGMLQuantizationType.Q6_K}
GGML["q4_k"] = gguf.GGMLQuantizationType.Q4_K


@pytest.fixture(params=_kernels.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test on each instruction set of this CPU."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


def quantize(values: NDArray[np.float32], name: str) -> tuple[int, NDArray[np.uint8]]:
    block, block_bytes = BLOCKS[name]
    out = np.full(values.size // block * block_bytes, 0xEE, np.uint8)
    return _kernels.quantize(np.ascontiguousarray(values).reshape(-1).view(np.uint8), "f32", out, name), out


def dequantize(packed: NDArray[np.uint8], name: str) -> tuple[int, NDArray[np.float32]]:
    block, block_bytes = BLOCKS[name]
    out = np.full(packed.size // block_bytes * block, 7, np.float32)
    return _kernels.dequantize_blocks(packed, name, out), out


def awkward(seed: int, n: int) -> NDArray[np.float32]:
    """Runs of 16 values, each of a magnitude of its own, some dead, of few values, of one sign, or alike."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n // 16, 16)) * 10.0 ** rng.uniform(-44, 6, (n // 16, 1))
    kind = rng.integers(0, 6, (n // 16, 1))
    values = np.where(kind == 1, np.rint(rng.standard_normal(values.shape) * 3) / 4, values)
    values = np.where(kind == 2, np.abs(values), values)
    values = np.where(kind == 3, values[:, :1], values)
    values = np.where(kind == 4, rng.standard_normal(values.shape) * (rng.random(values.shape) < 0.1), values)
    return values.astype(np.float32).reshape(-1)


@pytest.mark.parametrize("name", BLOCKS)
def test_makes_the_bytes_that_llama_quantize_makes(name: str) -> None:
    fault, packed = quantize(GOLDEN["f32"], name)
    assert fault == -1
    assert (packed == GOLDEN[name].reshape(-1)).all()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_quantizes_the_values_of_other_float_types(name: str, dtype: str) -> None:
    values = GOLDEN["f32"][3:4].astype(np.float16).astype(np.float32)
    raw = values.astype("<f2").view(np.uint8)
    if dtype == "bf16":
        raw = np.ascontiguousarray(values).view("<u2")[:, 1::2].copy().view(np.uint8)
        values = (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF0000).view(np.float32)
    out = np.empty(GOLDEN[name].shape[1], np.uint8)
    assert _kernels.quantize(raw.reshape(-1), dtype, out, name) == -1
    assert (out == quantize(values, name)[1]).all()


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_q8_0_equals_the_gguf_package(seed: int, blocks: int) -> None:
    values = awkward(seed, 32 * blocks)
    values[np.abs(values) < 1e-36] = 0  # whose scale has no inverse
    fault, packed = quantize(values, "q8_0")
    assert fault == -1
    assert (packed == gguf.quantize(values, GGML["q8_0"])).all()


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_instruction_set_makes_the_same_bytes_and_values(name: str, seed: int, blocks: int) -> None:
    values = awkward(seed, BLOCKS[name][0] * blocks)
    fault, packed = quantize(values, name)
    assert fault == -1
    back = dequantize(packed, name)
    isa = _kernels.isa()
    _kernels.use_isa("scalar")
    try:
        assert (packed == quantize(values, name)[1]).all()
    finally:
        _kernels.use_isa(isa)
    assert back[0] == -1
    assert (back[1] == gguf.dequantize(packed, GGML[name])).all()


@pytest.mark.parametrize(("name", "off"), [("q8_0", 0.006), ("q6_k", 0.025), ("q4_k", 0.09)])
def test_what_is_read_back_is_near_what_was_written(name: str, off: float) -> None:
    values = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32)
    _, back = dequantize(quantize(values, name)[1], name)
    errors = back.reshape(values.shape) - values
    assert np.sqrt((errors**2).mean()) < off


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9, -1e9, 1e15, 1e30, 3e38])
def test_finds_a_value_that_a_type_cannot_hold(name: str, value: float) -> None:
    values = np.random.default_rng(1).standard_normal(1024).astype(np.float32)
    values[777] = value
    assert quantize(values, name)[0] == 777


@pytest.mark.parametrize(("name", "offsets"), [("q8_0", [0]), ("q6_k", [208]), ("q4_k", [0, 2])])
def test_finds_a_block_whose_scale_is_not_finite(name: str, offsets: list[int]) -> None:
    block, block_bytes = BLOCKS[name]
    packed = quantize(np.ones(4 * block, np.float32), name)[1]
    for offset in offsets:
        for bits in (0x7C00, 0xFC00, 0x7E01):
            damaged = packed.copy()
            at = 2 * block_bytes + offset
            damaged[at : at + 2] = np.array([bits], "<u2").view(np.uint8)
            assert dequantize(damaged, name)[0] == 2 * block


def test_rejects_sizes_that_do_not_fit() -> None:
    u8, f32 = (lambda *s, t=t: np.zeros(s, t) for t in (np.uint8, np.float32))
    wrong = [
        ("not a multiple of 256", lambda: _kernels.quantize(u8(128), "f32", u8(144), "q4_k")),
        ("expected 144", lambda: _kernels.quantize(u8(1024), "f32", u8(143), "q4_k")),
        ("expected q8_0", lambda: _kernels.quantize(u8(1024), "f32", u8(144), "q5_k")),
        ("not a multiple of 32", lambda: _kernels.dequantize_blocks(u8(34), "q8_0", f32(31))),
        ("expected 34", lambda: _kernels.dequantize_blocks(u8(35), "q8_0", f32(32))),
    ]
    for message, call in wrong:
        with pytest.raises(ValueError, match=message):
            call()
