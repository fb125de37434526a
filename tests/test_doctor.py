"""doctor: what is on this machine, and which project a program of a runner is of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import bitconv
import pytest
from bitconv import _kernels
from bitconv.cli import app
from bitconv.commands.doctor import program, runner_of
from typer.testing import CliRunner

SIGNS = {"ik_llama.cpp": b"iq2_bn", "bitnet.cpp": b"i2_s", "llama.cpp": b"tq2_0"}


def make_program(path: Path, prints: str, *names: bytes) -> Path:
    """A program that says its version, with a table of types behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"#!/bin/sh\nprintf '{prints}' >&2\nexit 0\n".encode() + b"\0".join([b"", *names, b""]))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("runner", "sign"), SIGNS.items())
def test_a_program_is_told_by_the_types_that_it_names(runner: str, sign: bytes, tmp_path: Path) -> None:
    """Each fork has those of the ones below it."""
    names = list(SIGNS.values())[list(SIGNS).index(runner) :]
    alone = make_program(tmp_path / "a" / "llama-cli", "version: 3957 (406a5036)\\nbuilt with cc", *names)
    found = program(alone)
    assert (found.name, found.runner, found.version) == ("llama-cli", runner, "3957 (406a5036)")
    beside = make_program(tmp_path / "build" / "bin" / "llama-cli", "version: 1")
    assert runner_of(beside) is None
    library = tmp_path / "build" / "ggml" / "src" / "libggml.so.1"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\0" + sign + b"\0")
    assert runner_of(beside) == runner
    (tmp_path / "link").symlink_to(beside)
    assert runner_of(tmp_path / "link") == runner


def test_programs_on_path_and_packages_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(tmp_path / "llama-server", "version: 7", b"tq2_0")
    (tmp_path / "llama-cli").write_text("no program")
    (tmp_path / "llama-cli").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    found = {runner.name: runner for runner in bitconv.doctor().runners}
    assert found["llama-server"] == bitconv.FoundRunner(
        "llama-server", "llama.cpp", "7", str(tmp_path / "llama-server")
    )
    assert found["llama-cli"].runner is None and found["llama-cli"].version is None
    assert found["llama-cli"].path == str(tmp_path / "llama-cli")


def test_it_tells_versions_and_what_extras_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    known = metadata.version

    def version(name: str) -> str:
        if name == "tokenizers":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    found = bitconv.doctor()
    assert (found.version, found.instruction_set) == (bitconv.__version__, _kernels.isa())
    assert found.packages["numpy"] == known("numpy") and "tokenizers" not in found.packages
    extras = {extra.name: extra for extra in found.extras}
    assert extras["eval"].versions == {"jinja2": known("jinja2"), "tokenizers": None} and not extras["eval"].installed
    result = CliRunner().invoke(app, ["doctor"])
    needed = f"for eval and generate: jinja2 {known('jinja2')}, tokenizers missing; pip install 'bitconv[eval]'"
    assert needed in result.stdout


def test_its_json_is_the_typed_result() -> None:
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert told["version"] == bitconv.__version__ and told["instruction_set"] in told["instruction_sets"]
    assert {extra["name"] for extra in told["extras"]} == {"eval", "report", "torch"}
