"""Converting and verifying files, beside what the machine can do: time, memory, and how both grow."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitconv.system.jobs import default_threads

from bench.measure import (
    MACHINE_SHARE,
    SYNCED_COPY,
    Comparison,
    Run,
    bitconv,
    cold,
    compare,
    machine_limit,
    read,
    remove,
    run,
    size,
)

# Types whose default runner does not know the family of 2b-4t, and the one that does.
RUNNER = {"tq1_0": ("--runner", "bitnet.cpp"), "tq2_0": ("--runner", "bitnet.cpp")}
COPY_LIMIT = VERIFY_LIMIT = AGAINST_LIMIT = 1.5


@dataclass(frozen=True)
class Source:
    """A made-up checkpoint. layers: None for all that the shape has."""

    shape: str
    stored: str
    layers: int | None = None

    def __str__(self) -> str:
        layers = "" if self.layers is None else f" of {self.layers} layer{'s' * (self.layers > 1)}"
        return f"{self.shape}{layers}, {self.stored}"


@dataclass(frozen=True)
class Point:
    """A conversion of a model of `nbytes` by `threads` threads."""

    nbytes: int
    threads: int
    comparison: Comparison


@contextmanager
def checkpoint(work: Path, source: Source) -> Iterator[Path]:
    """A made-up checkpoint in the page cache, removed at the end."""
    path = work / "checkpoint"
    print(f"making {source}", file=sys.stderr)
    layers = () if source.layers is None else ("--layers", str(source.layers))
    bitconv("dummy", path, "--shape", source.shape, "--stored", source.stored, *layers)
    read(path, default_threads())
    try:
        yield path
    finally:
        remove(path)


def conversion(
    model: Path, source: Source, type_name: str, repeats: int, threads: int | None = None, *, copied: bool = False
) -> Comparison:
    """A conversion beside what the machine takes, or beside a copy. threads: all cores where None."""
    out, other = model.with_name("out.gguf"), model.with_name("other")
    runner = () if source.shape.startswith("llama") else RUNNER.get(type_name, ())
    words = ("--type", type_name, *runner, *(("--threads", str(threads)) if threads else ()))
    return compare(
        f"convert {source}, to {type_name}{f' by {threads} threads' if threads else ''}",
        partial(bitconv, "convert", model, out, *words),
        "cp and sync of the checkpoint" if copied else "the machine's limit",
        partial(run, [*SYNCED_COPY, model, other])
        if copied
        else partial(machine_limit, model, out, other, threads or default_threads()),
        repeats=repeats,
        limit=COPY_LIMIT if copied else 1,
        outputs=[out, other],
    )


def verifications(model: Path, source: Source, repeats: int) -> list[Comparison]:
    """verify beside sha256sum of the file, and verify --against beside the conversion."""
    out, again = model.with_name("verified.gguf"), model.with_name("out.gguf")
    bitconv("convert", model, out)
    plain = compare(
        f"verify {source}, as i2_s",
        partial(bitconv, "verify", out),
        "sha256sum of the file",
        partial(run, ["sha256sum", out]),
        repeats=repeats,
        limit=VERIFY_LIMIT,
    )
    against = compare(
        f"verify --against {source}, as i2_s",
        partial(bitconv, "verify", out, "--against", model),
        "convert",
        partial(bitconv, "convert", model, again),
        repeats=repeats,
        limit=AGAINST_LIMIT,
        outputs=[again],
    )
    remove(out)
    return [plain, against]


def beyond_memory(model: Path, source: Source, repeats: int) -> list[Comparison]:
    """convert and verify of files that are not in the page cache, beside warm ones and beside reading them so.

    None where the system does not take advice on what to keep there.
    """
    if not hasattr(os, "posix_fadvise"):
        return []
    made, out = model.with_name("verified.gguf"), model.with_name("out.gguf")
    bitconv("convert", model, made)
    found = []
    for what, path, mine, share in (
        (f"convert {source}, to i2_s", model, partial(bitconv, "convert", model, out, "--force"), MACHINE_SHARE),
        (f"verify {source}, as i2_s", made, partial(bitconv, "verify", made), None),  # computes longer than it reads
    ):
        reading = cold(path, partial(read, path, default_threads()))
        for beside, other, limit in (("it warm", mine, None), ("reading it cold", reading, share)):
            found.append(
                compare(f"{what}, cold", cold(path, mine), beside, other, repeats=repeats, limit=limit, outputs=[out])
            )
    remove(made)
    return found


def thread_counts() -> list[int]:
    """1, 2, 4, ... as far as the machine has cores."""
    return [count for power in range(8) if (count := 1 << power) <= default_threads()]


def growth_with_threads(model: Path, source: Source, repeats: int) -> list[Point]:
    return [Point(size(model), count, conversion(model, source, "i2_s", repeats, count)) for count in thread_counts()]


def growth_with_size(work: Path, sources: Sequence[Source], repeats: int) -> list[Point]:
    points = []
    for source in sources:
        with checkpoint(work, source) as model:
            points.append(Point(size(model), default_threads(), conversion(model, source, "i2_s", repeats)))
    return points


def memory(model: Path, repeats: int) -> tuple[Run, ...]:
    """Conversions to I2_S for their memory alone."""
    out = model.with_name("out.gguf")
    runs = []
    for _ in range(repeats):
        runs.append(bitconv("convert", model, out))
        remove(out)
    return tuple(runs)
