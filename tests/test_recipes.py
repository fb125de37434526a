"""A family and a runner are registered in one place: made-up ones convert, and their files verify."""

from __future__ import annotations

from pathlib import Path

import bitconv
import pytest
from bitconv import runners
from bitconv.models import families
from bitconv.models.architectures import LLAMA
from bitconv.models.families import Family
from bitconv.runners import Runner

from synthetic import make_checkpoint


def test_a_family_that_is_listed_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = Family(name="Made up", hf_architecture="MadeUpForCausalLM", architecture=LLAMA, native=False)
    monkeypatch.setattr(families, "FAMILIES", (made_up, *families.FAMILIES))
    model = make_checkpoint(tmp_path / "model", "llama")
    model.rewrite_config(architectures=["MadeUpForCausalLM"])
    assert bitconv.convert(model.path, tmp_path / "out.gguf").family == "Made up"
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_a_runner_that_is_listed_is_written_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = Runner(
        "made-up.cpp",
        "2027",
        activations={"llama": "silu"},
        types={"q2_0": 41},
        type_ids={"q2_0": 42},
        run="made-up {}",
        home="https://example.org/made-up",
        scale_tensors=True,
        preferred=True,
    )
    monkeypatch.setattr(runners, "RUNNERS", (made_up, *runners.RUNNERS))
    model = make_checkpoint(tmp_path / "model", "llama")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    assert (result.runner, result.exact_scales) == ("made-up.cpp", True)
    assert result.run.startswith("made-up ")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
