"""The one door for files from strangers: what may be opened, where links may lead, and how large a file may be."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bitconv.system.errors import BitconvError, Code
from bitconv.system.rawio import read_at_most
from bitconv.system.stand_ins import check_content

MIB = 1 << 20

# Of files that are read whole, the most bytes: several times what the largest published models have.
_LIMITS = {
    "config.json": 4 * MIB,
    "tokenizer.json": 256 * MIB,
    "tokenizer.model": 64 * MIB,
    "tokenizer_config.json": 64 * MIB,
    "added_tokens.json": 64 * MIB,
    "model.safetensors.index.json": 64 * MIB,
    "pytorch_model.bin.index.json": 64 * MIB,
}
_OTHER_LIMITS = {".json": 4 * MIB, ".jinja": 4 * MIB}
# Of files that may have any name: a text to evaluate, a kernel_config.ini.
MAX_TEXT = 256 * MIB
MAX_KERNEL_CONFIG = MIB
# Where the front matter of README.md must have ended.
MAX_FRONT_MATTER = MIB // 2

# Has bytes START to END (exclusive) of a file there before they are read, of one that is on the Hub.
Fetch: TypeAlias = Callable[[Path, int, int], None]

# In the Hub's cache, files are links: models--NAMESPACE--NAME/snapshots/COMMIT/FILE -> ../../blobs/HASH.
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Stamp(NamedTuple):
    """What tells that a file is still the one that was opened."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def open_input(path: str | os.PathLike[str], within: Path | None = None) -> int:
    """A descriptor to read a regular file by. BitconvError for anything else that stands there, which is not read.

    within: the model directory that it belongs to. A link may lead to another file in there, or to a blob of the Hub's
    cache, and nowhere else: a directory from a stranger must not put files of the user's into what is written.
    """
    if within is not None:
        check_within(Path(path), within)
    _check_regular(path, Path(path).stat())  # before it is opened: to open a device may do something
    # Not to wait for the other end of a pipe that has taken the file's place since.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_within(path: Path, directory: Path) -> None:
    """Refuse a link that leads out of a model directory, or to nothing."""
    if not os.path.lexists(path):
        return
    root = Path(os.path.realpath(directory))
    target = Path(os.path.realpath(path))
    if not target.exists() and path.is_symlink():
        raise BitconvError(
            f"is a link to {os.fspath(path.readlink())!r}, where there is nothing",
            code=Code.INCOMPLETE,
            file=path,
            way_out="download it again",
        )
    if target.is_relative_to(root) or _is_blob(target):
        return
    raise BitconvError(
        f"is a link that leads out of the model directory, to {target}",
        code=Code.UNSAFE,
        file=path,
        way_out="put a copy or a hard link in its place, or name the directory that holds the files themselves",
    )


def _is_blob(target: Path) -> bool:
    """Whether it is a file of the Hub's cache, by whose name, a hash of what it holds, none is found by guessing."""
    repository = target.parent.parent.name
    return target.parent.name == "blobs" and "--" in repository and _BLOB.fullmatch(target.name) is not None


def _check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise BitconvError("is a directory, expected a file", code=Code.FILE_KIND, file=os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise BitconvError(
            "is a device, a pipe or a socket, expected a file", code=Code.FILE_KIND, file=os.fspath(path)
        )


def is_there(path: Path) -> bool:
    """Whether something stands there that open_input takes or refuses: a link to nothing counts."""
    return os.path.lexists(path)


def read_whole(path: str | os.PathLike[str], within: Path | None = None, *, limit: int | None = None) -> bytes:
    """The bytes of a file. BitconvError where it is larger than `limit`, or than its kind's in the table above."""
    name = Path(path).name
    limit = limit or _LIMITS.get(name) or _OTHER_LIMITS.get(Path(name).suffix, MIB)
    data = read_start(path, within, limit + 1)
    if len(data) > limit:
        raise BitconvError(
            f"is larger than {limit / MIB:.0f} MiB, the most of such a file", code=Code.TOO_LARGE, file=os.fspath(path)
        )
    if within is not None:
        check_content(path, data)
    return data


def read_start(path: str | os.PathLike[str], within: Path | None, limit: int) -> bytes:
    """The first bytes of a file, `limit` at most."""
    descriptor = open_input(path, within)
    try:
        return read_at_most(descriptor, min(limit, os.fstat(descriptor).st_size), 0)
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str], within: Path | None = None, *, limit: int | None = None) -> str:
    """A UTF-8 file, its line ends as they are, a byte order mark at its start left out."""
    return decode(read_whole(path, within, limit=limit), path)


def decode(data: bytes, path: str | os.PathLike[str]) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BitconvError("is UTF-16", code=Code.MALFORMED, file=os.fspath(path), way_out="save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BitconvError(f"not UTF-8: {error}", code=Code.MALFORMED, file=os.fspath(path)) from None


def stamps(paths: Iterable[Path]) -> dict[Path, Stamp | None]:
    """Of each file its stamp, None where there is none."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path.stat())
    except OSError:
        return None


def check_unchanged(before: dict[Path, Stamp | None]) -> None:
    """Refuse what was made of files that have changed while they were read: of the old ones and the new."""
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise BitconvError(
                "has changed while it was read",
                code=Code.CHANGED,
                file=path,
                way_out="run it again when it is complete",
            )
