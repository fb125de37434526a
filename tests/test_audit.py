"""bitconv audit: what it counts, against counts by PyTorch's own arithmetic; what it says of releases; its failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.system.errors import BitconvError
from typer.testing import CliRunner

from conftest import FIXTURES
from synthetic import Synthetic, make_checkpoint, pack_hf, round_to_bf16, write_safetensors
from test_arithmetic import float_types, latents, stated, stored_floats, torch_codes

TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def masters(path: Path, dtype: str, family: str = "llama") -> Synthetic:
    """Latents around every threshold."""
    model = make_checkpoint(path, family, packed=False, marked=False, layers=1, head_dim=64)
    tensors = stored_floats(model)
    for seed, name in enumerate(sorted(tensors)):
        if "_proj.weight" in name or "experts" in name:
            tensors[name] = latents(dtype, 0.01 * (1 + seed), *tensors[name].shape, seed)
    write_safetensors(path / "model.safetensors", tensors, dtype)
    return model


def release_of(model: Synthetic, path: Path, codes_of: Any) -> Synthetic:
    """A packed Llama whose codes are what a function makes of the latents."""
    stored = stored_floats(model)
    packed = {name for name in stored if "_proj" in name}
    for name in packed:
        stored[name] = pack_hf(codes_of(stored[name]))
        stored[name.replace("weight", "weight_scale")] = np.array([64], np.float32)
    release = make_checkpoint(path, "llama", layers=1, head_dim=64)
    write_safetensors(path / "model.safetensors", stored, "bf16", packed)
    return release


def bfloat16_codes(values: np.ndarray) -> np.ndarray:
    import torch

    return stated(torch.from_numpy(values).bfloat16())[0].to(torch.int8).numpy()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_counts_are_those_of_pytorchs_own_arithmetic(tmp_path: Path, dtype: str) -> None:
    import torch

    model = masters(tmp_path / "model", dtype)
    result = bitconv.audit(model.path)
    assert result.holds == {kind: name for name, kind in TYPES.items()}[dtype]
    weights = {name: value for name, value in stored_floats(model).items() if "_proj" in name}
    assert {tensor.name for tensor in result.tensors} == weights.keys()
    assert result.codes == sum(value.size for value in weights.values())
    for tensor in result.tensors:
        weight = torch.from_numpy(weights[tensor.name]).to(float_types()[dtype])
        codes = {}
        for name, kind in TYPES.items():
            codes[name], mean = torch_codes(weight, float_types()[kind])
            away, _ = torch_codes(weight, float_types()[kind], away=True)
            assert tensor.ties[name] == (away != codes[name]).sum()
            codes[f"{name}, half away from zero"] = away
            if name == "float32":
                assert tensor.scale == float(mean)
        assert tensor.differ == {name: (other != codes["float32"]).sum() for name, other in codes.items()}
        # Around the threshold, which lies between the largest magnitude that is 0 and the least that is none.
        magnitudes = np.abs(weights[tensor.name].astype(np.float64))
        ratios = magnitudes / (tensor.scale / 2)
        edges = [0, 0.75, 0.9375, 0.984375, 0.99609375, 1, 1.00390625, 1.015625, 1.0625, 1.25, np.inf]
        counts, _ = np.histogram(ratios, edges)
        found = np.array(tensor.distances)
        assert np.abs((found - counts)[[0, 1, 2, 3, 6, 7, 8, 9]]).max() <= 0.001 * magnitudes.size
        assert sum(tensor.distances) == magnitudes.size
        assert sum(tensor.distances[5:]) == (codes["float32"] != 0).sum()
        patterns = weight.abs().view(torch.int32 if dtype == "f32" else torch.int16).numpy()
        zero, least = patterns[codes["float32"] == 0].max(), patterns[codes["float32"] != 0].min()
        assert zero == least - 1  # the latents lie that close
        assert tensor.near == np.isin(patterns, (zero, least)).sum()
    assert result.differ == {name: sum(t.differ[name] for t in result.tensors) for name in result.differ}
    assert result.differ["bfloat16"] > 0 and result.ties["bfloat16"] > 0


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("form", ["packed", "gguf"])
def test_the_arithmetic_that_made_a_release_is_told(tmp_path: Path, dtype: str, form: str) -> None:
    model = masters(tmp_path / "model", dtype)
    release: Path = release_of(model, tmp_path / "release", bfloat16_codes).path
    if form == "gguf":
        bitconv.convert(release, tmp_path / "release.gguf")
        release = tmp_path / "release.gguf"
    result = bitconv.audit(model.path, against=release)
    assert result.against is not None
    assert (result.explained_by, result.against["bfloat16"]) == ("bfloat16", 0)
    assert result.against["float32"] == result.differ["bfloat16"] > 0
    assert f"{release} was made in bfloat16 (absmean-bf16): none of the codes differ" in result.verdict[-1]


@pytest.mark.torch
def test_a_few_codes_that_no_arithmetic_makes_are_counted(tmp_path: Path) -> None:
    model = masters(tmp_path / "model", "bf16")

    def changed(values: np.ndarray) -> np.ndarray:
        codes = bfloat16_codes(values)
        codes[5, :3] = (codes[5, :3] + 2) % 3 - 1
        return codes

    result = bitconv.audit(model.path, against=release_of(model, tmp_path / "release", changed).path)
    assert result.against is not None and result.against["bfloat16"] == 3 * 7
    assert "is nearest to bfloat16 (absmean-bf16)" in result.verdict[-1]


@pytest.mark.torch
def test_a_release_of_other_latents_is_told(tmp_path: Path) -> None:
    model = masters(tmp_path / "model", "bf16")
    release = make_checkpoint(tmp_path / "release", "llama", layers=1, head_dim=64, seed=9)
    assert "is of other latents" in bitconv.audit(model.path, against=release.path).verdict[-1]


@pytest.mark.torch
def test_fused_and_interleaved_rows_of_the_gpu_pipeline_are_compared_with_the_model(tmp_path: Path) -> None:
    from test_gpu_pipeline import make_pipeline_checkpoint

    fused = make_pipeline_checkpoint(tmp_path / "gpu", "master")
    plain = make_checkpoint(tmp_path / "plain", "microsoft", packed=True)
    result = bitconv.audit(fused.path, against=plain.path)
    assert result.against is not None and result.against["float32"] == 0
    assert any("[" in tensor.name for tensor in result.tensors)


def test_experts_are_audited_one_by_one(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "mixtral", packed=False, hidden=256, ffn=512, layers=1)
    online = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    model.rewrite_config(quantization_config=model.config["quantization_config"] | online)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")
    result = bitconv.audit(model.path, against=tmp_path / "out.gguf")
    assert result.against is not None and result.against["float32"] == 0
    names = [tensor.name for tensor in result.tensors]
    assert sum("experts" in name for name in names) == 12 and len(set(names)) == len(names)


def test_float32_that_holds_bfloat16_is_told(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)
    from safetensors.numpy import load_file

    tensors = {name: round_to_bf16(value) for name, value in load_file(model.path / "model.safetensors").items()}
    write_safetensors(model.path / "model.safetensors", tensors, "f32")
    result = bitconv.audit(model.path)
    assert result.holds == "bfloat16" and "bfloat16, stored as float32" in result.verdict[0]


def test_trained_latents_gather_around_their_thresholds() -> None:
    result = bitconv.audit(FIXTURES / "bitnet_b1_58-tiny")
    assert result.differ["bfloat16"] > 0.01 * result.codes
    nearest, beside = sum(result.distances[4:6]), sum(result.distances[3:7])
    assert nearest / (1 / 256) > beside / (1 / 64)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_depends_on_no_number_of_threads(tmp_path: Path, threads: int) -> None:
    model = FIXTURES / "bitnet_b1_58-tiny"
    bitconv.convert(model, tmp_path / "out.gguf")
    done: list[tuple[int, int]] = []
    result = bitconv.audit(
        model, against=tmp_path / "out.gguf", threads=threads, progress=lambda *now: done.append(now)
    )
    assert result == bitconv.audit(model, against=tmp_path / "out.gguf")
    assert result.against is not None and result.against["float32"] == 0
    assert done[-1][0] == done[-1][1] == result.codes * 4


@pytest.mark.parametrize("form", ["packed", "ternary"])
def test_without_float_latents_one_line_says_so(tmp_path: Path, form: str) -> None:
    model = FIXTURES / "Llama3-1.58-tiny"
    if form == "ternary":
        model = make_checkpoint(tmp_path / "model", "llama", ternary_floats=True, layers=1).path
    result = CliRunner().invoke(app, ["audit", str(model)])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "holds no float latents" in result.stderr and "name the checkpoint of float master" in result.stderr


def test_a_release_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, marked=False, layers=2)
    release = make_checkpoint(tmp_path / "release", "llama", layers=1)
    with pytest.raises(BitconvError, match=r"has no blk.1.attn_q.weight of shape \(256, 256\)"):
        bitconv.audit(model.path, against=release.path)


def test_the_command_prints_what_the_function_returns(tmp_path: Path) -> None:
    model = FIXTURES / "bitnet_b1_58-tiny"
    bitconv.convert(model, tmp_path / "out.gguf")
    arguments = ["audit", str(model), "--against", str(tmp_path / "out.gguf")]
    result = CliRunner().invoke(app, [*arguments, "--verbose"])
    expected = bitconv.audit(model, against=tmp_path / "out.gguf")
    assert result.exit_code == 0
    for text in (*expected.verdict, *(tensor.name for tensor in expected.tensors)):
        assert text in result.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["differ"] == expected.differ and found["verdict"] == list(expected.verdict)
