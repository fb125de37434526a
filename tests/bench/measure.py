"""Running commands: seconds, memory, and ratios to a program that is run beside them."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BITCONV = (sys.executable, "-c", "from bitconv.cli import main; main()")
# A copy that shares its blocks with the original is none; and bitconv's files are on the disk when it ends.
_COPY = ("cp", "-r", "--reflink=never") if sys.platform == "linux" else ("cp", "-r")
SYNCED_COPY = ("sh", "-c", '"$@" && sync', "sh", *_COPY)

# What a conversion may take: to start, and times the greater of reading the source and writing the output.
START_SECONDS, MACHINE_SHARE = 0.25, 1.3
# What a thread reads or writes at a time.
_PIECE = 1 << 20


class BenchError(Exception):
    """What keeps the bench from measuring, in one line."""


@dataclass(frozen=True)
class Run:
    """rss: the largest resident set in bytes, pages of mapped files included. output: stdout and stderr.

    reading, writing: the seconds of both that machine_limit counts.
    """

    seconds: float
    rss: int = 0
    output: str = ""
    reading: float = 0
    writing: float = 0


def run(command: Sequence[str | Path]) -> Run:
    """Run a command to its end, in a directory where no module lies. BenchError where it fails.

    The system counts this process's own resident set too, before the command takes its place: it must stay small.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if process.returncode:
        lines = output.strip().splitlines() or [""]
        raise BenchError(f"{' '.join(words[-6:])}: exit code {process.returncode}: {lines[-1]}")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), output)


def bitconv(*arguments: str | Path) -> Run:
    return run([*BITCONV, *arguments])


@dataclass(frozen=True)
class Comparison:
    """What was run, and beside what, in turns. limit: of the ratio of the seconds, none where it is just shown."""

    what: str
    beside: str
    runs: tuple[Run, ...]
    others: tuple[Run, ...]
    limit: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Of each pair: what slows the machine for a while slows both."""
        return [mine.seconds / other.seconds for mine, other in zip(self.runs, self.others, strict=True)]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def other_seconds(self) -> float:
        return median(run.seconds for run in self.others)

    @property
    def rss(self) -> int:
        return max(run.rss for run in self.runs)


def compare(
    what: str,
    mine: Callable[[], Run],
    beside: str,
    other: Callable[[], Run],
    *,
    repeats: int,
    limit: float | None = None,
    outputs: Sequence[Path] = (),
) -> Comparison:
    """Run both in turns. outputs: what they write, removed after each turn."""
    print(f"{what}, beside {beside}", file=sys.stderr)
    runs: list[Run] = []
    others: list[Run] = []
    for _ in range(repeats):
        runs.append(mine())
        others.append(other())
        for output in outputs:
            remove(output)
    return Comparison(what, beside, tuple(runs), tuple(others), limit)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    os.sync()  # so that the next run does not wait for what this one left to be written


def files(path: Path) -> list[Path]:
    """A file, or the files of a directory."""
    return [path] if path.is_file() else sorted(path.iterdir())


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a directory."""
    return sum(file.stat().st_size for file in files(path))


def machine_limit(source: Path, output: Path, written: Path, threads: int) -> Run:
    """What a conversion of a file or directory to `output` may take. written: a file to write, as large."""
    reading, writing = read(source, threads).seconds, write(written, size(output)).seconds
    return Run(START_SECONDS + MACHINE_SHARE * max(reading, writing), reading=reading, writing=writing)


def read(path: Path, threads: int) -> Run:
    """Read a file, or the files of a directory, once: into the page cache too."""
    start = time.perf_counter()
    with ExitStack() as stack:
        streams = [stack.enter_context(file.open("rb", buffering=0)) for file in files(path)]
        pieces = [(s.fileno(), at) for s in streams for at in range(0, os.fstat(s.fileno()).st_size, _PIECE)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_read_pieces, (pieces[first::threads] for first in range(threads))))
    return Run(time.perf_counter() - start)


def _read_pieces(pieces: Sequence[tuple[int, int]]) -> None:
    with mmap.mmap(-1, _PIECE) as buffer:  # whole pages: to copy to others can take much longer
        for descriptor, offset in pieces:
            os.preadv(descriptor, [buffer], offset)


def write(path: Path, nbytes: int) -> Run:
    """Write a file, to the disk."""
    start = time.perf_counter()
    with path.open("wb", buffering=0) as stream, mmap.mmap(-1, _PIECE) as buffer, memoryview(buffer) as view:
        view[:] = os.urandom(_PIECE)
        for at in range(0, nbytes, _PIECE):
            stream.write(view[: nbytes - at])
        os.fsync(stream)
    return Run(time.perf_counter() - start)


def cold(path: Path, measured: Callable[[], Run]) -> Callable[[], Run]:
    """A run before which a file, or the files of a directory, leave the page cache."""

    def run_cold() -> Run:
        for file in files(path):
            with file.open("rb", buffering=0) as stream:
                os.fsync(stream)  # what is yet to be written stays
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return measured()

    return run_cold
