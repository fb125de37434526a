"""Reading the header of a GGUF file from a stranger: nothing in it is trusted before it is checked."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitconv._kernels import decode_strings
from bitconv.gguf.values import ARRAY, BOOL, NUMBER_DTYPES, STRING, Metadata, Value
from bitconv.system.errors import BitconvError, Code, plain
from bitconv.system.files import Fetch, Stamp, check_unchanged, open_input
from bitconv.system.rawio import read_at_most

MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 64  # GGML_MAX_NAME, the terminating zero included
# Tensors or metadata keys: a model of 512 layers, which is the most of a runner, has 15,000 tensors; memory is what the
# limit is for.
MAX_LISTED = 1 << 14
# All before the tensors' data, in bytes, and the strings in it: the largest vocabularies known, of 262,144 tokens and
# 515,000 merges, take 16 MiB. A file may say more at no cost, of zeros that no disk holds.
MAX_HEADER = 64 << 20
MAX_STRINGS = 1 << 21
_READ_AHEAD = 1 << 20


class MalformedGGUF(BitconvError):  # noqa: N818 - it is a BitconvError
    """The file says it is GGUF and is not sound: truncated, or its header contradicts itself."""

    def __init__(self, cause: str, *, code: Code = Code.MALFORMED_GGUF, **where: Any) -> None:
        super().__init__(cause, code=code, **where)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape is row-major, offset is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    stamp: Stamp

    @property
    def size(self) -> int:
        return self.stamp.size

    def open(self) -> int:
        """A descriptor to read the tensors by."""
        return open_input(self.path)

    def check_unchanged(self) -> None:
        """BitconvError where it is no longer the file whose header was read."""
        check_unchanged({self.path: self.stamp})


class _Cursor:
    """Reads by pread: a file that is cut while it is mapped into memory would kill the process."""

    def __init__(self, path: Path, descriptor: int, size: int, fetch: Fetch | None) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = size
        self.fetch = fetch
        self.at = 0
        self.strings = 0
        self._ahead, self._start = b"", 0

    def bytes(self, count: int, what: str) -> bytes:
        first = self.at - self._start
        if first + count > len(self._ahead):
            if self.at + count > MAX_HEADER and count <= self.size - self.at:
                raise self.too_large(f"its header is larger than {MAX_HEADER >> 20} MiB")
            if count <= self.size - self.at:
                wanted = min(max(count, _READ_AHEAD), self.size - self.at)
                if self.fetch is not None:
                    self.fetch(self.path, self.at, self.at + wanted)
                self._ahead, self._start = read_at_most(self.descriptor, wanted, self.at), self.at
            first = self.at - self._start
            if first + count > len(self._ahead):
                raise MalformedGGUF(f"truncated: the file ends inside {what}", file=self.path)
        self.at += count
        return self._ahead[first : first + count]

    def too_large(self, cause: str) -> BitconvError:
        return BitconvError(f"{cause}, which no model's is", code=Code.TOO_LARGE, file=self.path)

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form), what))

    def string(self, what: str) -> str:
        (length,) = self.unpack("<Q", what)
        try:
            return self.bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedGGUF(f"{what} is not UTF-8", file=self.path) from None

    def value(self, type_id: int, what: str) -> Value:
        if type_id == STRING:
            return self.string(what)
        if type_id == ARRAY:
            return self.array(what)
        if type_id == BOOL:
            (byte,) = self.bytes(1, what)
            if byte > 1:
                raise MalformedGGUF(f"{what} is a boolean of value {byte}", file=self.path)
            return bool(byte)
        number: Value = self.numbers(type_id, 1, what)[0]
        return number

    def array(self, what: str) -> Value:
        type_id, count = self.unpack("<IQ", what)
        if type_id == STRING:
            if count > (self.size - self.at) // 8:  # each string takes 8 bytes at least
                raise MalformedGGUF(f"truncated: the file ends inside {what}", file=self.path)
            self.strings += count
            if self.strings > MAX_STRINGS:
                raise self.too_large(f"its header has more than {MAX_STRINGS:,} strings")
            strings: list[str] = []
            while len(strings) < count:
                strings.append(self.string(what))  # which reads ahead; what is in memory then, all at once
                start = self.at - self._start
                decoded, end = decode_strings(self._ahead, start, count - len(strings))
                strings += decoded
                self.at += end - start
            return strings
        if type_id == BOOL:
            return self.numbers(0, count, what).astype(np.bool_)
        return self.numbers(type_id, count, what)

    def numbers(self, type_id: int, count: int, what: str) -> np.ndarray[Any, Any]:
        dtype = NUMBER_DTYPES.get(type_id)
        if dtype is None:
            raise MalformedGGUF(f"{what} has the value type {type_id}, which GGUF does not define", file=self.path)
        return np.frombuffer(self.bytes(count * dtype.itemsize, what), dtype)


def read_gguf(path: Path, fetch: Fetch | None = None) -> GGUFFile:
    """Read and check a GGUF header.

    fetch: of a file on the Hub. BitconvError where the file is not GGUF version 2 or 3 in little endian (the versions
    that differ in nothing that is read here), MalformedGGUF where it is and is not sound.
    """
    descriptor = open_input(path)
    try:
        if fetch is not None:
            fetch(path, 0, _READ_AHEAD)
        magic = read_at_most(descriptor, 8, 0)
        if magic[:4] != b"GGUF" or len(magic) < 8:
            raise BitconvError("not a GGUF file", code=Code.FORMAT, file=path)
        (version,) = struct.unpack("<I", magic[4:])
        if version not in (2, 3):
            raise BitconvError(
                f"GGUF version {version} is not supported (2 and 3 in little endian are)", code=Code.FORMAT, file=path
            )
        return _read_header(path, descriptor, Stamp.of(os.fstat(descriptor)), fetch)
    finally:
        os.close(descriptor)


def _read_header(path: Path, descriptor: int, stamp: Stamp, fetch: Fetch | None) -> GGUFFile:
    cursor = _Cursor(path, descriptor, stamp.size, fetch)
    cursor.at = 8
    tensor_count, value_count = cursor.unpack("<QQ", "the header")
    if max(tensor_count, value_count) > MAX_LISTED:
        raise MalformedGGUF(
            f"lists {tensor_count} tensors and {value_count} metadata keys; {MAX_LISTED} of each are the most",
            file=path,
        )

    metadata: Metadata = {}
    for _ in range(value_count):
        key = cursor.string("a metadata key")
        (type_id,) = cursor.unpack("<I", f"the value of {key!r}")
        if key in metadata:
            raise MalformedGGUF(f"the metadata key {key!r} stands twice", file=path)
        metadata[key] = cursor.value(type_id, f"the value of {key!r}")

    alignment = metadata.get("general.alignment", np.uint32(32))
    if not isinstance(alignment, np.uint32) or alignment < 8 or alignment & (alignment - 1):
        raise MalformedGGUF(
            f"general.alignment is {plain(alignment)}, not a power of two from 8 on in uint32", file=path
        )

    listed: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        name = cursor.string("a tensor's name")
        what = f"the entry of tensor {name!r}"
        (dims,) = cursor.unpack("<I", what)
        if not 1 <= dims <= MAX_DIMS:
            raise MalformedGGUF(f"tensor {name!r} has {dims} dimensions (1 to {MAX_DIMS} are possible)", file=path)
        shape = cursor.unpack(f"<{dims}Q", what)[::-1]
        type_id, offset = cursor.unpack("<IQ", what)
        if name in listed:
            raise MalformedGGUF(f"tensor {name!r} is listed twice", file=path)
        if not 1 <= len(name.encode()) < MAX_NAME:
            raise MalformedGGUF(f"the name of tensor {name!r} is not 1 to {MAX_NAME - 1} bytes long", file=path)
        if 0 in shape:
            raise MalformedGGUF(f"tensor {name!r} has a dimension of 0", file=path)
        listed[name] = TensorInfo(name, shape, type_id, offset)

    data_offset = -(-cursor.at // int(alignment)) * int(alignment)
    return GGUFFile(
        path,
        metadata,
        tuple(TensorInfo(t.name, t.shape, t.type_id, data_offset + t.offset) for t in listed.values()),
        int(alignment),
        data_offset,
        stamp,
    )
