"""python -m bench.runner_types: what the types of a runner cost on this processor, in milliseconds a token.

A made-up model of the sizes of bitnet_b1_58-large (0.7B), one thread, a token at a time, in the runners that the wheels
of bitconv[test] bring. All types run in turns, since what slows the machine for a while slows them all: what counts is
the median of the ratios to the fastest, round by round, and of that its best round. What is printed belongs into
bitconv.backends.MILLISECONDS. In BITCONV_BENCH_DIR or the system's temporary directory: 4 GB.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench.machine import machine
from bench.measure import bitconv, run

SHAPE = "large"
PACKAGES = {"llama.cpp": "xllamacpp", "ik_llama.cpp": "ik-llama-cpp-python"}
TYPES = {"llama.cpp": ("tq1_0", "tq2_0", "q2_0"), "ik_llama.cpp": ("iq1_bn", "iq2_bn")}
ROUNDS = 9
TESTS = Path(__file__).parents[1]
# In a process of its own, which starts elsewhere.
ONE = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from bench.runner_types import one; one(*sys.argv[1:])"
TOKENS = 8


def llama_cpp(file: str) -> float:
    """Milliseconds a token, of TOKENS that are generated after some others."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 64
    params.n_parallel = 1
    params.warmup = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    answer = server.handle_completions(
        {"prompt": [1, 5, 6, 7], "n_predict": TOKENS, "ignore_eos": True, "temperature": 0, "timings_per_token": True}
    )
    return float(answer["timings"]["predicted_per_token_ms"])


def ik_llama_cpp(file: str) -> float:
    from time import perf_counter

    from ik_llama_cpp import _ctypes_api as ik

    import run_ik_llama_cpp as runner

    model = runner.load(file)
    context = runner.open_context(model, 64)
    batch = ik.llama_batch_init(1, 0, 1)
    seconds = []
    for position in range(TOKENS + 2):
        batch.n_tokens, batch.token[0], batch.pos[0] = 1, 5 + position, position
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, 1
        start = perf_counter()
        if ik.llama_decode(context, batch):
            raise SystemExit("a token could not be decoded")
        ik.llama_get_logits_ith(context, 0)
        seconds.append(perf_counter() - start)
    return sum(seconds[2:]) / TOKENS * 1000  # the first ones load the weights


RUN = {"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp}


def one(runner: str, file: str) -> None:
    print(f"milliseconds a token: {RUN[runner](file):.4g}")


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
            output = run([sys.executable, "-c", ONE, runner, file]).output
            rounds[runner, name].append(float(re.findall(r"milliseconds a token: (\S+)", output)[-1]))
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
