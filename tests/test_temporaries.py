"""What processes that were killed leave behind, and who removes it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bitconv
import pytest
from bitconv.system import temporaries
from bitconv.system.output import replacing, replacing_directory

from synthetic import FIXTURES

MODEL = FIXTURES / "Llama3-1.58-tiny"
DEAD = ".bitconv-0123456789abcdef.tmp"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("good") / "good.gguf"
    bitconv.convert(MODEL, file)
    return file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def killed(code: str, *arguments: object) -> None:
    """Run Python code that kills its own process."""
    text = f"import bitconv, os, signal, sys\ndef kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n{code}"
    result = subprocess.run([sys.executable, "-c", text, *map(str, arguments)], timeout=60)
    assert result.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, good: Path) -> None:
    killed("bitconv.convert(sys.argv[1], sys.argv[2], progress=kill)", MODEL, tmp_path / "out.gguf")
    assert len(names(tmp_path)) == 1
    bitconv.convert(MODEL, tmp_path / "out.gguf")
    assert names(tmp_path) == ["out.gguf"]
    killed("bitconv.export(sys.argv[1], sys.argv[2], progress=kill)", good, tmp_path / "out")
    assert len(names(tmp_path)) == 2
    (tmp_path / "out").mkdir()
    killed("bitconv.export(sys.argv[1], sys.argv[2], progress=kill)", good, tmp_path / "out")
    assert len(names(tmp_path / "out")) == 1
    bitconv.export(good, tmp_path / "out")
    assert names(tmp_path) == ["out", "out.gguf"] and "config.json" in names(tmp_path / "out")
    assert not [name for name in names(tmp_path / "out") if name.startswith(".")]


def test_what_a_living_process_writes_is_kept(tmp_path: Path) -> None:
    with replacing(tmp_path / "a", 1), replacing_directory(tmp_path / "b"):
        alive = names(tmp_path)
        assert len(alive) == 2
        bitconv.convert(MODEL, tmp_path / "out.gguf")
        assert names(tmp_path) == sorted([*alive, "out.gguf"])
    assert names(tmp_path) == ["a", "b", "out.gguf"]


def test_only_temporaries_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    (tmp_path / DEAD).write_text("dead")
    held = tmp_path / DEAD.replace("0", "1")
    held.write_text("held")
    others = [".bitconv-notes.txt", "bitconv-0123456789abcdef.tmp", ".bitconv-0123456789ABCDEF.tmp"]
    for name in others:
        (tmp_path / name).touch()
    link = tmp_path / DEAD.replace("0", "2")
    link.symlink_to(tmp_path / others[0])
    os.mkfifo(tmp_path / DEAD.replace("0", "3"))
    before = names(tmp_path)
    with held.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        temporaries.remove_dead(tmp_path)
    assert names(tmp_path) == [name for name in before if name != DEAD]


@pytest.mark.slow
@pytest.mark.parametrize("moved", range(7))
def test_an_export_that_is_killed_between_two_moves(tmp_path: Path, good: Path, moved: int) -> None:
    """The directory holds the old files or the new ones, once the next run has been there, and never some of each."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (out / name).write_text("old")
    code = f"""
import pathlib
rename, calls = pathlib.Path.rename, []
def renaming(source, target):
    calls.append(source)
    if len(calls) > {moved}:
        kill()
    return rename(source, target)
pathlib.Path.rename = renaming
bitconv.export(sys.argv[1], sys.argv[2], force=True)"""
    killed(code, good, out)
    temporaries.remove_dead(out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    if moved < 4:
        assert files == dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), b"old")
    else:
        bitconv.export(good, tmp_path / "right")
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "right").iterdir()}


@pytest.mark.parametrize("point", ["_lock", "os.open"])
@pytest.mark.parametrize("make", [lambda path: replacing(path, 1), replacing_directory])
def test_an_interrupt_as_soon_as_there_is_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, make: Callable
) -> None:
    module, name = (os, "open") if point == "os.open" else (temporaries, "_lock")
    function = getattr(module, name)

    def interrupt(*arguments: object) -> None:
        function(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "out"):
        pass
    monkeypatch.undo()
    assert names(tmp_path) == []


FEW_DESCRIPTORS = """
import bitconv, os, pathlib, resource, sys
verb, source, out = getattr(bitconv, sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
verb(source, out / "warm")  # all is imported
failed = 0
for limit in range(3, 30):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    try:
        verb(source, out / "out")
    except bitconv.BitconvError as error:
        assert "Too many open files" in str(error), error
        failed += 1
    else:
        break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert os.listdir(out) == ["warm"], os.listdir(out)
assert failed >= 2 and (out / "out").exists()
"""


@pytest.mark.parametrize("verb", ["convert", "export"])
def test_few_file_descriptors(tmp_path: Path, good: Path, verb: str) -> None:
    """Whatever the number at which it fails, nothing is left."""
    source = {"convert": MODEL, "export": good}[verb]
    result = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, verb, source, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_an_export_makes_its_directory(tmp_path: Path, good: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", "from bitconv.cli import main; main()", "export", good, tmp_path / "out"]
    (tmp_path / "out").mkdir()
    for _ in range(3):

        def default() -> None:
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)

        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=default) as process:
            while process.poll() is None and not any((tmp_path / "out").iterdir()):
                pass
            process.send_signal(number)
        assert not [name for name in names(tmp_path / "out") if name.startswith(".")]
        if names(tmp_path / "out"):
            break
