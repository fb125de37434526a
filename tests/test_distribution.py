"""What people get who install bitconv: the sdist, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import bitconv
import pytest

ROOT = Path(__file__).parent.parent
TOP = f"bitconv-{bitconv.__version__}"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tarfile.TarFile:
    directory = tmp_path_factory.mktemp("sdist")
    build = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(directory)], cwd=ROOT, check=True, capture_output=True)
    return tarfile.open(directory / f"{TOP}.tar.gz")


@pytest.fixture(scope="module")
def metadata(sdist: tarfile.TarFile) -> Message:
    stream = sdist.extractfile(f"{TOP}/PKG-INFO")
    assert stream is not None
    return Parser().parsestr(stream.read().decode())


def test_an_sdist_holds_all_that_the_tests_read(sdist: tarfile.TarFile) -> None:
    there = {name.removeprefix(f"{TOP}/") for name in sdist.getnames()}
    for directory in ("bitconv", "docs", "fixtures", "kernels", "tests"):
        files = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / directory).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith("_kernels.")
        }
        assert files <= there, directory
    assert {"Makefile", "LICENSE", "CHANGELOG.md", ".ci/run", ".mkdocs.yml"} <= there


def test_an_sdist_holds_nothing_that_was_built(sdist: tarfile.TarFile) -> None:
    built = [
        name
        for name in sdist.getnames()
        if Path(name).suffix in (".so", ".pyc", ".whl") or {"build", ".venv", ".git"} & set(Path(name).parts)
    ]
    assert built == []


def test_the_metadata_says_what_the_package_is(metadata: Message) -> None:
    assert metadata["Name"] == "bitconv"
    assert metadata["Version"] == bitconv.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Programming Language :: Python :: 3.10" in metadata.get_all("Classifier", [])


def test_who_only_converts_installs_neither_torch_nor_what_tests_need(metadata: Message) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not any(line.startswith(("torch", "transformers", "pytest", "matplotlib")) for line in needed)
