"""What is measured, in an order that needs little of the disk at a time."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitconv.system.jobs import default_threads

from bench import files, kernels
from bench.computing import Computing, computing
from bench.files import Point, Source
from bench.kernels import Rate
from bench.limits import Shares, shares
from bench.measure import BenchError, Comparison, Run, bitconv, remove, size
from bench.startup import startup

Result = TypeVar("Result")


@dataclass(frozen=True)
class Suite:
    """What to measure.

    main: the model that most is measured with, as I2_S. types: it is converted to, besides. others: models and the
    types that they are converted to; packed ones, which need little computing, beside a copy too. memory: models
    that must not need more of it. sizes: models for the growth, besides the main one. computed: is run, beside runners.
    read_bytes: that no cache holds a noticeable part of. disk: bytes that must be free.
    """

    repeats: int
    main: Source
    types: tuple[str, ...]
    others: tuple[tuple[Source, str], ...]
    memory: tuple[Source, ...]
    sizes: tuple[Source, ...]
    computed: Source
    read_bytes: int
    disk: int


FULL = Suite(
    repeats=5,
    main=Source("2b-4t", "bf16"),
    types=("tl1", "tl2", "tq1_0", "tq2_0", "iq2_bn", "iq1_bn"),
    # No runner of Q2_0 knows the family of 2b-4t.
    others=(
        (Source("2b-4t", "packed"), "i2_s"),
        (Source("llama3-8b", "packed"), "i2_s"),
        (Source("llama3-8b", "bf16", 8), "q2_0"),
    ),
    memory=(Source("llama3-8b", "packed"), Source("100b", "bf16", 1)),
    sizes=tuple(Source("2b-4t", "bf16", layers) for layers in (1, 10, 20)),
    computed=Source("large", "bf16"),
    read_bytes=kernels.beyond_cache(),
    disk=14 * 10**9,
)
_LAYER = "2560x6912x20x5"  # 2b-4t's, with a small vocabulary
QUICK = Suite(
    repeats=3,
    main=Source(f"4x{_LAYER}", "bf16"),
    types=(),
    others=((Source(f"4x{_LAYER}", "packed"), "i2_s"),),
    memory=(),
    sizes=(Source(f"1x{_LAYER}", "bf16"),),
    computed=Source("large", "bf16", 4),
    read_bytes=1 << 27,
    disk=3 * 10**9,
)


@dataclass(frozen=True)
class Results:
    """main: the main model's name. converted: it, to I2_S; that is among the comparisons too. memory: of others, by
    their names.
    """

    main: str
    comparisons: tuple[Comparison, ...]
    converted: Comparison
    memory: dict[str, tuple[Run, ...]]
    sizes: tuple[Point, ...]
    threads: tuple[Point, ...]
    rates: tuple[Rate, ...]
    shares: Shares | None
    computing: tuple[Computing, ...]


def measure(suite: Suite, work: Path) -> Results:
    """Run the suite in the directory `work`. BenchError where the disk has too little room, or a command fails."""
    free = shutil.disk_usage(work).free
    if free < suite.disk:
        raise BenchError(
            f"{suite.disk:,} bytes of disk are needed, {free:,} are free; name another directory in BITCONV_BENCH_DIR"
        )
    repeats, few = suite.repeats, min(suite.repeats, 3)
    comparisons = [startup(4 * repeats)]
    rates = _kernel_rates(suite)
    with files.checkpoint(work, suite.main) as model:
        converted = files.conversion(model, suite.main, "i2_s", repeats)
        comparisons.append(converted)
        comparisons += [files.conversion(model, suite.main, name, repeats) for name in suite.types]
        comparisons += files.verifications(model, suite.main, repeats)
        comparisons += files.beyond_memory(model, suite.main, few)
        sizes = [Point(size(model), default_threads(), converted)]
        threads = files.growth_with_threads(model, suite.main, few)
        reached = _shares(model, suite.main, few)
    memory = {}
    for source, type_name in suite.others:
        with files.checkpoint(work, source) as model:
            comparisons.append(files.conversion(model, source, type_name, repeats))
            if source in suite.memory:
                memory[str(source)] = comparisons[-1].runs
            if source.stored == "packed":
                comparisons.append(files.conversion(model, source, type_name, repeats, copied=True))
    with files.checkpoint(work, suite.computed) as model:
        print(f"compute {suite.computed} beside runners", file=sys.stderr)
        computed = computing(model, default_threads(), few)
    for source in suite.memory:
        if str(source) not in memory:
            with files.checkpoint(work, source) as model:
                memory[str(source)] = files.memory(model, few)
    sizes += files.growth_with_size(work, suite.sizes, few)
    return Results(
        main=str(suite.main),
        comparisons=tuple(comparisons),
        converted=converted,
        memory=memory,
        sizes=tuple(sorted(sizes, key=lambda point: point.nbytes)),
        threads=tuple(threads),
        rates=tuple(rates),
        shares=reached,
        computing=tuple(computed),
    )


def _shares(model: Path, source: Source, repeats: int) -> Shares | None:
    print(f"compute {source}", file=sys.stderr)
    file = model.with_name("computed.gguf")
    bitconv("convert", model, file)
    try:
        return shares(file, default_threads(), repeats)
    finally:
        remove(file)


def _kernel_rates(suite: Suite) -> list[Rate]:
    print("kernels", file=sys.stderr)
    return [
        *in_another_process(kernels.rates, 4 * suite.repeats),
        in_another_process(kernels.read_rate, suite.read_bytes, suite.repeats),
    ]


def in_another_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Its memory must not count as that of the commands which this process starts."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
