"""A Hugging Face model directory: its config, where every tensor's bytes lie, and raw reads of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bitconv.checkpoint import refusals, torch_files
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import Stamp, check_unchanged, is_there, open_input, read_start, stamps
from bitconv.system.json_files import read_json
from bitconv.system.rawio import read_at
from bitconv.tokenizer.files import FILES as TOKENIZER_FILES

# safetensors dtype -> (our name, bytes); the float names are those of the kernels.
_DTYPES = {
    "F64": ("f64", 8),
    "F32": ("f32", 4),
    "F16": ("f16", 2),
    "BF16": ("bf16", 2),
    "I64": ("i64", 8),
    "I32": ("i32", 4),
    "I16": ("i16", 2),
    "I8": ("i8", 1),
    "U8": ("u8", 1),
    "BOOL": ("bool", 1),
}
ITEMSIZE = dict(_DTYPES.values())
FLOAT_DTYPES = ("bf16", "f16", "f32")
# Of bitnet.cpp's GPU pipeline: packed, ternary in floats, and master weights. Its runtime needs the first two.
_GPU_FILES = ("model_state_int2.pt", "model_state_fp16.pt", "model_state.pt")
# The first that a model has holds its weights; an index names the files that do. The order is that of transformers.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *_GPU_FILES,
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint file: `offset` is in bytes from the start of the file, row-major, little endian."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    def error(self, cause: str, *, code: Code, way_out: str | None = None) -> BitconvError:
        return BitconvError(cause, code=code, file=self.file, tensor=self.name, way_out=way_out)


class Checkpoint:
    """An open model directory; a context manager, since it holds its files open.

    Reads are positioned reads: any number of threads may read at once.
    """

    def __init__(self, path: Path) -> None:
        refusals.check_path(path)
        if path.is_file():
            raise BitconvError(
                "is a file", code=Code.FILE_KIND, file=path, way_out=f"name the model directory, {path.parent}"
            )
        if not path.is_dir():
            raise BitconvError("no such model directory", code=Code.NOT_FOUND, file=path)
        self.path = path
        self._before: dict[Path, Stamp | None] = {}
        self.sources(path / name for name in ("config.json", "README.md", *WEIGHT_FILES))
        self.sources(file for pattern in TOKENIZER_FILES for file in path.glob(pattern))
        self.config = _config(path)
        self.tensors = self._index()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Checkpoint:
        for file in {tensor.file for tensor in self.tensors.values()}:
            self._descriptors[file] = open_input(file, self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, tensor: StoredTensor, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` with the tensor's bytes from byte `start` of it on."""
        try:
            whole = read_at(self._descriptors[tensor.file], out, tensor.offset + start)
        except OSError as error:
            raise tensor.error(f"cannot be read: {error.strerror}", code=Code.READ) from None
        if not whole:
            raise tensor.error("the file has become shorter while it was read", code=Code.CHANGED)

    def sources(self, files: Iterable[Path]) -> None:
        """Files that are about to be read. The same ones must be there at the end."""
        self._before |= stamps(files)

    def check_unchanged(self) -> None:
        """BitconvError where a file of the model is not the one that was read: the output would be of two models."""
        check_unchanged(self._before)

    def values(self, tensor: StoredTensor) -> npt.NDArray[np.float32]:
        """A small float tensor (a scale, a norm) whole, in float32. Shape as stored."""
        raw = np.empty(tensor.nbytes, np.uint8)
        self.read(tensor, 0, raw)
        if tensor.dtype == "bf16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif tensor.dtype in ("f32", "f16"):
            values = raw.view(f"<f{ITEMSIZE[tensor.dtype]}").astype(np.float32)
        else:
            raise tensor.error(f"stored as {tensor.dtype}; expected bf16, f16 or f32", code=Code.TENSOR_FORM)
        return values.reshape(tensor.shape)

    def _index(self) -> dict[str, StoredTensor]:
        """All tensors of the directory by name. Of several files the first of WEIGHT_FILES wins."""
        file = next((self.path / name for name in WEIGHT_FILES if is_there(self.path / name)), None)
        if file is None:
            raise BitconvError(
                f"holds no weights: none of {', '.join(WEIGHT_FILES)}", code=Code.INCOMPLETE, file=self.path
            )
        return self._read_indexed(file) if file.suffix == ".json" else _read_header(file)

    def _read_indexed(self, index: Path) -> dict[str, StoredTensor]:
        """All tensors of the files that an index names."""
        shards = read_shards(index)
        self.sources(set(shards.values()))
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(set(shards.values())):
            for name, tensor in _read_header(shard).items():
                if name in tensors:
                    raise BitconvError(
                        f"stored a second time, {tensors[name].file} holds it too",
                        code=Code.CONTRADICTION,
                        file=shard,
                        tensor=name,
                    )
                tensors[name] = tensor
        for name, shard in shards.items():
            if name not in tensors or tensors[name].file != shard:
                raise BitconvError(
                    f"missing, though {index.name} says it is there", code=Code.INCOMPLETE, file=shard, tensor=name
                )
        return tensors


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not is_there(file) and any(is_there(path / name) for name in _GPU_FILES):
        raise BitconvError(
            "missing; a file of the GPU pipeline holds weights alone",
            code=Code.INCOMPLETE,
            file=file,
            way_out="put config.json and the tokenizer's files of the checkpoint that it was made of beside it "
            "(microsoft/bitnet-b1.58-2B-4T)",
        )
    return read_json(file, path)


def read_shards(index: Path) -> dict[str, Path]:
    """The file beside `index` that each tensor is in, by the tensor's name. The files need not be there."""
    weight_map = read_json(index, index.parent).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BitconvError("has no weight_map", code=Code.MALFORMED, file=index)
    shards = {}
    for name, shard_name in weight_map.items():
        # A shard is a plain file name: an index from a stranger must not make us read files elsewhere.
        if not isinstance(shard_name, str) or shard_name in ("", ".", "..") or {"/", "\\", "\0"} & set(shard_name):
            raise BitconvError(
                f"its file {shard_name!r} is not in the model directory",
                code=Code.CONTRADICTION,
                file=index,
                tensor=name,
            )
        shards[name] = index.parent / shard_name
    return shards


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Where each tensor of one file lies."""
    if not is_there(file):
        raise BitconvError("missing", code=Code.INCOMPLETE, file=file, way_out="download the checkpoint again")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return {
        name: StoredTensor(name, file, dtype, shape, offset)
        for name, dtype, shape, offset in torch_files.read_index(file, file.parent)
    }


def _read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The safetensors library checks the header: its tensors cover the file in order."""
    start = 8 + int.from_bytes(read_start(file, file.parent, 8), "little")
    try:
        with safe_open(file, framework="np") as header:
            stored = [(name, header.get_slice(name)) for name in header.offset_keys()]
            entries = [(name, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in stored]
    except SafetensorError as error:
        raise BitconvError(f"truncated or not a safetensors file: {error}", code=Code.DAMAGED, file=file) from None
    tensors = {}
    for name, dtype, shape in entries:
        if dtype not in _DTYPES:
            raise BitconvError(
                f"stored as {dtype}, which no BitNet checkpoint uses", code=Code.TENSOR_FORM, file=file, tensor=name
            )
        tensors[name] = StoredTensor(name, file, _DTYPES[dtype][0], shape, start)
        start += tensors[name].nbytes
    return tensors
