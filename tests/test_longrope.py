"""rope_type "longrope": one list of factors is rope_freqs.weight, two are two tensors of llama.cpp's graph of llama."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
import torch
import transformers
from bitconv.gguf import read_gguf
from bitconv.inference.forward import ForwardPass
from bitconv.packed.inspection import inspect_file

import real_runners
from synthetic import Synthetic, make_checkpoint
from test_convert import File
from test_export import replace_tensor
from test_real_runners import with_several_scales

pytestmark = pytest.mark.torch

ONE = [round(1 + 0.2 * i / 31, 6) for i in range(32)]
OTHER = [round(1 + 1.7 * i / 31, 6) for i in range(32)]
CONTEXT = 512  # max_position_embeddings of the synthetic checkpoints


def longrope(short: Any = ONE, long: Any = ONE, **more: Any) -> dict[str, Any]:
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long, **more}


@pytest.fixture
def llama(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "llama")


def converted(model: Synthetic, **options: Any) -> File:
    file = model.path.with_name("out.gguf")
    bitconv.convert(model.path, file, force=True, **options)
    assert bitconv.verify(file, against=model.path).right
    return File(file)


def factors(file: File, name: str) -> list[float]:
    return np.frombuffer(file.bytes(name, 32 * 4), np.float32).tolist()


def in_float32(values: list[float]) -> list[float]:
    return np.array(values, np.float32).tolist()


FORMS = {
    "both keys of rope_scaling": {"rope_scaling": longrope(factor=1.0, original_max_position_embeddings=CONTEXT)},
    "no factor": {"rope_scaling": longrope(original_max_position_embeddings=CONTEXT)},
    "no original context": {"rope_scaling": longrope(factor=1.0)},
    "type": {"rope_scaling": {**longrope(), "rope_type": None, "type": "longrope"}},
    "as in Phi-3": {"rope_scaling": longrope(), "original_max_position_embeddings": CONTEXT},
    "rope_parameters": {
        "rope_theta": None,
        "rope_parameters": longrope(rope_theta=50000.0, factor=1.0, original_max_position_embeddings=CONTEXT),
    },
    "factor below 1": {"rope_scaling": longrope(factor=0.5)},
    "attention_factor": {"rope_scaling": longrope(factor=4.0, attention_factor=1.0)},
    "magnitudes of 1": {"rope_scaling": longrope(short_mscale=1.0, long_mscale=1)},
    "lists that are the same in float32": {"rope_scaling": longrope(long=[x + 1e-12 for x in ONE])},
}


def without_none(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: without_none(value) if isinstance(value, dict) and key == "rope_scaling" else value
        for key, value in config.items()
        if value is not None or key == "rope_theta"
    }


@pytest.mark.parametrize("form", FORMS)
def test_two_equal_lists_and_a_magnitude_of_1_are_rope_freqs(llama: Synthetic, form: str) -> None:
    llama.rewrite_config(**without_none(FORMS[form]))
    file = converted(llama)
    assert factors(file, "rope_freqs.weight") == in_float32(ONE)
    assert not [key for key in file.metadata if "rope.scaling" in key]


@pytest.mark.parametrize("family", ["llama", "microsoft", "1bitllm", "qwen3", "plain_qwen3"])
def test_lists_of_ones_need_nothing(tmp_path: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, head_dim=64)
    bitconv.convert(model.path, tmp_path / "plain.gguf", type="f32")
    model.rewrite_config(rope_scaling=longrope([1] * 32, [1.0] * 32))
    bitconv.convert(model.path, tmp_path / "ones.gguf", type="f32")
    assert (tmp_path / "ones.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": longrope(factor=4.0)}, math.sqrt(1 + math.log(4) / math.log(CONTEXT))),
        (
            {"rope_scaling": longrope(), "original_max_position_embeddings": 128},
            math.sqrt(1 + math.log(4) / math.log(128)),
        ),
        (
            {"rope_scaling": longrope(original_max_position_embeddings=64)},
            math.sqrt(1 + math.log(8) / math.log(64)),
        ),
        ({"rope_scaling": longrope(attention_factor=1.25)}, 1.25),
    ],
)
def test_the_magnitude_is_attn_factor(llama: Synthetic, changes: dict[str, Any], expected: float) -> None:
    llama.rewrite_config(**changes)
    file = converted(llama)
    assert factors(file, "rope_freqs.weight") == in_float32(ONE)
    assert file.metadata["llama.rope.scaling.attn_factor"] == np.float32(expected)
    assert "llama.rope.scaling.factor" not in file.metadata  # llama.cpp would divide all frequencies by it


def test_two_lists_are_two_tensors(llama: Synthetic) -> None:
    llama.rewrite_config(rope_scaling=longrope(ONE, OTHER, original_max_position_embeddings=128))
    file = converted(llama, type="tq2_0", fallback="f32")
    assert factors(file, "rope_factors_short.weight") == in_float32(ONE)
    assert factors(file, "rope_factors_long.weight") == in_float32(OTHER)
    assert "rope_freqs.weight" not in file.tensors
    assert file.metadata["llama.rope.scaling.type"] == "longrope"
    assert file.metadata["llama.rope.scaling.original_context_length"] == 128


def test_when_llama_cpp_takes_the_long_list_is_noted(llama: Synthetic, tmp_path: Path) -> None:
    for lists, count in (((ONE, OTHER), 1), ((ONE, ONE), 0)):
        llama.rewrite_config(rope_scaling=longrope(*lists, original_max_position_embeddings=128))
        notes = bitconv.convert(llama.path, tmp_path / "out.gguf", type="f32", dry_run=True).notes
        assert len([note for note in notes if "more than 128 tokens" in note]) == count


def test_two_lists_are_refused_for_a_runner_that_has_one(llama: Synthetic, tmp_path: Path) -> None:
    llama.rewrite_config(rope_scaling=longrope(ONE, OTHER))
    with pytest.raises(bitconv.BitconvError, match=r"one for long contexts and one for short; .*llama\.cpp"):
        bitconv.convert(llama.path, tmp_path / "out.gguf", type="i2_s")
    bitconv.convert(llama.path, tmp_path / "out.gguf", type="f32")
    with pytest.raises(bitconv.BitconvError, match=r"one for long contexts and one for short; .*llama\.cpp"):
        bitconv.repack(tmp_path / "out.gguf", tmp_path / "other.gguf", type="i2_s")


@pytest.mark.parametrize(
    ("family", "scaling", "cause"),
    [
        ("microsoft", longrope(), "rope scaling 'longrope'.*graph of bitnet-b1.58"),
        ("1bitllm", longrope(), "rope scaling 'longrope'.*graph of bitnet"),
        ("1bitllm", longrope([1] * 32, [1] * 32, factor=4), "rope scaling 'longrope'.*graph of bitnet"),
        ("plain_qwen3", longrope(), "rope scaling 'longrope'.*graph of qwen3"),
        ("llama", longrope(ONE[:-1]), "rope_scaling: short_factor is a list of 31, expected a list of 32 numbers"),
        ("llama", longrope(long=ONE * 2), "rope_scaling: long_factor is a list of 64"),
        ("llama", longrope(long=None), "rope_scaling: long_factor is None"),
        ("llama", longrope(long=[*ONE[:-1], 0]), "rope_scaling: long_factor is 0, expected a positive number"),
        ("llama", longrope(short=[*ONE[:-1], "1"]), "rope_scaling: short_factor is '1', expected a positive number"),
        ("llama", longrope(short_mscale=1.2), "rope_scaling: short_mscale is 1.2"),
        ("llama", longrope(attention_factor=0), "rope_scaling: attention_factor is 0"),
        ("llama", longrope(original_max_position_embeddings="8k"), "original_max_position_embeddings is '8k'"),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, "rope scaling 'dynamic' is not supported"),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, family: str, scaling: dict[str, Any], cause: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, head_dim=64)
    model.rewrite_config(rope_scaling=scaling)
    with pytest.raises(bitconv.BitconvError, match=cause):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="f32")


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_verify_finds_a_changed_factor(llama: Synthetic, tmp_path: Path, name: str) -> None:
    llama.rewrite_config(rope_scaling=longrope(ONE, ONE if name == "rope_freqs.weight" else OTHER))
    values = np.array(factors(converted(llama, type="f32"), name), np.float32)
    values[5] = 1.5
    replace_tensor(tmp_path / "out.gguf", name, 0, values.tobytes())
    result = bitconv.verify(tmp_path / "out.gguf", against=llama.path)
    assert [tensor.name for tensor in result.tensors if tensor.faults] == [name]


SCALINGS = {
    "one list": longrope(),
    "one list and a magnitude": longrope(factor=4.0),
    "two lists": longrope(ONE, OTHER, original_max_position_embeddings=128),
    "two lists and no magnitude": longrope(ONE, OTHER, attention_factor=1.0, original_max_position_embeddings=128),
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_longrope_comes_back_by_export_and_passes_repack(
    llama: Synthetic, tmp_path: Path, scaling: dict[str, Any]
) -> None:
    llama.rewrite_config(rope_scaling=scaling)
    file = converted(llama, type="f32")
    bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    bitconv.convert(tmp_path / "exported", tmp_path / "second.gguf", type="f32")
    second = File(tmp_path / "second.gguf")
    names = [name for name in file.tensors if name.startswith("rope_")]
    assert names and names == [name for name in second.tensors if name.startswith("rope_")]
    assert all(factors(file, name) == factors(second, name) for name in names)
    for key in ("type", "original_context_length", "attn_factor"):
        assert file.metadata.get(f"llama.rope.scaling.{key}") == second.metadata.get(f"llama.rope.scaling.{key}")
    bitconv.repack(tmp_path / "out.gguf", tmp_path / "f16.gguf", type="f16")
    assert bitconv.verify(tmp_path / "f16.gguf", against=llama.path).right


def trained(directory: Path, scaling: dict[str, Any]) -> Path:
    """The bundled Llama checkpoint in ternary floats, with this scaling."""
    model = with_several_scales(directory, None)
    config = json.loads((model / "config.json").read_text())
    config |= {"rope_scaling": scaling, "max_position_embeddings": CONTEXT}
    (model / "config.json").write_text(json.dumps(config))
    return model


def expected(model: Path, tokens: np.ndarray) -> np.ndarray:
    """transformers' logits after every token."""
    loaded = transformers.LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return loaded(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


@pytest.mark.parametrize("length", [100, 200])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_the_forward_pass_computes_what_transformers_computes(
    tmp_path: Path, scaling: dict[str, Any], length: int
) -> None:
    """Of two lists, texts of 100 tokens take the short one and texts of 200 the long one."""
    model = trained(tmp_path, scaling)
    bitconv.convert(model, tmp_path / "out.gguf", type="f32", embed_type="f32")
    tokens = np.random.default_rng(0).integers(0, 1280, length)
    gguf = read_gguf(tmp_path / "out.gguf")
    forward = ForwardPass(gguf, inspect_file(gguf), float_activations=True)
    logits = forward.logits(tokens, forward.new_cache(length))
    np.testing.assert_allclose(logits, expected(model, tokens), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("scaling", "where"),
    [
        ("one list", slice(None)),
        ("one list and a magnitude", slice(None)),
        # llama.cpp has room for 512 tokens here: more than 128, so that it takes the long list for all texts.
        ("two lists", slice(130, None)),
        ("two lists and no magnitude", slice(130, None)),
        ("two lists of which the short one is taken", slice(None)),
    ],
)
def test_llama_cpp_predicts_the_next_tokens_of_the_model(tmp_path: Path, scaling: str, where: slice) -> None:
    pytest.importorskip("xllamacpp")
    short = longrope(ONE, OTHER, factor=4.0, original_max_position_embeddings=CONTEXT)
    model = trained(tmp_path, SCALINGS.get(scaling, short))
    bitconv.convert(model, tmp_path / "out.gguf", type="f32", embed_type="f32", runner="llama.cpp")
    positions = list(range(255, real_runners.WINDOW * 4, 31))
    positions = [at for at in positions if at % real_runners.WINDOW in range(*where.indices(real_runners.WINDOW))]
    tokens, predicted = real_runners.llama_cpp(tmp_path / "out.gguf", positions)
    starts = [at // real_runners.WINDOW * real_runners.WINDOW for at in positions]
    logits = np.stack(
        [expected(model, tokens[start : at + 1])[-1] for start, at in zip(starts, positions, strict=True)]
    )
    reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert (np.exp(reference) * (reference - predicted)).sum(axis=1).mean() < 1e-4
