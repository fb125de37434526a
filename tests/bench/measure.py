"""Running commands: seconds, memory, and ratios to a program that is run beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BITCONV = (sys.executable, "-c", "from bitconv.cli import main; main()")
# A copy that shares its blocks with the original is none.
COPY = ("cp", "-r", "--reflink=never") if sys.platform == "linux" else ("cp", "-r")

# bitconv's files are on the disk when it ends, and cp's are in the page cache.
SYNCED_COPY = ("sh", "-c", '"$@" && sync', "sh", *COPY)


class BenchError(Exception):
    """What keeps the bench from measuring, in one line."""


@dataclass(frozen=True)
class Run:
    """rss: the largest resident set in bytes, pages of mapped files included. output: stdout and stderr."""

    seconds: float
    rss: int
    output: str


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
    command: Sequence[str | Path],
    beside: str,
    other: Sequence[str | Path],
    *,
    repeats: int,
    limit: float | None = None,
    outputs: Sequence[Path] = (),
) -> Comparison:
    """Run both in turns. outputs: what they write, removed after each run."""
    print(f"{what}, beside {beside}", file=sys.stderr)
    runs: list[Run] = []
    others: list[Run] = []
    for _ in range(repeats):
        for words, done in ((other, others), (command, runs)):
            done.append(run(words))
            for output in outputs:
                remove(output)
    return Comparison(what, beside, tuple(runs), tuple(others), limit)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    os.sync()  # so that the next run does not wait for what this one left to be written


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a directory."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def warm(path: Path) -> None:
    """Read a file, or the files of a directory, into the page cache."""
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass
