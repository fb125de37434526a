"""A file or a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitconv.errors import BitconvError

WRITE_BACK_SECONDS = 0.05


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a path that cannot be written or, without force, that holds something."""
    if path.is_dir():
        raise BitconvError(f"{path}: is a directory; name a file")
    if not path.parent.is_dir():
        raise BitconvError(f"{path}: the directory {path.parent} does not exist")
    if path.exists() and not force:
        raise BitconvError(f"{path}: exists; pass --force to overwrite it")


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[int]:
    """A descriptor to write `size` bytes to, in a temporary file beside `path` that takes its place at the end.

    The space is taken first, so that a disk too small is found before the work. On any error, an interrupt
    included, the temporary file is removed and `path` is as it was.
    """
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise BitconvError(f"{path}: cannot be written: {error.strerror}") from None
    temporary = Path(name)
    try:
        try:
            _reserve(descriptor, size)
            with _written_back(descriptor):
                yield descriptor
            os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
    except OSError as error:
        if error.filename not in (None, name):
            raise
        raise BitconvError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of `path` at the end. On any error `path` is as it was."""
    target = path.resolve()
    try:
        beside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise BitconvError(f"{path}: cannot be written: {error.strerror}") from None
    with beside:
        new, old = Path(beside.name, "new"), Path(beside.name, "old")
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise


@contextlib.contextmanager
def _written_back(descriptor: int) -> Iterator[None]:
    """Keep the disk busy while the file is still being made, so that the last sync finds little left."""
    done = threading.Event()

    def write_back() -> None:
        while not done.wait(WRITE_BACK_SECONDS):
            os.fsync(descriptor)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_back)
        try:
            yield
        finally:
            done.set()
        writing.result()  # a sync reports a failed write once: the last one would not see it again


def _reserve(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        os.truncate(descriptor, size)
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.truncate(descriptor, size)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
