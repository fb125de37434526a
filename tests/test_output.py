"""What an output may take the place of, and what stays as it is."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import bitconv
import pytest
from bitconv import BitconvError
from bitconv.commands.dummy import dummy
from bitconv.commands.kernel_config import kernel_config

from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "Llama3-1.58-tiny"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    bitconv.convert(MODEL, tmp_path / "in" / "good.gguf")
    return tmp_path / "in" / "good.gguf"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket])
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out").stat()
    with pytest.raises(BitconvError, match="is a device, a pipe or a socket; name a file"):
        bitconv.convert(MODEL, tmp_path / "out", force=True)
    with pytest.raises(BitconvError, match="is a device, a pipe or a socket"):
        kernel_config(MODEL, tmp_path / "out", type="tl2", force=True)
    assert os.path.samestat(before, (tmp_path / "out").stat())


@pytest.mark.parametrize("force", [False, True])
def test_links_that_lead_in_a_circle_are_no_output(tmp_path: Path, good: Path, force: bool) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BitconvError, match="a: Too many levels of symbolic links"):
        bitconv.convert(MODEL, tmp_path / "a", force=force)
    with pytest.raises(BitconvError, match="a: cannot be written"):
        bitconv.export(good, tmp_path / "a", force=force)
    assert (tmp_path / "a").is_symlink()


def test_a_file_that_appears_during_the_conversion_is_kept(tmp_path: Path) -> None:
    def appear(done: int, total: int) -> None:
        (tmp_path / "out.gguf").write_text("precious")

    with pytest.raises(BitconvError, match="exists; pass force=True"):
        bitconv.convert(MODEL, tmp_path / "out.gguf", progress=appear)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "precious"


def test_a_directory_that_appears_while_another_is_written_is_kept(tmp_path: Path, good: Path) -> None:
    def appear(done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "file").write_text("precious")

    with pytest.raises(BitconvError, match="out: cannot be written: Directory not empty"):
        bitconv.export(good, tmp_path / "out", progress=appear)
    (tmp_path / "out" / "file").unlink()
    with pytest.raises(BitconvError, match="out: cannot be written: Directory not empty"):
        dummy(tmp_path / "out", shape="2x256x512", stored="bf16", progress=appear)
    assert (tmp_path / "out" / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def fill(good: Path, kind: str, directory: Path) -> None:
    if kind == "dummy":
        dummy(directory, shape="2x256x512", stored="bf16")
    else:
        bitconv.export(good, directory, force=kind == "force")


@pytest.mark.parametrize("kind", ["dummy", "export", "force"])
@pytest.mark.parametrize("name", ["out", ".", "link"])
def test_a_directory_that_exists_stays_the_same_one(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """A mount point cannot be replaced, and a shell in it would be left in a deleted directory."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to("out")
    if kind == "force":
        (out / "model-00001-of-00002.safetensors").write_text("of an earlier export")
    before = out.stat()
    monkeypatch.chdir(out if name == "." else tmp_path)
    fill(good, kind, Path(name))
    assert os.path.samestat(before, out.stat())
    files = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < files
    assert not [name for name in files if name.startswith((".", "model-"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link", "out"]


@pytest.mark.parametrize("kind", ["dummy", "export", "force"])
@pytest.mark.parametrize("failing", range(4))
def test_a_failed_move_leaves_the_directory_as_it_was(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, kind: str, failing: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "force":
        for name in ("config.json", "tokenizer.json"):
            (out / name).write_text("of an earlier export")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename, calls = Path.rename, []

    def fail(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BitconvError, match=f"^{re.escape(str(out))}: cannot be written: Input/output error"):
        fill(good, kind, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("kind", "call"), [("export", "os.posix_fallocate"), ("dummy", "pathlib.Path.write_bytes")])
def test_a_temporary_name_is_in_no_message(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    def fail(file: object, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *([file] if isinstance(file, Path) else []))

    monkeypatch.setattr(call, fail)
    with pytest.raises(BitconvError, match=f"^{re.escape(str(tmp_path / 'out'))}/[a-z_.]+: .*No space left"):
        fill(good, kind, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path, good: Path) -> None:
    bitconv.convert(MODEL, tmp_path / ("a" * 255))
    bitconv.export(good, tmp_path / ("b" * 255))
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "b", "i"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_an_input_is_not_replaced(tmp_path: Path, good: Path, link: Callable[[Path, Path], None]) -> None:
    kernel_config(MODEL, tmp_path / "k.ini", type="tl2")
    link(good, tmp_path / "out.gguf")
    link(tmp_path / "k.ini", tmp_path / "other.ini")
    inputs = good.read_bytes(), (tmp_path / "k.ini").read_bytes()
    with pytest.raises(BitconvError, match="is the input itself; name another output"):
        bitconv.repack(good, tmp_path / "out.gguf", type="tq2_0", force=True)
    for output in (tmp_path / "k.ini", tmp_path / "other.ini"):
        with pytest.raises(BitconvError, match="is the input itself; name another output"):
            bitconv.repack(good, output, type="tl2", kernel_config=tmp_path / "k.ini", force=True)
        with pytest.raises(BitconvError, match="is the input itself; name another output"):
            bitconv.convert(MODEL, output, type="tl2", kernel_config=tmp_path / "k.ini", force=True)
    assert inputs == (good.read_bytes(), (tmp_path / "k.ini").read_bytes())


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "README.md", "additional_chat_templates/tool.jinja"]
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_file_of_the_checkpoint_is_not_replaced(tmp_path: Path, name: str, cached: bool) -> None:
    """cached: the model directory holds links, as in the Hub's cache."""
    model = make_checkpoint(tmp_path / "model", "llama").path
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).touch()
    if cached:
        blob = tmp_path / "models--of--somebody" / "blobs" / ("0" * 64)
        blob.parent.mkdir(parents=True)
        (model / name).rename(blob)
        (model / name).symlink_to(blob)
    before = (model / name).read_bytes()
    for output in (model / name, tmp_path / "link"):
        if output != model / name:
            output.symlink_to(model / name)
        with pytest.raises(BitconvError, match="is a file of the checkpoint itself"):
            bitconv.convert(model, output, force=True)
        with pytest.raises(BitconvError, match="is a file of the checkpoint itself"):
            kernel_config(model, output, type="tl2", force=True)
    assert (model / name).read_bytes() == before


def test_what_stands_in_the_model_directory_is_written_again(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=1024).path
    for _ in range(2):
        bitconv.convert(model, model / "out.gguf", force=True)
        kernel_config(model, model / "kernel_config.ini", type="tl2", force=True)
