"""A file or a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import read_start

WRITE_BACK_SECONDS = 0.05
# Of temporary names. Those of outputs are no part of them: they may be as long as the file system takes.
_PREFIX, _SUFFIX = ".bitconv-", ".tmp"


def check_output(path: Path, *, force: bool, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Refuse a path that cannot be written, that is an input or, without force, that holds something."""
    if not path.parent.is_dir():
        raise BitconvError(f"the directory {path.parent} does not exist", code=Code.NOT_FOUND, file=path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise BitconvError("is a directory", code=Code.FILE_KIND, file=path, way_out="name a file")
    if not stat.S_ISREG(mode):
        raise BitconvError("is a device, a pipe or a socket", code=Code.FILE_KIND, file=path, way_out="name a file")
    if any(file is not None and path.samefile(file) for file in inputs):
        raise BitconvError("is the input itself", code=Code.EXISTS, file=path, way_out="name another output")
    if not force:
        raise BitconvError("exists", code=Code.EXISTS, file=path, way_out=f"pass {option('force')} to overwrite it")


def check_no_model_file(path: Path, model: Path, start: bytes) -> None:
    """Refuse to replace a file of a model directory, unless it starts as the new one will."""
    if not path.exists():
        return
    if read_start(path, None, len(start)) == start:
        return
    # By what they are, not by name: in the Hub's cache, files are links to elsewhere.
    if any(file.is_file() and file.samefile(path) for file in model.rglob("*")):
        raise BitconvError(
            "is a file of the checkpoint itself", code=Code.EXISTS, file=path, way_out="name another output"
        )


@contextlib.contextmanager
def replacing(path: Path, size: int, *, force: bool = False) -> Iterator[int]:
    """A descriptor to write `size` bytes to, in a temporary file beside `path` that takes its place at the end.

    The space is taken first, so that a disk too small is found before the work. On any error, an interrupt
    included, the temporary file is removed and `path` is as it was. Without force, what has appeared there since is an
    error too.
    """
    target = Path(os.path.realpath(path))
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX, suffix=_SUFFIX)
    except OSError as error:
        raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None
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
        check_output(path, force=force)
        temporary.replace(target)
    except OSError as error:
        if error.filename not in (None, name):
            raise
        raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory to fill, whose files are those of `path` at the end; without force only where that is empty.

    A directory that exists stays the same one: it may be a mount point, or the one that a shell is in. On any error
    `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    exists = target.is_dir()
    try:
        beside = tempfile.TemporaryDirectory(dir=target if exists else target.parent, prefix=_PREFIX, suffix=_SUFFIX)
    except OSError as error:
        raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None
    with beside:
        new, old = Path(beside.name, "new"), Path(beside.name, "old")
        new.mkdir()
        old.mkdir()
        try:
            yield new
        except BitconvError as error:
            raise error.at(str(error.file).replace(str(new), str(path))) from None
        except OSError as error:
            if error.filename is not None:
                error.filename = str(error.filename).replace(str(new), str(path))
            raise
        there = [file for file in target.iterdir() if file.name != Path(beside.name).name] if target.is_dir() else []
        if there and not force:
            raise BitconvError(f"cannot be written: {os.strerror(errno.ENOTEMPTY)}", code=Code.WRITE, file=path)
        moves = [(file, old / file.name) for file in there]
        moves += [(file, target / file.name) for file in new.iterdir()] if exists else [(new, target)]
        try:
            for source, destination in moves:
                source.rename(destination)
        except BaseException as error:
            for source, destination in reversed(moves):
                if os.path.lexists(destination) and not os.path.lexists(source):
                    destination.rename(source)
            if isinstance(error, OSError):
                raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None
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
