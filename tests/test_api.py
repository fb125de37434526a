"""The Python API as help() shows it: the examples run, and the sections name every parameter."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitconv
import pytest

from synthetic import FIXTURES

VERBS = [
    "audit",
    "compare",
    "convert",
    "diff",
    "doctor",
    "dummy",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "kernel_config",
    "open",
    "repack",
    "report",
    "try_runner",
    "verify",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "llama.gguf"
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", path)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_run(verb: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(file, tmp_path)
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    monkeypatch.chdir(tmp_path)
    (examples,) = doctest.DocTestFinder(recurse=False).find(getattr(bitconv, verb), verb, globs={"bitconv": bitconv})
    assert examples.examples
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize("verb", VERBS)
def test_the_docstring_names_every_parameter(verb: str) -> None:
    function: Callable[..., Any] = getattr(bitconv, verb)
    text = inspect.getdoc(function) or ""
    described = text.partition("Args:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (\w+): ", described, re.MULTILINE) == list(inspect.signature(function).parameters)
    assert "\nReturns:\n" in text and "\nRaises:\n    BitconvError: " in text


def test_dir_lists_the_api() -> None:
    assert set(VERBS) <= set(dir(bitconv))
    assert all(hasattr(bitconv, name) for name in dir(bitconv))
