"""GGUF files in real runners, each run in a process of its own: a runner that crashes fails one test, no more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FIXTURES = Path(__file__).parent.parent / "fixtures"
TEXT = FIXTURES / "eval.txt"
WINDOW = 256  # reference.json's: each window of tokens is predicted on its own
TIMEOUT = 300  # seconds; only a hang takes so long


class RunnerError(Exception):
    """A runner refused a file, crashed or hung. The message ends with the end of its log."""


class Predictions(NamedTuple):
    """tokens: of TEXT, by the file's own tokenizer. log_probabilities: (positions, vocabulary), of the next token."""

    tokens: npt.NDArray[np.int32]
    log_probabilities: npt.NDArray[np.float32]


class Losses(NamedTuple):
    """tokens: of TEXT, by the file's own tokenizer. losses: (windows, WINDOW - 1), of each token but the first."""

    tokens: npt.NDArray[np.int32]
    losses: npt.NDArray[np.float64]


def llama_cpp(file: Path, positions: Sequence[int]) -> Predictions:
    """What llama.cpp (the xllamacpp wheel) predicts after the tokens at these positions of TEXT."""
    return Predictions(**_script("run_llama_cpp.py", file, ",".join(map(str, positions))))


def ik_llama_cpp(file: Path) -> Losses:
    """What ik_llama.cpp (the ik-llama-cpp-python wheel) makes of TEXT."""
    return Losses(**_script("run_ik_llama_cpp.py", file))


def bitnet_cpp(binary: str, file: Path, *, batch: int = 512, timeout: int = TIMEOUT) -> float:
    """The perplexity of TEXT by bitnet.cpp's llama-perplexity: of the second half of each window, BOS in front."""
    options = ["-f", str(TEXT), "-c", str(WINDOW), "-b", str(batch), "-ub", str(batch), "-t", "1"]
    log = _run([binary, "-m", str(file), *options], timeout)
    found = re.search(r"Final estimate: PPL = (\S+)", log)
    if found is None:
        raise RunnerError(_end(log))
    return float(found[1])


def _script(name: str, file: Path, *arguments: str) -> dict[str, npt.NDArray[Any]]:
    out = file.with_suffix(".npz")
    script = Path(__file__).with_name(name)
    _run([sys.executable, str(script), str(file), str(TEXT), str(WINDOW), *arguments, str(out)])
    return dict(np.load(out))


def _run(command: Sequence[str], timeout: int = TIMEOUT) -> str:
    """A command's whole output. RunnerError where it does not end well."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise RunnerError(f"no end after {error.timeout} seconds") from None
    if done.returncode:
        raise RunnerError(f"exit code {done.returncode}\n{_end(done.stdout)}")
    return done.stdout


def _end(log: str) -> str:
    return "\n".join(log.splitlines()[-15:])
