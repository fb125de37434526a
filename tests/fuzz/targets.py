"""What is fuzzed: for each kind of file a seed that is right, and a function that reads bytes in its place."""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import bitconv
from bitconv import BitconvError
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.model_card import read_card
from bitconv.checkpoint.torch_files import read_index
from bitconv.models.model import load_model
from bitconv.tokenizer import tokenizer_metadata

from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "Llama3-1.58-tiny"


class Target(NamedTuple):
    seed: Callable[[], bytes]
    read: Callable[[bytes], None]


@cache
def _work() -> Path:
    path = tempfile.mkdtemp(prefix="bitconv-fuzz-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@cache
def _model() -> Path:
    return make_checkpoint(_work() / "model", "llama", packed=False).path


def _in_model(name: str, data: bytes, read: Callable[[Path], object]) -> None:
    """Read the model with these bytes in place of one of its files."""
    file = _model() / name
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(data)
    try:
        read(_model())
    except BitconvError:
        pass
    finally:
        file.unlink()
        if before is not None:
            file.write_bytes(before)


def _load(model: Path) -> None:
    with Checkpoint(model) as checkpoint:
        load_model(checkpoint)


def _gguf_seed() -> bytes:
    bitconv.convert(_model(), _work() / "seed.gguf", force=True)
    return (_work() / "seed.gguf").read_bytes()


def _read_gguf(data: bytes) -> None:
    (_work() / "in.gguf").write_bytes(data)
    try:
        bitconv.verify(_work() / "in.gguf", threads=1)
    except BitconvError:
        return


def _bin_seed() -> bytes:
    """As torch.save writes it: a zip archive of a pickle and the bytes of a storage. Made once, without torch here."""
    return (Path(__file__).parent / "corpus" / "bin" / "seed").read_bytes()


def _read_bin(data: bytes) -> None:
    (_work() / "in.bin").write_bytes(data)
    try:
        read_index(_work() / "in.bin")
    except BitconvError:
        return


def _read_card(data: bytes) -> None:
    (_work() / "README.md").write_bytes(data)
    try:
        read_card(_work())
    except BitconvError:
        return


def _safetensors_seed() -> bytes:
    return (_model() / "model.safetensors").read_bytes()


def _tokens(model: Path) -> None:
    config = json.loads((model / "config.json").read_bytes())
    tokenizer_metadata(model, config)


CARD = b"---\nlicense: mit\nversion: 1.0\nbase_model:\n- someone/model\ntags: [a, 'b']\nlanguage:\n- no\n---\n# Toy\n"

TARGETS = {
    "gguf": Target(_gguf_seed, _read_gguf),
    "safetensors": Target(_safetensors_seed, lambda data: _in_model("model.safetensors", data, _load)),
    "bin": Target(_bin_seed, _read_bin),
    "config": Target(
        lambda: (_model() / "config.json").read_bytes(), lambda data: _in_model("config.json", data, _load)
    ),
    "tokenizer": Target(
        lambda: (_model() / "tokenizer.json").read_bytes(), lambda data: _in_model("tokenizer.json", data, _tokens)
    ),
    "card": Target(lambda: CARD, _read_card),
}

# What numbers in headers are replaced by, in little endian.
NUMBERS = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)] + [b"\xff", b"\0", b"\x80"]
TOKENS = [b"null", b"-1", b"1e999", b"[]", b"{}", b'""', b"9" * 400, b'"\\ud800"', b"true", b"[[[[", b"NaN", b"0.5"]
