"""Tokens a second of bitconv eval, and of bitnet.cpp where BITCONV_BITNET_CPP names its llama-perplexity."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.measure import bitconv, run

TEXT = Path(__file__).parents[2] / "fixtures" / "eval.txt"
# (tokens at once, window, tokens in all): as text is generated, and as a prompt is read.
BATCHES = ((1, 32, 64), (256, 256, 512))


@dataclass(frozen=True)
class Decoding:
    """Tokens a second of each run; none of bitnet.cpp where there is none."""

    model: str
    batch: int
    threads: int
    speeds: tuple[float, ...]
    bitnet_cpp: tuple[float, ...]

    @property
    def speed(self) -> float:
        return median(self.speeds)


def decoding(file: Path, model: str, threads: int, repeats: int) -> list[Decoding]:
    """file: an I2_S file, of the model `model`."""
    binary = os.environ.get("BITCONV_BITNET_CPP")
    found = []
    for batch, window, tokens in BATCHES:
        speeds, others = [], []
        for _ in range(repeats):
            options = {"window": window, "batch": batch, "max-tokens": tokens, "threads": threads}
            words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
            speeds.append(_tokens_per_second(bitconv("eval", file, "--text", TEXT, *words, "--json").output))
            if binary is not None:
                others.append(_bitnet_cpp(binary, file, batch, window, tokens, threads))
        found.append(Decoding(model, batch, threads, tuple(speeds), tuple(others)))
    return found


def _tokens_per_second(output: str) -> float:
    """Of a result behind lines of progress."""
    return float(json.loads(output[output.index("{") :])["tokens_per_second"])


def _bitnet_cpp(binary: str, file: Path, batch: int, window: int, tokens: int, threads: int) -> float:
    options = {"-m": file, "-f": TEXT, "-c": window, "-b": batch, "-ub": batch, "-t": threads}
    options["--chunks"] = tokens // window
    log = run([binary, *(str(word) for option in options.items() for word in option)]).output
    return tokens_per_second(log, prompt=batch > 1)


def tokens_per_second(log: str, *, prompt: bool) -> float:
    """From the times that llama.cpp's programs print: of a prompt, or of tokens one at a time with their logits."""
    name, unit = ("prompt eval", "tokens") if prompt else ("eval", "runs")
    pattern = rf": +{name} time = +([\d.]+) ms / +(\d+) {unit}"
    milliseconds, count = re.findall(pattern, log)[-1]
    return int(count) / float(milliseconds) * 1000
