"""A Hugging Face model directory: its config, where every tensor's bytes lie, and raw reads of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bitconv.checkpoint import mlx, refusals, torch_files, weight_files
from bitconv.checkpoint.stored_tensor import DTYPES, ITEMSIZE, StoredTensor
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import Fetch, Stamp, check_unchanged, is_there, open_input, read_start, stamps
from bitconv.system.json_files import read_json
from bitconv.system.rawio import read_at
from bitconv.system.stand_ins import START, check_binary
from bitconv.tokenizer.files import FILES as TOKENIZER_FILES

# Of the safetensors library, in bytes.
_MAX_HEADER = 100_000_000
# Tensors that an index may name and no file hold: transformers lists a head that is the embedding and does not store
# it, safetensors stores of two names the first in the alphabet, and buffers of rotary embeddings came and went.
_MAY_BE_ABSENT = ("lm_head.weight", "embed_tokens.weight", "rotary_emb.inv_freq")


class Checkpoint:
    """An open model directory; a context manager, since it holds its files open.

    Reads are positioned reads: any number of threads may read at once.
    """

    def __init__(self, path: Path, fetch: Fetch | None = None) -> None:
        """fetch: of weights that are on the Hub, as `sampled_model` gives it."""
        self._fetch = fetch
        refusals.check_path(path)
        if path.is_file():
            raise BitconvError(
                "is a file", code=Code.FILE_KIND, file=path, way_out=f"name the model directory, {path.parent}"
            )
        if not path.is_dir():
            way_out = "name one that exists, or an id on the Hub (OWNER/NAME)"
            raise BitconvError("no such model directory", code=Code.NOT_FOUND, file=path, way_out=way_out)
        self.path = path
        self._before: dict[Path, Stamp | None] = {}
        self.sources(path / name for name in ("config.json", "README.md", *weight_files.WEIGHT_FILES))
        self.sources(file for pattern in TOKENIZER_FILES for file in path.glob(pattern))
        stated = _config(path)
        self.config = mlx.without_two_bits(stated)
        refusals.check_checkpoint(self.config, (), path)  # before tensors in types that only other formats have
        self.tensors = self._index()
        if self.config is not stated:
            # Of a packed checkpoint MLX quantizes the rest, and puts its own quantization_config for the model's.
            if any(tensor.dtype == "u8" for tensor in self.tensors.values()):
                refusals.check_checkpoint(stated, (), path)
            self.tensors = mlx.dequantized(self.tensors)
        self._descriptors: dict[Path, int] = {}

    @property
    def sampled(self) -> bool:
        """Whether the weights are on the Hub: every read takes a moment, and to read all would be to download them."""
        return self._fetch is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What lies in the directory and is no part of what is read, though a user may think so."""
        adapters = [name for name in refusals.LORA.in_place if (self.path / name).exists()]
        notes = [f"{name}: a LoRA adapter beside the weights, which is not merged into them" for name in adapters[:1]]
        if self.sampled:
            notes.append("the weights were not downloaded: headers were read, scales, and rows of float weights")
        return tuple(notes)

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
        if isinstance(tensor, mlx.QuantizedTensor):
            mlx.read(tensor, start, out, self.read)
            return
        if tensor.row_order:
            row_bytes, done = tensor.nbytes // len(tensor.row_order), 0
            while done < out.size:
                row, at = divmod(start + done, row_bytes)
                end = min(done + row_bytes - at, out.size)
                self.read(replace(tensor, row_order=()), tensor.row_order[row] * row_bytes + at, out[done:end])
                done = end
            return
        if self._fetch is not None:
            self._fetch(tensor.file, tensor.offset + start, tensor.offset + start + out.size)
        try:
            whole = read_at(self._descriptors[tensor.file], out, tensor.offset + start)
        except OSError as error:
            raise tensor.error(f"cannot be read: {error.strerror}", code=Code.READ) from None
        if not whole:
            raise tensor.error("the file has become shorter while it was read", code=Code.CHANGED)

    def sources(self, files: Iterable[Path]) -> None:
        """Files that are about to be read. The same ones must be there at the end."""
        self._before |= stamps(files)

    @property
    def files(self) -> list[Path]:
        """Those that the model is read from, in the order of their names."""
        weights = {tensor.file for tensor in self.tensors.values()}
        index = f"{next(iter(weights)).suffix}.index.json" if len(weights) > 1 else ""
        others = {
            file
            for file, stamp in self._before.items()
            if stamp is not None
            and (file.name not in weight_files.WEIGHT_FILES or (index and file.name.endswith(index)))
        }
        return sorted(weights | others)

    def check_unchanged(self) -> None:
        """BitconvError where a file of the model is not the one that was read: the output would be of two models."""
        if not self.sampled:
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
        """All tensors of the directory by name."""
        names = {entry.name for entry in self.path.iterdir()}
        chosen = weight_files.choose(names, self.path)
        if chosen is None:
            # Where hf download --local-dir keeps what it has begun.
            begun = (self.path / ".cache" / "huggingface" / "download").rglob("*.incomplete")
            raise weight_files.none_error(names, self.path, unfinished=any(begun))
        if chosen.index is None:
            return self._read_files([self.path / name for name in chosen.files])
        index = self.path / chosen.index
        shards = read_shards(index)
        tensors = self._read_files(sorted(needed_shards(shards, names)))
        for name, shard in shards.items():
            there = name in tensors and tensors[name].file == shard
            if not there and not name.endswith(_MAY_BE_ABSENT):
                cause = f"missing, though {index.name} says it is there"
                raise BitconvError(cause, code=Code.INCOMPLETE, file=shard, tensor=name)
        return tensors

    def _read_files(self, files: Collection[Path]) -> dict[str, StoredTensor]:
        """All tensors of several files. BitconvError where two hold one of the same name."""
        self.sources(files)
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, tensor in _read_header(file, self._fetch).items():
                if name in tensors:
                    cause = f"stored a second time, {tensors[name].file} holds it too"
                    raise BitconvError(cause, code=Code.CONTRADICTION, file=file, tensor=name)
                tensors[name] = tensor
        return tensors


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not is_there(file) and any(is_there(path / name) for name in weight_files.GPU_FILES):
        raise BitconvError(
            "missing; a file of the GPU pipeline holds weights alone",
            code=Code.INCOMPLETE,
            file=file,
            way_out="put config.json and the tokenizer's files of the checkpoint that it was made of beside it "
            "(microsoft/bitnet-b1.58-2B-4T)",
        )
    if not is_there(file):
        way_out = "name the directory that has a model's config.json in it"
        models = sorted(found.parent for found in path.glob("*/config.json"))
        if models:
            way_out += f", such as {models[0]}"
        raise BitconvError("missing", code=Code.NOT_FOUND, file=file, way_out=way_out)
    return read_json(file, path)


