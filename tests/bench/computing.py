"""Tokens a second of a model's files of several types, beside the runners that compute them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.measure import BenchError, bitconv, remove
from bench.runners import Speed, measured

# Each type and a runner of it.
TYPES = {"i2_s": "bitnet.cpp", "tl2": "bitnet.cpp", "tq2_0": "llama.cpp", "iq2_bn": "ik_llama.cpp"}
WHEELS = {"llama.cpp": "xllamacpp", "ik_llama.cpp": "ik_llama_cpp"}
PROMPT = 256


@dataclass(frozen=True)
class Computing:
    """Of each round; others: of the runner beside, none where it is not on this machine, or fails."""

    type_name: str
    threads: int
    speeds: tuple[Speed, ...]
    beside: str
    others: tuple[Speed, ...]


def computing(model: Path, threads: int, repeats: int) -> list[Computing]:
    """model: a checkpoint that all of these runners know."""
    file, found = model.with_name("computed.gguf"), []
    for type_name, runner in TYPES.items():
        bitconv("convert", model, file, "--type", type_name, "--runner", runner)
        speeds, others = [], []
        for _ in range(repeats):
            if _is_here(runner):
                try:
                    others.append(measured(runner, file, threads, PROMPT))
                except BenchError as error:
                    print(f"{runner}, {type_name}: {error}", file=sys.stderr)
            speeds.append(measured("bitconv", file, threads, PROMPT))
        found.append(Computing(type_name, threads, tuple(speeds), runner, tuple(others)))
        remove(file)
    return found


def _is_here(runner: str) -> bool:
    if runner in WHEELS:
        return find_spec(WHEELS[runner]) is not None
    named = os.environ.get("BITCONV_BITNET_CPP")
    return named is not None and Path(named).with_name("llama-bench").exists()
