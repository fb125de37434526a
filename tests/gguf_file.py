"""A second, plain reader of GGUF files, written from the format's specification for the tests alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Tensor(NamedTuple):
    """ne: the dimensions in the file's order, fastest first. start: of its data, from the start of the file."""

    ne: tuple[int, ...]
    type_id: int
    start: int


class File:
    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.at = 0
        magic, version, tensors, values = self.take("<4sIQQ")
        assert (magic, version) == (b"GGUF", 3)
        self.metadata: dict[str, Any] = {}
        self.value_types: dict[str, int] = {}
        for _ in range(values):
            key = self.string()
            (kind,) = self.take("<I")
            self.value_types[key] = kind
            self.metadata[key] = self.value(kind)
        listed = []
        for _ in range(tensors):
            name = self.string()
            (dims,) = self.take("<I")
            ne = self.take(f"<{dims}Q")
            listed.append((name, ne, *self.take("<IQ")))
        base = (self.at + 31) // 32 * 32
        self.tensors = {name: Tensor(ne, kind, base + offset) for name, ne, kind, offset in listed}

    def take(self, form: str) -> tuple[Any, ...]:
        self.at += struct.calcsize(form)
        return struct.unpack(form, self.data[self.at - struct.calcsize(form) : self.at])

    def string(self) -> str:
        (length,) = self.take("<Q")
        return self.take(f"<{length}s")[0].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            item, count = self.take("<IQ")
            return [self.string() for _ in range(count)] if item == 8 else list(self.take(f"<{count}{_NUMBERS[item]}"))
        return self.take("<" + _NUMBERS[kind])[0]

    def bytes(self, name: str, count: int) -> bytes:
        start = self.tensors[name].start
        return self.data[start : start + count]
