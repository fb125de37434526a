"""Checkpoints that torch.save wrote: read as their safetensors twins are, without torch and without trusting them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import bitconv
import numpy as np
import pytest
import torch
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.torch_files import read_index
from bitconv.system.errors import BitconvError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from synthetic import Synthetic, make_checkpoint

pytestmark = pytest.mark.torch


def as_bin(model: Synthetic, *, shards: int = 1) -> None:
    """Put pytorch_model.bin, or shards and their index, in the place of model.safetensors."""
    tensors = load_file(model.path / "model.safetensors")
    (model.path / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, model.path / "pytorch_model.bin")
        return
    weight_map = {}
    for shard in range(shards):
        names = sorted(tensors)[shard::shards]
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        torch.save({name: tensors[name] for name in names}, model.path / file)
        weight_map |= dict.fromkeys(names, file)
    (model.path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def stored_bytes(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What read_index finds, with the bytes that lie there."""
    data = file.read_bytes()
    found = {}
    for name, dtype, shape, offset in read_index(file):
        itemsize = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2}.get(dtype, 1)
        found[name] = dtype, shape, data[offset : offset + itemsize * int(np.prod(shape, dtype=int))]
    return found


def refused(file: Path, *words: str) -> None:
    with pytest.raises(BitconvError) as error:
        read_index(file)
    assert "\n" not in str(error.value)
    for word in (str(file), *words):
        assert word in str(error.value)


