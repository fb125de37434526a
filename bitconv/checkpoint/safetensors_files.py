"""Writing safetensors files a tensor at a time: the safetensors library wants all tensors of a file in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.layouts.layout import Bytes
from bitconv.system import jobs
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import replacing
from bitconv.system.rawio import write_at

# A file holds at most this many bytes of tensors, unless one tensor alone is larger.
SHARD_BYTES = 5 * 10**9


class NewTensor(NamedTuple):
    """A tensor to write. dtype: a key of ITEMSIZE. data: yields its bytes in order, and calls its argument often."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[KeepGoing], Iterator[Bytes]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]


def write_tensors(
    directory: Path, tensors: Sequence[NewTensor], threads: int | None, progress: Progress | None
) -> None:
    """Write model.safetensors, or shards and their index, as transformers names them, into `directory`."""
    shards = _shards(tensors)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    total = sum(tensor.nbytes for tensor in tensors)
    if count == 1:
        names = ["model.safetensors"]
    else:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")

    work: list[Callable[[KeepGoing], int]] = []
    with contextlib.ExitStack() as files:
        for name, shard in zip(names, shards, strict=True):
            header, size = _header(shard)
            descriptor = files.enter_context(replacing(directory / name, len(header) + size))
            write_at(descriptor, header, 0)
            at = len(header)
            for tensor in shard:
                work.append(partial(_write, descriptor, at, tensor))
                at += tensor.nbytes
        done = 0
        for written in jobs.run(work, threads):
            done += written
            if progress is not None:
                progress(done, total)


def _write(descriptor: int, at: int, tensor: NewTensor, keep_going: KeepGoing) -> int:
    for data in tensor.data(keep_going):
        write_at(descriptor, data, at)
        at += data.size
    return tensor.nbytes


def _shards(tensors: Sequence[NewTensor]) -> list[list[NewTensor]]:
    """The tensors in their order in files of at most SHARD_BYTES; within a file, wide types first, to be aligned."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return [sorted(shard, key=lambda tensor: -ITEMSIZE[tensor.dtype]) for shard in shards]


def _header(shard: Sequence[NewTensor]) -> tuple[bytes, int]:
    """What stands before the tensors, and the bytes that they take."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        offsets = [end, end + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype.upper(), "shape": tensor.shape, "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end
