"""Perplexity of a GGUF file on a text, by its own tokenizer and its own packed bytes."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitconv.gguf import GGUFFile, read_gguf
from bitconv.inference.forward import Floats, ForwardPass
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.layouts.tiles import read_kernel_config
from bitconv.packed.inspection import Inspection, inspect_file
from bitconv.system.errors import BitconvError, Code, check_number, option, reports_system_errors
from bitconv.system.files import MAX_TEXT, read_text
from bitconv.system.jobs import Progress
from bitconv.system.results import Result


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """What a text is worth under a model.

    Attributes:
        tokens: Of the text.
        scored: Those that were predicted.
        nll: Their mean negative log-likelihood in nats.
        tokens_per_second: Of those put in, reading the file not counted.
    """

    file: Path
    architecture: str
    activations: str
    window: int
    stride: int
    tokens: int
    scored: int
    nll: float
    perplexity: float
    seconds: float
    tokens_per_second: float


@reports_system_errors
def evaluate(
    file: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    window: int = 256,
    stride: int | None = None,
    batch: int = 256,
    max_tokens: int | None = None,
    float_activations: bool = False,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Negative log-likelihood and perplexity of a text file under the model in a GGUF file.

    The tokens of the text, without a begin token, in windows, each on its own, the last partial one dropped. Every
    token of a window but its first is predicted, and scored where no earlier window did.

    Args:
        file: The GGUF file.
        text: A text file in UTF-8.
        window: Tokens in a window.
        stride: Tokens from the start of a window to that of the next; None for window. With less, windows overlap: a
            token has at least window - stride others before it, but in the first window.
        batch: Tokens computed at once; 1 is how text is generated.
        max_tokens: Stop after so many tokens of the text.
        float_activations: What a runner computes that does not round activations to int8.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None.
        progress: Called with the tokens computed so far and in all.

    Returns:
        The perplexity, and how it was measured.

    Raises:
        BitconvError: Where the file is faulty or not supported, or the text too short.

    Example:
        >>> result = bitconv.evaluate("llama.gguf", "fixtures/eval.txt", max_tokens=512)
        >>> result.scored, round(result.perplexity) > 1
        (510, True)
    """
    check_number("window", window, 2)
    stride = window if stride is None else stride
    check_number("stride", stride, 1)
    if stride > window:
        raise BitconvError(
            f"{option('stride', stride)} leaves out tokens between windows of {window}",
            code=Code.OPTIONS,
            way_out=f"pass at most {option('stride', window)}",
        )
    check_number("batch", batch, 1)
    if max_tokens is not None:
        check_number("max_tokens", max_tokens, 2)
    opened, inspection = opened_to_run(file, kernel_config, i2_s_order)
    content = read_text(text, limit=MAX_TEXT)
    tokens = np.array(load_tokenizer(opened.metadata, opened.path).encode(content, add_special_tokens=False).ids)
    tokens = tokens[:max_tokens]
    if len(tokens) < window:
        raise BitconvError(
            f"{len(tokens)} tokens, less than a window of {window}",
            code=Code.USAGE,
            file=os.fspath(text),
            way_out=f"pass {option('window', len(tokens))}" if len(tokens) > 1 else "take a longer text",
        )
    windows = np.lib.stride_tricks.sliding_window_view(tokens, window)[::stride]
    model = ForwardPass(opened, inspection, float_activations=float_activations, threads=threads)
    start = time.perf_counter()
    total, scored = 0.0, 0
    for number, ids in enumerate(windows):
        cache = model.new_cache(window)
        scored_before = 1 if number == 0 else max(1, window - stride)  # the window's first tokens
        for first in range(0, window, batch):
            states = model.states(ids[first : first + batch], cache)
            # Nothing follows the last token, and what an earlier window scored is not scored again.
            left_out = min(max(scored_before - 1 - first, 0), batch)
            following = ids[first + left_out + 1 : first + batch + 1]
            for value in model.log_probabilities(states[left_out : left_out + len(following)], following):
                total -= float(value)
            scored += len(following)
            if progress is not None:
                progress(number * window + cache.used, windows.size)
    seconds = time.perf_counter() - start
    return Evaluation(
        file=opened.path,
        architecture=inspection.architecture_name,
        activations="float32" if float_activations else "int8",
        window=window,
        stride=stride,
        tokens=len(tokens),
        scored=scored,
        nll=total / scored,
        perplexity=perplexity(total / scored),
        seconds=seconds,
        tokens_per_second=windows.size / seconds,
    )


def opened_to_run(
    file: str | os.PathLike[str], kernel_config: str | os.PathLike[str] | None, i2_s_order: str | None
) -> tuple[GGUFFile, Inspection]:
    """A file that a forward pass can take. BitconvError where it is faulty or has keys that are not known."""
    opened = read_gguf(Path(file))
    tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
    inspection = inspect_file(opened, tiles, i2_s_order)
    inspection.check_loads(opened.path)
    inspection.check_known_keys(opened.path)
    return opened, inspection


def perplexity(nll: float) -> float:
    """Of a mean negative log-likelihood in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def log_probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities of the next token, (..., vocabulary), from logits of that shape."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