def rewrite(file: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again with members changed, or left out where `change` returns None."""
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            changed = change(name.partition("/")[2], data)
            if changed is not None:
                archive.writestr(name, changed)


def with_pickle(file: Path, data: bytes) -> Path:
    """A torch file with this pickle in it, and one storage of 6 float32."""
    torch.save({"weight": torch.zeros(2, 3)}, file)
    rewrite(file, lambda name, old: data if name == "data.pkl" else old)
    return file


class Call:
    """Pickled, it is a call of `function` when it is loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("1bitllm", {"dtype": "f32"}),
        ("1bitllm", {"dtype": "f16"}),
        ("microsoft", {"packed": False}),
        ("llama", {}),
        ("llama", {"scalar_scale": True}),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_bin_checkpoint_converts_as_its_safetensors_twin(
    tmp_path: Path, family: str, options: dict, shards: int
) -> None:
    model = make_checkpoint(tmp_path / "model", family, **options)
    bitconv.convert(model.path, tmp_path / "safetensors.gguf")
    as_bin(model, shards=shards)
    bitconv.convert(model.path, tmp_path / "bin.gguf")
    assert (tmp_path / "bin.gguf").read_bytes() == (tmp_path / "safetensors.gguf").read_bytes()
    assert bitconv.verify(tmp_path / "bin.gguf", against=model.path).right


def test_safetensors_wins_over_bin(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (model.path / "pytorch_model.bin").write_text("not read")
    with Checkpoint(model.path) as checkpoint:
        assert {tensor.file.name for tensor in checkpoint.tensors.values()} == {"model.safetensors"}


def test_a_bin_checkpoint_needs_no_torch(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    as_bin(model)
    script = "import sys; sys.modules['torch'] = None; import bitconv; bitconv.convert(*sys.argv[1:])"
    command = [sys.executable, "-c", script, str(model.path), str(tmp_path / "out.gguf")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_every_tensor_is_found_where_torch_put_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fused = torch.randn(6, 4)
    dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {name: (torch.randn(3, 5) * 9).to(getattr(torch, name)) for name in dtypes}
    tensors |= {"fused": fused, "rows": fused[2:5], "tied": fused, "scalar": torch.tensor(2.5), "none": torch.zeros(0)}
    # A dimension of one element has no stride that could matter.
    tensors |= {"column": torch.arange(7.0)[:, None].t(), "one": fused[1:2, 1:2].t()}
    torch.save(tensors, tmp_path / "x.bin")
    found = stored_bytes(tmp_path / "x.bin")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        values = torch.tensor(tensor.flatten().tolist(), dtype=tensor.dtype)
        assert found[name][1:] == (tuple(tensor.shape), values.view(torch.uint8).numpy().tobytes())
    ours = ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"]
    assert [found[name][0] for name in dtypes] == ours


def test_parameters_and_module_metadata_are_taken_for_their_tensors(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    marked = torch.nn.Parameter(torch.arange(4.0))
    marked.note = "a tensor with an attribute"
    state = module.state_dict(keep_vars=True)
    state["marked"] = marked
    state["noted"] = torch.arange(3.0)
    state["noted"].note = "no parameter, but with an attribute"
    assert isinstance(state, OrderedDict) and state._metadata
    torch.save(state, tmp_path / "x.bin")
    found = stored_bytes(tmp_path / "x.bin")
    assert found["weight"] == ("f32", (2, 3), module.weight.detach().numpy().tobytes())
    assert found["marked"] == ("f32", (4,), marked.detach().numpy().tobytes())
    assert found["noted"] == ("f32", (3,), struct.pack("<3f", 0, 1, 2))
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        data = archive.read("x/data.pkl")
    for name in (b"_rebuild_parameter", b"_rebuild_parameter_with_state", b"_rebuild_from_type_v2"):
        assert name + b"\n" in data


def test_a_pickle_that_wants_to_run_something_is_refused_unrun(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"weight": torch.zeros(2), "evil": Call(os.system, f"touch {mark}")}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", f"'{os.name}.system'", "was not run")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "ComplexFloatStorage"),
        ("collections", "OrderedDict.fromkeys"),
        ("bitconv.checkpoint.torch_files", "_Reader"),
        ("builtins", "getattr"),
        ("torch.nn.modules.linear", "Linear"),
        ("x\ny\x1b", "z"),
    ],
)
def test_a_name_that_is_not_listed_is_refused_by_name(tmp_path: Path, module: str, name: str) -> None:
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93."
    refused(with_pickle(tmp_path / "x.bin", data), ascii(f"{module}.{name}"))


@pytest.mark.parametrize(
    "target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"]
)
def test_a_pickle_cannot_change_what_it_may_call(tmp_path: Path, target: bytes) -> None:
    """BUILD with (None, {...}) sets attributes on whatever lies on the stack."""
    slots = pickle.dumps((None, {"_call": 1, "__defaults__": (1,), "__init__": 1}), 2)[2:-1]
    refused(with_pickle(tmp_path / "x.bin", b"\x80\x02" + target + slots + b"b."), "damaged")
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.bin")
    assert stored_bytes(tmp_path / "good.bin")["weight"][2] == struct.pack("<2f", 1, 1)


def test_the_number_of_an_object_takes_no_memory(tmp_path: Path) -> None:
    """The unpickler in C makes a list that long."""
    file = tmp_path / "x.bin"
    torch.save({"weight": torch.arange(3.0)}, file)
    huge = b"r\xff\xff\xff\x7f"
    rewrite(file, lambda name, data: data.replace(b"q\x00", huge, 1) if name == "data.pkl" else data)
    assert stored_bytes(file)["weight"][2] == struct.pack("<3f", 0, 1, 2)


def test_nested_tuples_are_not_hashed(tmp_path: Path) -> None:
    """That many overflow the stack; in a process of its own, which that would end."""
    nested = b"K\x01" + b"\x85" * 200_000
    pickles = {
        "item": b"}" + nested + b"K\x01s.",
        "items": b"}(" + nested + b"K\x01u.",
        "dict": b"(" + nested + b"K\x01d.",
        "set": b"\x8f(" + nested + b"\x90.",
        "frozenset": b"(" + nested + b"\x91.",
        "pairs": b"ccollections\nOrderedDict\n]" + nested + b"K\x01\x86a\x85R.",
        "storage": b"(\x8c\x07storage" + nested + b"\x8c\x010\x8c\x03cpuK\x01tQ.",
    }
    for name, data in pickles.items():
        with_pickle(tmp_path / name, b"\x80\x04" + data)
    script = """
import pathlib, sys
from bitconv import BitconvError
from bitconv.checkpoint import torch_files
for file in sys.argv[1:]:
    try:
        torch_files.read_index(pathlib.Path(file))
    except BitconvError:
        print(pathlib.Path(file).name)
"""
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in pickles)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (result.stdout.split(), result.stderr, result.returncode) == (list(pickles), "", 0)


@pytest.mark.parametrize("offset", [2**62, 2**64 - 1])
def test_a_member_far_beyond_the_file_is_refused(tmp_path: Path, offset: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.filelist[0].header_offset = offset
    refused(tmp_path / "x.bin", "truncated or damaged")


def test_a_pickle_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.bin")
    monkeypatch.setattr("bitconv.checkpoint.torch_files._MAX_PICKLE", 100)
    refused(tmp_path / "x.bin", "data.pkl takes", "more than")


def test_the_format_before_zip_files_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    refused(tmp_path / "x.bin", "before 1.6", "torch.save(torch.load(")


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs.github.com/spec/v1\n", b'{"a": 1}', b"GGUF\3\0\0\0"])
def test_another_kind_of_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    refused(tmp_path / "x.bin", "not a file that torch.save wrote")


def test_another_kind_of_zip_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("a/b", "c")
    refused(tmp_path / "x.bin", "data.pkl")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(500)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    for size in (4, 100, 1500, len(data) - 1):
        (tmp_path / "x.bin").write_bytes(data[:size])
        refused(tmp_path / "x.bin", "truncated or damaged")


def test_a_member_that_lies_where_no_file_reaches_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "a.bin", "a") as archive:
        for member in archive.filelist:
            member.header_offset = 2**63 - 1
        archive.writestr("another", b"")  # so that the directory is written again
    refused(tmp_path / "a.bin", "damaged")


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(500)}, tmp_path / "x.bin")
    rewrite(tmp_path / "x.bin", lambda _, data: data, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "x.bin", "compressed")


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5)}, tmp_path / "x.bin")
    rewrite(tmp_path / "x.bin", lambda name, data: b"big" if name == "byteorder" else data)
    refused(tmp_path / "x.bin", "big-endian")


