"""What the system refuses is a BitconvError in Python too, for every function that users call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bitconv
import pytest
from bitconv import BitconvError
from bitconv.commands.dummy import dummy
from bitconv.commands.kernel_config import kernel_config

from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "Llama3-1.58-tiny"

READERS: dict[str, Callable[[Path, Path], object]] = {
    "verify": lambda file, out: bitconv.verify(file),
    "repack": lambda file, out: bitconv.repack(file, out, type="tq2_0"),
    "export": lambda file, out: bitconv.export(file, out),
    "evaluate": lambda file, out: bitconv.evaluate(file, FIXTURES / "eval.txt"),
    "compare": lambda file, out: bitconv.compare(file, MODEL),
}
WRITERS: dict[str, Callable[[str], object]] = {
    "convert": lambda out: bitconv.convert(MODEL, out),
    "repack": lambda out: bitconv.repack(MODEL / "none.gguf", out, type="tq2_0"),
    "export": lambda out: bitconv.export(MODEL / "none.gguf", out),
    "kernel_config": lambda out: kernel_config(MODEL, out, type="tl2"),
    "dummy": lambda out: dummy(out, shape="2x256x512", stored="bf16"),
}


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.torch if c == "compare" else ()) for c in READERS]
)
def test_a_file_that_is_missing_or_a_directory(tmp_path: Path, command: str) -> None:
    if command == "compare":
        pytest.importorskip("torch")
    missing, directory = "No such file or directory", "is a directory, expected a file"
    for file, cause in ((tmp_path / "none.gguf", missing), (tmp_path, directory)):
        with pytest.raises(BitconvError) as error:
            READERS[command](file, tmp_path / "out")
        assert str(error.value) == f"{file}: {cause}"


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(("name", "cause"), [("a" * 300, "too long"), ("a\0b", "zero byte")])
def test_an_output_name_that_no_file_system_takes(tmp_path: Path, command: str, name: str, cause: str) -> None:
    with pytest.raises(BitconvError, match=cause):
        WRITERS[command](str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_directory_in_the_place_of_a_file_of_the_model(tmp_path: Path, name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (model.path / name).unlink(missing_ok=True)
    (model.path / name).mkdir()
    with pytest.raises(BitconvError) as error:
        bitconv.convert(model.path, tmp_path / "out.gguf")
    assert str(error.value) == f"{model.path / name}: is a directory, expected a file"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_an_integer_of_thousands_of_digits(tmp_path: Path, name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (model.path / name).write_text('{"hidden_size": ' + "9" * 5000 + "}")
    with pytest.raises(BitconvError, match=f"{name}: not valid JSON"):
        bitconv.convert(model.path, tmp_path / "out.gguf")
