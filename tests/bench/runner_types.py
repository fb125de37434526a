"""python -m bench.runner_types: what the types of a runner cost on this processor, in milliseconds a token.

A made-up model of the sizes of bitnet_b1_58-large (0.7B), one thread, a token at a time, in the runners that the wheels
of bitconv[test] bring. All types run in turns, since what slows the machine for a while slows them all: what counts is
the median of the ratios to the fastest, round by round, and of that its best round. What is printed belongs into
bitconv.backends.MILLISECONDS. In BITCONV_BENCH_DIR or the system's temporary directory: 4 GB.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.machine import machine
from bench.measure import bitconv
from bench.runners import measured

SHAPE = "large"
PACKAGES = {"llama.cpp": "xllamacpp", "ik_llama.cpp": "ik-llama-cpp-python"}
TYPES = {"llama.cpp": ("tq1_0", "tq2_0", "q2_0"), "ik_llama.cpp": ("iq1_bn", "iq2_bn")}
ROUNDS = 9
PROMPT = 4


def measure(directory: Path) -> dict[tuple[str, str], float]:
    """Milliseconds a token by runner and type."""
    model = directory / "model"
    bitconv("dummy", model, "--shape", SHAPE, "--stored", "bf16")
    rounds: dict[tuple[str, str], list[float]] = {(runner, name): [] for runner in TYPES for name in TYPES[runner]}
    files = {key: directory / f"{key[1]}.gguf" for key in rounds}
    for (runner, name), file in files.items():
        bitconv("convert", model, file, "--type", name, "--runner", runner)
    for _ in range(ROUNDS):
        for (runner, name), file in files.items():
            rounds[runner, name].append(1000 / measured(runner, file, 1, PROMPT).alone)
    fastest = min(rounds, key=lambda key: median(rounds[key]))
    best = min(rounds[fastest])
    return {
        key: best * median(mine / other for mine, other in zip(times, rounds[fastest], strict=True))
        for key, times in rounds.items()
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bitconv-bench-", dir=os.environ.get("BITCONV_BENCH_DIR")) as directory:
        found = measure(Path(directory))
        description = machine(Path(directory))
    print(description["CPU"], *(f"{package} {version(package)}" for package in PACKAGES.values()), sep=", ")
    for (runner, name), milliseconds in found.items():
        print(f"{runner:14} {name:8} {milliseconds:8.4g} ms")


if __name__ == "__main__":
    main()