def test_a_file_of_a_torch_without_byteorder_is_little_endian(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "x.bin")
    rewrite(tmp_path / "x.bin", lambda name, data: None if name == "byteorder" else data)
    assert stored_bytes(tmp_path / "x.bin")["weight"][2] == struct.pack("<3f", 0, 1, 2)


@pytest.mark.parametrize(
    "strided", [lambda t: t.t(), lambda t: t[:, :2], lambda t: t[0].expand(3, 4), lambda t: t[::2]]
)
def test_a_tensor_that_is_not_contiguous_is_refused(tmp_path: Path, strided: Callable) -> None:
    torch.save({"weight": strided(torch.arange(12.0).reshape(3, 4))}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "weight", "not contiguous")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"epoch": 3}, "'epoch'"),
        ({"model": {"weight": torch.zeros(2)}}, "'model'"),
        ({7: torch.zeros(2)}, "7"),
        ({"a\nb": torch.zeros(2)}, r"'a\nb'"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: dict, word: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", word, "no state dict")


@pytest.mark.parametrize("content", [{}, [torch.zeros(2)], torch.zeros(2)])
def test_what_holds_no_names_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "no state dict")


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"1234", lambda data: None])
def test_a_storage_of_another_size_is_refused(tmp_path: Path, change: Callable[[bytes], bytes | None]) -> None:
    torch.save({"weight": torch.zeros(5)}, tmp_path / "x.bin")
    rewrite(tmp_path / "x.bin", lambda name, data: change(data) if name == "data/0" else data)
    refused(tmp_path / "x.bin", "data/0", "damaged")


def test_a_tensor_that_ends_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5)}, tmp_path / "x.bin")
    # (5,) and (1,), the shape and the strides, are BININT1 in a TUPLE1.
    rewrite(
        tmp_path / "x.bin", lambda name, data: data.replace(b"K\x05\x85", b"K\x06\x85") if name == "data.pkl" else data
    )
    refused(tmp_path / "x.bin", "weight", "does not fit")


def test_a_file_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Sparse: the members that hold a tensor and the directory lie beyond 2**32."""
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "small.bin")
    with zipfile.ZipFile(tmp_path / "small.bin") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = tmp_path / "large.bin"
    with file.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("small/data.pkl", members["small/data.pkl"])
        stream.seek(2**32 + 64)
        archive.start_dir = stream.tell()
        with archive.open(zipfile.ZipInfo("small/data/0"), "w", force_zip64=True) as member:
            member.write(members["small/data/0"])
    ((name, dtype, shape, offset),) = read_index(file)
    assert (name, dtype, shape) == ("weight", "f32", (3,)) and offset > 2**32
    with file.open("rb") as stream:
        stream.seek(offset)
        assert stream.read(12) == struct.pack("<3f", 0, 1, 2)


def _sample() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(2))}, buffer)
    return buffer.getvalue()


SAMPLE = _sample()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    file = tmp_path_factory.getbasetemp() / "damaged.bin"
    file.write_bytes(data)
    try:
        read_index(file)
    except BitconvError as error:
        assert "\n" not in str(error)
