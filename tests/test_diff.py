"""diff: what differs between two models, and that another layout is no other model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from typer.testing import CliRunner

from synthetic import Synthetic, make_checkpoint
from test_open import FORMS
from test_verify import Rebuilt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m", "llama", dtype="f16", hidden=512, ffn=512, heads=8)


@pytest.fixture(scope="module")
def file(model: Synthetic) -> Path:
    path = model.path.parent / "i2_s.gguf"
    bitconv.convert(model.path, path)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["diff", *map(str, arguments)])
    return result.exit_code, result.stdout


@pytest.mark.parametrize(("family", "type_name", "stored"), FORMS)
def test_a_file_is_its_checkpoint(family: str, type_name: str, stored: dict[str, Any], tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", family, dtype="f16", **stored)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    for pair in ((tmp_path / "out.gguf", model.path), (model.path, tmp_path / "out.gguf"), (model.path, model.path)):
        found = bitconv.diff(*pair)
        assert found.same and not found.metadata and not found.missing, found
        assert found.compared == len(model.trits) + len(model.dense)
        assert found.verdict == ("the same model" if pair[0] == pair[1] else "the same model in other types")


@pytest.mark.parametrize("options", [{"type": "tq1_0"}, {"type": "iq2_bn"}, {"type": "f32"}, {"embed_type": "f32"}])
def test_the_same_model_in_another_layout_is_the_same(
    model: Synthetic, file: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    bitconv.convert(model.path, tmp_path / "other.gguf", **options)
    found = bitconv.diff(file, tmp_path / "other.gguf")
    assert found.same and sum(found.retyped.values()) == len(found.tensors)
    assert run(file, tmp_path / "other.gguf")[0] == 0


def test_every_change_is_counted(model: Synthetic, file: Path, tmp_path: Path) -> None:
    rebuilt = Rebuilt(file)
    trits = rebuilt.tensor("blk.0.ffn_down.weight")
    codes = np.frombuffer(trits[3], np.uint8)
    changed = codes.copy()
    changed[:3] = (codes[:3] & 0xFC) | ((codes[:3] & 3) + 1) % 3  # the lowest code of each byte
    trits[3] = changed.tobytes()
    scale = rebuilt.tensor("blk.1.attn_k.weight")
    size = scale[1][0] * scale[1][1] // 4
    stored = np.frombuffer(scale[3][size : size + 4], "<f4")
    scale[3] = scale[3][:size] + (stored * np.float32(1.25)).tobytes() + scale[3][size + 4 :]
    norm = rebuilt.tensor("output_norm.weight")
    values = np.frombuffer(norm[3], "<f4").copy()
    values[[3, 7]] += np.float32(0.5)
    norm[3] = values.tobytes()
    rebuilt.metadata["llama.rope.freq_base"] = np.float32(7)
    rebuilt.metadata["tokenizer.ggml.extra"] = "x"
    rebuilt.metadata["general.name"] = "another name"  # by which nothing is computed
    del rebuilt.metadata["tokenizer.ggml.pre"]
    other = rebuilt.write(tmp_path / "other.gguf")
    found = bitconv.diff(file, other)
    told = {tensor.name: (tensor.trits, tensor.scale, tensor.others, tensor.largest) for tensor in found.tensors}
    assert told == {
        "blk.0.ffn_down.weight": (3, 0, 0, 0),
        "blk.1.attn_k.weight": (0, pytest.approx(0.25), 0, 0),
        "output_norm.weight": (0, 0, 2, pytest.approx(0.5, rel=1e-6)),
    }
    assert found.metadata == {
        "llama.rope.freq_base": ("50000.0", "7.0"),
        "tokenizer.ggml.extra": (None, "x"),
        "tokenizer.ggml.pre": ("llama-bpe", None),
    }
    code, out = run(file, other)
    assert code == 1
    assert out.splitlines()[-1] == f"{file} and {other}: 3 of 21 tensors differ; 3 metadata keys differ"
    assert "blk.0.ffn_down.weight            3 of 262,144 trits" in out
    assert "blk.1.attn_k.weight              scales off by 0.25" in out
    assert "tokenizer.ggml.pre: llama-bpe and none" in out
    shown = json.loads(run(file, other, "--json")[1])
    assert shown["same"] is False and len(shown["tensors"]) == 3


def test_rounded_scales_are_another_model_s_and_its_size_is_told(model: Synthetic, tmp_path: Path) -> None:
    for name, in_blocks in (("a.gguf", False), ("b.gguf", True)):
        bitconv.convert(model.path, tmp_path / name, type="tq2_0", scale_in_blocks=in_blocks)
    found = bitconv.diff(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert not found.same and found.missing == {}
    assert {tensor.trits for tensor in found.tensors} == {0}
    assert 0 < max(tensor.scale for tensor in found.tensors) < 1e-3


def test_tensors_of_one_alone_and_of_other_shapes(model: Synthetic, file: Path, tmp_path: Path) -> None:
    larger = make_checkpoint(tmp_path / "larger", "llama", hidden=512, ffn=768, heads=8, layers=3)
    found = bitconv.diff(file, larger.path)
    assert {name for name, i in found.missing.items() if i == 1} == {
        n for n in larger.trits | larger.dense if "k.2." in n
    }
    shapes = {tensor.name: tensor.shapes for tensor in found.tensors}
    assert shapes["blk.0.ffn_up.weight"] == ((512, 512), (768, 512))
    assert "blk.0.ffn_up.weight              shape 512x512 and 768x512" in run(file, larger.path)[1]


def test_a_scale_of_zeros_plays_no_part(tmp_path: Path) -> None:
    """A tensor of zeros keeps its scale in some layouts, and loses it in others."""
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", hidden=512, ffn=512, heads=8)
    shutil.copytree(model.path, tmp_path / "zeros")
    from safetensors.numpy import load_file, save_file

    stored = load_file(tmp_path / "zeros" / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight"][:] = 0
    save_file(stored, tmp_path / "zeros" / "model.safetensors")
    for name, type_name in (("a.gguf", "i2_s"), ("b.gguf", "iq2_bn")):
        bitconv.convert(tmp_path / "zeros", tmp_path / name, type=type_name, embed_type="f32")
    assert bitconv.diff(tmp_path / "a.gguf", tmp_path / "b.gguf").same
    changed = bitconv.diff(model.path, tmp_path / "a.gguf").tensors
    assert next(tensor.name for tensor in changed if not tensor.same_values) == "blk.0.ffn_up.weight"


def test_what_cannot_be_read_is_one_line(file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["diff", str(file), str(tmp_path / "none.gguf")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "none.gguf" in result.stderr
