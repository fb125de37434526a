"""How far a command is, on stderr: a bar where that is a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bitconv.cli.streams import write

# Between two lines where there is no terminal.
SECONDS = 10.0
# Over less time a rate says nothing.
_SOON = 0.5
# Fewer columns have no room for a bar and the time that went by.
_NARROW = 60


@contextlib.contextmanager
def progress_bar(what: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A function to call with what is done and all there is; it shows from then on, as a download has its own bar."""
    pace = _Pace(unit)
    if not sys.stderr.isatty():
        yield _lines(what, pace)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    narrow = console.width < _NARROW
    columns: list[Any] = [TextColumn("{task.description} {task.percentage:.0f} %")]
    columns += [] if narrow else [BarColumn(None)]
    bar = Progress(*columns, TextColumn("{task.fields[pace]}"), console=console, transient=True, expand=not narrow)
    task = bar.add_task(what, pace="")

    def progress(done: int, total: int) -> None:
        pace.update(done, total)
        bar.update(task, completed=done, total=total, pace=pace.short if narrow else pace.long)
        bar.start()

    try:
        yield progress
    finally:
        bar.stop()


def _lines(what: str, pace: _Pace) -> Callable[[int, int], None]:
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        pace.update(done, total)
        if time.monotonic() - last >= SECONDS and done < total:
            last = time.monotonic()
            rate = f", {pace.long}" if pace.long else ""
            write(sys.stderr, f"bitconv: {what}: {done / total:.0%}{rate}\n")

    return progress


class _Pace:
    """How fast it goes, by the whole pass so far: another total is another pass, which began where the last ended."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._begun = self._last = time.monotonic()
        self._total = 0
        self.short = self.long = ""

    def update(self, done: int, total: int) -> None:
        """short: the time left. long: the rate and the time that went by too. Neither before there is a rate."""
        if total != self._total:
            self._total, self._begun = total, self._last
        self._last = time.monotonic()
        elapsed = self._last - self._begun
        self.short = self.long = ""
        if elapsed >= _SOON and done:
            rate = done / elapsed
            self.short = f"{_clock((total - done) / rate)} left"
            shown = f"{rate / 1e6:,.0f} MB/s" if self._unit == "bytes" else f"{rate:,.3g} {self._unit}/s"
            self.long = f"{shown}, {self.short}, {_clock(elapsed)} so far"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
