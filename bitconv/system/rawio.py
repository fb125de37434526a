"""Positioned reads and writes of whole buffers: any number of threads may share a descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

Buffer: TypeAlias = bytes | npt.NDArray[Any]


def read_at(descriptor: int, out: npt.NDArray[Any], offset: int) -> bool:
    """Fill `out` with the bytes at `offset`. False where the file ends before it is full."""
    view = out.data.cast("B")
    while view:
        count = _pread(descriptor, view, offset)
        if count == 0:
            return False
        view = view[count:]
        offset += count
    return True


def write_at(descriptor: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = (memoryview(data) if isinstance(data, bytes) else data.data).cast("B")
    while view:
        count = os.pwrite(descriptor, view, offset)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[count:]
        offset += count


def _pread(descriptor: int, view: memoryview, offset: int) -> int:
    try:
        return os.preadv(descriptor, [view], offset)
    except OSError as error:  # which file it is: else the one that is being written would be blamed
        with contextlib.suppress(OSError):
            error.filename = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        raise


def read_at_most(descriptor: int, count: int, offset: int) -> bytes:
    """`count` bytes at `offset`, fewer where the file ends before."""
    data = bytearray(count)
    view = memoryview(data)
    done = 0
    while done < count:
        got = _pread(descriptor, view[done:], offset + done)
        if got == 0:
            break
        done += got
    return bytes(view[:done])
