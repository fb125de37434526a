"""A file or a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import read_start
from bitconv.system.temporaries import NEW, OLD, READY, remove_dead, temporary_directory, temporary_file

WRITE_BACK_SECONDS = 0.05


def check_output(path: Path, *, force: bool, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Refuse a path that cannot be written, that is an input or, without force, that holds something."""
    if not path.parent.is_dir():
        raise BitconvError(f"the directory {path.parent} does not exist", code=Code.NOT_FOUND, file=path)
    remove_dead(Path(os.path.realpath(path)).parent)  # before the space on the disk is counted
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


def tidy_directory(path: Path) -> None:
    """What killed runs left in an output directory, or beside it, goes."""
    target = Path(os.path.realpath(path))
    for directory in (target.parent, target):
        remove_dead(directory)


@contextlib.contextmanager
def replacing(path: Path, size: int, *, force: bool = False) -> Iterator[int]:
    """A descriptor to write `size` bytes to, in a temporary file beside `path` that takes its place at the end.

    The space is taken first, so that a disk too small is found before the work. On any error, an interrupt
    included, the temporary file is removed and `path` is as it was. Without force, what has appeared there since is an
    error too.
    """
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        with temporary_file(target.parent) as (descriptor, temporary):
            _reserve(descriptor, size)
            with _written_back(descriptor):
                yield descriptor
            os.fchmod(descriptor, 0o666 & ~_umask())  # until now only its owner could read it
            os.fsync(descriptor)
            check_output(path, force=force)
            temporary.replace(target)
    except OSError as error:
        if temporary is not None and error.filename not in (None, str(temporary)):
            raise
        raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None


@contextlib.contextmanager
def replacing_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory to fill, whose files are those of `path` at the end; without force only where that is empty.

    A directory that exists stays the same one: it may be a mount point, or the one that a shell is in. On any error
    `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    exists = target.is_dir()
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(temporary_directory(target if exists else target.parent))
            new, ready, old = beside / NEW, beside / READY, beside / OLD
            new.mkdir()
            old.mkdir()
        except OSError as error:
            raise BitconvError(f"cannot be written: {error.strerror}", code=Code.WRITE, file=path) from None
        try:
            yield new
        except BitconvError as error:
            raise error.at(str(error.file).replace(str(new), str(path))) from None
        except OSError as error:
            if error.filename is not None:
                error.filename = str(error.filename).replace(str(new), str(path))
            raise
        there = [file for file in target.iterdir() if file != beside] if target.is_dir() else []
        if there and not (force and exists):
            raise BitconvError(f"cannot be written: {os.strerror(errno.ENOTEMPTY)}", code=Code.WRITE, file=path)
        moves = [(file, old / file.name) for file in there]
        if exists:  # from ready on, whoever finds this dead moves on instead of back
            moves += [(new, ready), *((ready / file.name, target / file.name) for file in new.iterdir())]
        else:
            moves.append((new, target))
        try:
            for source, destination in moves:
                source.rename(destination)
        except BaseException as error:
            for source, destination in reversed(moves):
                if source.parent.is_dir() and not os.path.lexists(source) and os.path.lexists(destination):
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