def needed_shards(shards: Mapping[str, Path], names: Collection[str]) -> set[Path]:
    """Of the files that an index names, all but those that are missing and held nothing that must be there.

    shards: as read_shards gives them. names: of the files that are there.
    """
    return {shard for name, shard in shards.items() if shard.name in names or not name.endswith(_MAY_BE_ABSENT)}


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


def _read_header(file: Path, fetch: Fetch | None) -> dict[str, StoredTensor]:
    """Where each tensor of one file lies."""
    if not is_there(file):
        raise BitconvError("missing", code=Code.INCOMPLETE, file=file, way_out="download the checkpoint again")
    control = file.with_name(f"{file.name}.aria2")
    if control.exists():  # the file has its full size from the start, with zeros for what is yet to come
        way_out = f"finish it, or remove {control.name}"
        raise BitconvError("is an unfinished download", code=Code.INCOMPLETE, file=file, way_out=way_out)
    if fetch is not None:
        fetch(file, 0, START)
    check_binary(file, read_start(file, file.parent, START))
    if fetch is not None:
        fetch(file, 0, min(int.from_bytes(read_start(file, file.parent, 8), "little"), _MAX_HEADER) + 8)
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
        if dtype not in DTYPES:
            raise BitconvError(
                f"stored as {dtype}, which no BitNet checkpoint uses", code=Code.TENSOR_FORM, file=file, tensor=name
            )
        tensors[name] = StoredTensor(name, file, DTYPES[dtype][0], shape, start)
        start += tensors[name].nbytes
    return tensors
