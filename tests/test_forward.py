"""The forward pass: its bits are those of its definition, whatever computes them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv import _kernels
from bitconv.commands.evaluate import log_probabilities, opened_to_run
from bitconv.inference.forward import ForwardPass

from conftest import CHECKPOINTS, FIXTURES
from forward_reference import Reference, exponential
from synthetic import make_checkpoint

TOKENS = np.arange(20, 60)
GROUPS = {"dtype": "f16", "marked": False, "ternary_floats": True}
# By name, what makes its files and the runner; the graphs that differ.
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "norms of q and k": ("plain_qwen3", {"head_dim": 128}, "q2_0", "llama.cpp"),
    "norms of inputs": ("qwen3", {"head_dim": 128}, "i2_s", "bitnet.cpp-2026"),
    "norms of q and k behind the rotation": ("hunyuan", {"head_dim": 128}, "q2_0", "llama.cpp"),
    "biases": ("qwen2", {}, "q2_0", "llama.cpp"),
    "multipliers": ("minicpm", {}, "q2_0", "llama.cpp"),
    "a mixture": ("mixtral", {}, "tq2_0", "llama.cpp"),
    "windows, a mixture and a scale a row": ("maple", {"layers": 5}, "tq2_0", "llama.cpp"),
    "scales of groups": ("llama", {**GROUPS, "group": 256}, "q2_0", "llama.cpp"),
    "scales of groups in one block": ("llama", {**GROUPS, "group": 64}, "f32", "llama.cpp"),
    "heads of another size": ("plain_qwen3", {"head_dim": 80}, "q2_0", "llama.cpp"),
}


def opened(path: Path, **options: Any) -> ForwardPass:
    return ForwardPass(*opened_to_run(path, None, None), **options)


def logits_of(model: ForwardPass, batch: int = 1000) -> np.ndarray:
    cache = model.new_cache(len(TOKENS))
    return np.concatenate([model.logits(TOKENS[i : i + batch], cache) for i in range(0, len(TOKENS), batch)])


@pytest.fixture(params=[*CHECKPOINTS, *MODELS], scope="module")
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forward")
    if request.param in CHECKPOINTS:
        bitconv.convert(FIXTURES / request.param, path / "out.gguf")
    else:
        family, options, type_name, runner = MODELS[request.param]
        model = make_checkpoint(path / "model", family, **{"hidden": 512, "ffn": 512, **options})
        bitconv.convert(model.path, path / "out.gguf", type=type_name, runner=runner)
    return path / "out.gguf"


def test_it_computes_the_bits_of_its_definition(file: Path) -> None:
    expected = Reference(file).logits(TOKENS, len(TOKENS))
    assert np.isfinite(expected).all() and expected.std() > 0.1
    np.testing.assert_array_equal(logits_of(opened(file)), expected)


def test_neither_threads_nor_batches_nor_instruction_sets_change_a_bit(file: Path) -> None:
    expected = logits_of(opened(file, threads=1))
    for threads, batch in ((1, 1), (2, 7), (5, 33), (3, 1)):
        np.testing.assert_array_equal(logits_of(opened(file, threads=threads), batch), expected)
    used = _kernels.isa()
    try:
        for isa in _kernels.isas():
            _kernels.use_isa(isa)
            np.testing.assert_array_equal(logits_of(opened(file)), expected, isa)
    finally:
        _kernels.use_isa(used)


def test_log_probabilities_are_those_of_the_logits(file: Path) -> None:
    model = opened(file)
    cache = model.new_cache(len(TOKENS))
    states = model.states(TOKENS, cache)
    found = model.log_probabilities(states, TOKENS)
    expected = log_probabilities(logits_of(model))[np.arange(len(TOKENS)), TOKENS]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_exponential_is_right_to_the_last_bits() -> None:
    x = np.linspace(-87, 88, 100_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exponential(x) / exact - 1).max() < 3e-7


def test_what_changes_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "out.gguf")
    model = opened(tmp_path / "out.gguf")
    before = logits_of(model)
    assert not np.array_equal(logits_of(model.changed(rope_base=10_000.0)), before)
    assert not np.array_equal(logits_of(model.changed(float_activations=True)), before)
    np.testing.assert_array_equal(logits_of(model), before)


def test_one_model_serves_several_threads(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "out.gguf")
    model = opened(tmp_path / "out.gguf", threads=3)
    expected, found = logits_of(model), {}

    def run(number: int) -> None:
        found[number] = logits_of(model, 3)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and all(np.array_equal(logits, expected) for logits in found.values())


# The kernels' classes refuse what does not fit


def linear(rows: int, cols: int) -> _kernels.Linear:
    return _kernels.Linear(_kernels.Matrix.dense(np.zeros(4 * rows * cols, np.uint8), "f32", rows, cols))


def graph(**changes: Any) -> _kernels.Graph:
    sizes: dict[str, Any] = {"hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "experts_used": 0}
    sizes |= {"rms_eps": 1e-5, "residual_scale": 1.0, "clamp": float("inf"), "activation": "silu"}
    sizes |= {"neighbours": False, "late_qk_norms": False}
    return _kernels.Graph(**{**sizes, **changes})


def layer(**changes: Any) -> _kernels.Layer:
    ones = np.ones(32, np.float32)
    parts: dict[str, Any] = {"q": linear(32, 32), "k": linear(16, 32), "v": linear(16, 32), "output": linear(32, 32)}
    parts |= {"networks": [(linear(48, 32), linear(48, 32), linear(32, 48))], "attention_norm": ones, "ffn_norm": ones}
    return _kernels.Layer(graph(), **{**parts, **changes})


@pytest.mark.parametrize(
    "make",
    [
        lambda: graph(heads=3, kv_heads=2),
        lambda: graph(head_dim=15),
        lambda: graph(activation="gelu"),
        lambda: layer(k=linear(32, 32)),
        lambda: layer(networks=[]),
        lambda: layer(networks=[(linear(48, 32), linear(47, 32), linear(32, 48))]),
        lambda: layer(ffn_norm=np.ones(31, np.float32)),
        lambda: layer(q_norm=np.ones(15, np.float32)),
        lambda: layer(router=_kernels.Matrix.dense(np.zeros(256, np.uint8), "f32", 2, 32)),
        lambda: _kernels.Linear(_kernels.Matrix.dense(np.zeros(128, np.uint8), "f32", 1, 32), np.ones(2, np.float32)),
        lambda: _kernels.Matrix.dense(np.zeros(127, np.uint8), "f32", 1, 32),
        lambda: _kernels.Matrix.ternary([], np.ones(1, np.float32), True),
        lambda: _kernels.Matrix.ternary(
            [_kernels.Operand.trits(np.zeros((2, 4), np.int8))], np.ones(3, np.float32), True
        ),
        lambda: _kernels.Operand.rows("i2_s", np.zeros(31, np.uint8), 1, 128),
        lambda: _kernels.Operand.rows("i2_s_row4", np.zeros(128, np.uint8), 4, 128),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("used", [7, 8, 2**63])
def test_a_cache_that_is_full_is_refused(used: int) -> None:
    keys, values = np.zeros((1, 1, 16, 32), np.float32), np.zeros((1, 1, 8, 32), np.float32)
    x, angles = np.zeros((2, 32), np.float32), np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match="full"):
        _kernels.Pass(1).layer(graph(), layer(), x, angles, angles, keys, values, 8, used)
