"""Tokens a second of bitconv's forward pass and of the runners that wheels bring, each in a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from bench.measure import run

TESTS = Path(__file__).parents[1]
TOKENS = 16  # that are computed one at a time
# In a process that starts in another directory.
ONE = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from bench.runners import one; one(*sys.argv[1:])"


class Speed(NamedTuple):
    """Tokens a second: of a prompt, with the logits of its last token alone, and of tokens one at a time behind it."""

    prompt: float
    alone: float


def measured(runner: str, file: Path, threads: int, prompt: int) -> Speed:
    """prompt: its tokens."""
    output = run([sys.executable, "-c", ONE, runner, file, str(threads), str(prompt)]).output
    found = re.findall(r"tokens a second: (\S+) (\S+)", output)[-1]
    return Speed(*map(float, found))


def one(runner: str, file: str, threads: str, prompt: str) -> None:
    speed = RUN[runner](file, int(threads), int(prompt))
    print(f"tokens a second: {speed.prompt:.5g} {speed.alone:.5g}")


def prompt_ids(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(5, 1000, count)]


def bitconv(file: str, threads: int, prompt: int) -> Speed:
    from bitconv.commands.evaluate import opened_to_run
    from bitconv.inference.forward import ForwardPass

    model = ForwardPass(*opened_to_run(file, None, None), threads=threads)

    def compute(position: int) -> None:
        if position == 0:
            model.logits(np.array(prompt_ids(prompt)), cache, prompt - 1)
        else:
            model.logits(np.array([5 + position]), cache)

    cache = model.new_cache(prompt + TOKENS + 1)
    compute(0)  # reads the weights for the first time
    cache.used = 0
    return _timed(compute, prompt)


def llama_cpp(file: str, threads: int, prompt: int) -> Speed:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = prompt + TOKENS + 2
    params.n_batch = params.n_ubatch = prompt
    params.n_parallel = 1
    params.warmup = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    options = {"n_predict": TOKENS, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    answer = server.handle_completions({"prompt": prompt_ids(prompt), **options})
    return Speed(answer["timings"]["prompt_per_second"], answer["timings"]["predicted_per_second"])


def ik_llama_cpp(file: str, threads: int, prompt: int) -> Speed:
    from ik_llama_cpp import _ctypes_api as ik

    import run_ik_llama_cpp as runner

    model = runner.load(file)
    context = runner.open_context(model, prompt + TOKENS + 1, threads)
    batch = ik.llama_batch_init(prompt, 0, 1)

    def compute(position: int) -> None:
        ids = prompt_ids(prompt) if position == 0 else [5 + position]
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, i if position == 0 else prompt + position - 1
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == len(ids) - 1
        if ik.llama_decode(context, batch):
            raise SystemExit("a token could not be decoded")
        ik.llama_get_logits_ith(context, len(ids) - 1)

    compute(0)
    ik.llama_kv_cache_clear(context)
    return _timed(compute, prompt)


def bitnet_cpp(file: str, threads: int, prompt: int) -> Speed:
    """By the llama-bench beside the llama-perplexity that BITCONV_BITNET_CPP names, with no more tokens at a time than
    are computed right."""
    import json
    import subprocess

    from bitconv.commands.evaluate import opened_to_run
    from bitconv.layouts.registry import max_batch

    _, inspection = opened_to_run(file, None, None)
    batch = min((most for layout in inspection.layouts.values() if (most := max_batch(layout.name))), default=prompt)
    program = Path(os.environ["BITCONV_BITNET_CPP"]).with_name("llama-bench")
    options = {"-m": file, "-p": prompt, "-n": TOKENS, "-t": threads, "-r": 1, "-o": "json", "-b": batch, "-ub": batch}
    words = [str(word) for option in options.items() for word in option]
    found = json.loads(subprocess.run([program, *words], stdout=subprocess.PIPE, check=True).stdout)
    by_kind = {bool(test["n_prompt"]): test["avg_ts"] for test in found}
    return Speed(by_kind[True], by_kind[False])


def _timed(compute: Callable[[int], None], prompt: int) -> Speed:
    """compute(0): the prompt; compute(i): the token behind i - 1 others."""
    start = perf_counter()
    compute(0)
    middle = perf_counter()
    for position in range(1, TOKENS + 1):
        compute(position)
    return Speed(prompt / (middle - start), TOKENS / (perf_counter() - middle))


RUN: dict[str, Callable[[str, int, int], Speed]] = {
    "bitconv": bitconv,
    "llama.cpp": llama_cpp,
    "ik_llama.cpp": ik_llama_cpp,
    "bitnet.cpp": bitnet_cpp,
}
