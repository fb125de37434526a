"""What the forward pass reaches of what the processor does: its multiply-adds, and its bandwidth of memory."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from bench.measure import BenchError, run
from bench.runners import TESTS, prompt_ids

KERNELS = TESTS.parent / "kernels"
# How limits.cpp is compiled for an instruction set: its header, and options.
BUILDS = {
    "avx2": ("avx2_dot", "-mavx2"),
    "avx_vnni": ("avx2_dot", "-mavx2 -mavxvnni -DBITCONV_VNNI"),
    "avx512": ("avx512_dot", "-mavx512f -mavx512bw"),
    "avx512_vnni": ("avx512_dot", "-mavx512f -mavx512bw -mavx512vnni -DBITCONV_VNNI"),
    # The loop is of vectors, of tiles too.
    "avx512_amx": ("avx512_dot", "-mavx512f -mavx512bw -mavx512vnni -DBITCONV_VNNI"),
    "neon": ("neon_dot", ""),
    "neon_dotprod": ("neon_dot", "-march=armv8.2-a+dotprod -DBITCONV_DOTPROD"),
    "neon_i8mm": ("neon_dot", "-march=armv8.2-a+dotprod+i8mm -DBITCONV_DOTPROD -DBITCONV_I8MM"),
}
PROMPT, ALONE = 256, 16  # tokens
PROMPT_SHARE, ALONE_SHARE = 0.5, 0.9
# In a process that starts in another directory.
ONE = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from bench.limits import one; one(*sys.argv[1:])"


@dataclass(frozen=True)
class Shares:
    """Of each round: of the multiply-adds a second of a plain loop, those of the projections while a prompt is read; of
    the bytes a second of reading, those of the weights while tokens are computed one at a time. scored: tokens a second
    where the logits of each are computed, as eval does."""

    prompt: tuple[float, ...]
    alone: tuple[float, ...]
    scored: tuple[float, ...]


def shares(file: Path, threads: int, repeats: int) -> Shares | None:
    """None where the instruction set has no loop of its own, or there is no compiler."""
    try:
        output = run([sys.executable, "-c", ONE, file, str(threads), str(repeats)]).output
    except BenchError as error:
        if "no loop" in str(error):
            return None
        raise
    rounds = [tuple(map(float, found)) for found in re.findall(r"shares: (\S+) (\S+) (\S+)", output)]
    return Shares(*zip(*rounds, strict=True))


def one(file: str, threads: str, repeats: str) -> None:
    from bitconv.commands.evaluate import opened_to_run
    from bitconv.inference.forward import ForwardPass

    with tempfile.TemporaryDirectory() as directory:
        limits = _build(Path(directory))
    opened, inspection = opened_to_run(file, None, None)
    model = ForwardPass(opened, inspection, threads=int(threads))
    products = sum(int(np.prod(projection.shape)) for projection in model.projections.values())
    everything = np.ones(opened.size // 8, np.uint64)  # of the bytes of a token nearly all are weights
    for _ in range(1 + int(repeats)):
        cache = model.new_cache(PROMPT + ALONE)
        most = limits.multiply_adds(ctypes.c_double(0.5)) * int(threads)
        start = perf_counter()
        model.logits(np.array(prompt_ids(PROMPT)), cache, PROMPT - 1)
        prompt = PROMPT * products / (perf_counter() - start)
        bandwidth = limits.reading(ctypes.c_void_p(everything.ctypes.data), everything.nbytes, int(threads))
        start = perf_counter()
        for token in range(ALONE):
            model.logits(np.array([token]), cache)
        alone = ALONE * opened.size / (perf_counter() - start)
        start = perf_counter()
        states = model.states(np.array(prompt_ids(PROMPT)), model.new_cache(PROMPT))
        model.log_probabilities(states, np.array(prompt_ids(PROMPT)))
        scored = PROMPT / (perf_counter() - start)
        print(f"shares: {prompt / most:.4f} {alone / bandwidth:.4f} {scored:.4f}")


def _build(directory: Path) -> ctypes.CDLL:
    from bitconv import _kernels

    if _kernels.isa() not in BUILDS:
        raise SystemExit(f"no loop for {_kernels.isa()}")
    header, options = BUILDS[_kernels.isa()]
    library = directory / "limits.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", *options.split(), f"-I{KERNELS}"]
    command += [f'-DDOT="simd/{header}.hpp"', str(Path(__file__).with_suffix(".cpp")), "-o", str(library)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise SystemExit(f"no loop without {compiler}") from None
    found = ctypes.CDLL(str(library))
    found.multiply_adds.restype = found.reading.restype = ctypes.c_double
    found.reading.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return found
