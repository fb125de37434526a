"""Weights on the Hub of which only what is read is fetched: headers, scales, a few rows."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from bitconv.system.errors import BitconvError, Code

# Small tensors, such as scales and norms, lie next to each other.
_BLOCK = 1 << 16


class FileSystem(Protocol):
    """As much of fsspec's as is used."""

    def cat_file(self, path: str, start: int, end: int, *, cache_type: str) -> bytes:
        """Bytes start to end (exclusive) of a file. cache_type: "none" for those alone."""


class PartialFiles:
    """Files of a directory that have the size of those on the Hub, and of their bytes those that were asked for.

    The rest are holes, which take no room on a disk. Any number of threads may fetch.
    """

    def __init__(self, directory: Path, filesystem: FileSystem, prefix: str) -> None:
        """prefix: before a file's name, such as OWNER/NAME@COMMIT/."""
        self.directory = directory
        self._filesystem = filesystem
        self._prefix = prefix
        self._sizes: dict[Path, int] = {}
        self._there: set[tuple[Path, int]] = set()
        self._lock = threading.Lock()

    def add(self, name: str, size: int) -> Path:
        """Make a file of that size without any of its bytes."""
        file = self._path(name)
        with file.open("wb") as stream:
            stream.truncate(size)
        self._sizes[file] = size
        return file

    def copy(self, source: Path, name: str) -> None:
        """A small file that is there already."""
        shutil.copyfile(source, self._path(name))

    def _path(self, name: str) -> Path:
        """Where a file goes. A listing from elsewhere must not put one anywhere else."""
        if "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise BitconvError(f"{name!r} is no name of a file in it", code=Code.UNSAFE, file=self._prefix.rstrip("/"))
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def fetch(self, file: Path, start: int, end: int) -> None:
        """Have bytes start to end (exclusive) there, or to the file's end. Of a file that was not added all are."""
        for first, last in self._missing(file, start, min(end, self._sizes.get(file, 0))):
            name = file.relative_to(self.directory).as_posix()
            data = self._filesystem.cat_file(self._prefix + name, start=first, end=last, cache_type="none")
            if len(data) != last - first:
                cause = f"{len(data)} bytes came of {last - first} that were asked for"
                raise BitconvError(cause, code=Code.HUB, file=f"{self._prefix}{name}", way_out="download the model")
            with file.open("r+b") as stream:
                stream.seek(first)
                stream.write(data)
            with self._lock:
                self._there.update((file, at) for at in range(first, last, _BLOCK))

    def _missing(self, file: Path, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of whole blocks, the last up to the file's end."""
        first = None
        for at in range(start // _BLOCK * _BLOCK, end, _BLOCK):
            if (file, at) in self._there:
                if first is not None:
                    yield first, at
                first = None
            elif first is None:
                first = at
        if first is not None:
            yield first, min(-(-end // _BLOCK) * _BLOCK, self._sizes[file])
