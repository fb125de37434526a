"""Temporary files and directories of outputs: their process holds a lock on each, so that none outlives it for long.

A process that is killed cannot tidy up. The system takes its locks away, on other machines that share the file system
too, and the next run into the same directory removes what nobody holds, and only that.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

# They are no part of an output's name, which may be as long as the file system takes.
_NAME = re.compile(r"\.bitconv-[a-z0-9_]{8,}\.tmp")
# Of a directory: the files to put beside it, first being written and then being moved, and those that they replace.
NEW, READY, OLD = "new", "ready", "old"

# Those of this process (by its number: a fork is another), for an interrupt in the midst of tidying up.
_mine: dict[Path, int] = {}


@contextlib.contextmanager
def temporary_file(directory: Path) -> Iterator[tuple[int, Path]]:
    """A new file, locked, and a descriptor to write it by; gone in the end if it has not been renamed."""
    with _temporary(directory, folder=False) as made:
        yield made


@contextlib.contextmanager
def temporary_directory(directory: Path) -> Iterator[Path]:
    """A new directory, locked; gone in the end with all that is in it."""
    with _temporary(directory, folder=True) as (_, path):
        yield path


@contextlib.contextmanager
def _temporary(directory: Path, *, folder: bool) -> Iterator[tuple[int, Path]]:
    path = _new_name(directory)
    descriptor = -1
    try:
        while (descriptor := _make(path, folder=folder)) < 0:
            _mine.pop(path)
            path = _new_name(directory)
        yield descriptor, path
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # before a directory is listed, which takes a descriptor, and there may be no other
        _tidy(path)


def _new_name(directory: Path) -> Path:
    """Known before there is anything by it: an interrupt may come as soon as there is."""
    path = directory / f".bitconv-{secrets.token_hex(8)}.tmp"
    _mine[path] = os.getpid()
    return path


def _make(path: Path, *, folder: bool) -> int:
    """A locked descriptor, or -1 where another process took it for a dead one before it was locked."""
    if folder:
        path.mkdir(0o700)
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        locked = _lock(descriptor)
        if locked is False or not os.path.samestat(os.fstat(descriptor), path.stat()):
            os.close(descriptor)
            return -1
    except FileNotFoundError:
        os.close(descriptor)
        return -1
    return descriptor


def _lock(descriptor: int) -> bool | None:
    """Whether it could be locked; None where the file system has no locks, and nothing is ever taken for dead."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_dead(directory: Path) -> None:
    """Remove what killed processes of this user left there, and bring a directory in order that was being filled."""
    try:
        files = [file for file in directory.iterdir() if _NAME.fullmatch(file.name)]
    except OSError:
        return
    for file in files:
        with contextlib.suppress(OSError):
            _remove_if_dead(file)


def _remove_if_dead(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        known = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if not known or status.st_uid != os.geteuid() or not _lock(descriptor):
            return
        if stat.S_ISDIR(status.st_mode):
            _settle(path)
        _remove(path)
    finally:
        os.close(descriptor)


def _settle(path: Path) -> None:
    """End what was under way in the directory around: what all is written for goes on, else it is taken back."""
    ready, old = path / READY, path / OLD
    source = ready if ready.is_dir() else old
    for file in list(source.iterdir()) if source.is_dir() else ():
        file.replace(path.parent / file.name)


def _tidy(path: Path) -> None:
    """Once more when Python ends where this fails; and then the next run does it."""
    with contextlib.suppress(OSError):
        _remove(path)
        _mine.pop(path, None)


def _remove(path: Path) -> None:
    """A file, or a directory with all in it, by one descriptor at a time; neither need be there."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty one by none
            return
        for file in list(path.iterdir()):
            _remove(file)
        path.rmdir()
    except FileNotFoundError:
        return


@atexit.register
def _remove_mine() -> None:
    for path, process in list(_mine.items()):
        if process == os.getpid():
            _tidy(path)
