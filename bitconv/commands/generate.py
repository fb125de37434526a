"""Text from a GGUF file, by its own tokenizer and its own packed bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bitconv.commands.evaluate import log_probabilities, opened_to_run
from bitconv.gguf import Metadata
from bitconv.inference.forward import Floats, ForwardPass
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.system.errors import BitconvError, Code, check_number, one_line, option, reports_system_errors

# What ends a text, as in llama.cpp's vocabulary: the end of the text, of a turn, of a message.
_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


@reports_system_errors
def generate(
    file: str | os.PathLike[str],
    prompt: str,
    *,
    chat: bool = False,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
) -> Iterator[str]:
    """How the model in a GGUF file continues a text, in the arithmetic of `evaluate`.

    The prompt is taken as it stands, unless it is a chat's. The text ends with the model's own end token, after
    max_tokens, or where the model's context is full.

    Args:
        file: The GGUF file.
        prompt: The text to continue.
        chat: It is what a user says, to be answered: the file's chat template is put around it.
        max_tokens: The most tokens to generate.
        temperature: 0 takes the likeliest token; the larger, the more of the others.
        seed: Of the choice among tokens. The same seed chooses the same tokens.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None. The text does not depend on it.

    Returns:
        The text in pieces, each as soon as its characters are whole.

    Raises:
        BitconvError: Where the file is faulty or not supported, or the prompt does not fit.

    Example:
        >>> "".join(bitconv.generate("llama.gguf", "the", max_tokens=8)) != ""
        True
    """
    check_number("max_tokens", max_tokens, 1)
    check_number("seed", seed, 0)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise BitconvError(f"{option('temperature', temperature)}: expected 0 or more", code=Code.USAGE)
    if any("\ud800" <= character <= "\udfff" for character in prompt):  # bytes of a command line that are no text
        raise BitconvError("the prompt is not UTF-8", code=Code.USAGE)
    opened, inspection = opened_to_run(file, kernel_config, i2_s_order)
    tokenizer = load_tokenizer(opened.metadata, opened.path)
    text = _in_template(opened.metadata, opened.path, prompt) if chat else prompt
    # A template has the begin token itself.
    ids = tokenizer.encode(text, add_special_tokens=not chat).ids
    context = int(opened.metadata[f"{opened.metadata['general.architecture']}.context_length"])  # type: ignore[arg-type]
    if not 0 < len(ids) < context:
        raise BitconvError(
            f"a prompt of {len(ids)} tokens, and the model takes 1 to {context - 1}", code=Code.USAGE, file=opened.path
        )
    model = ForwardPass(opened, inspection, threads=threads)
    tokens = _tokens(model, ids, min(max_tokens, context - len(ids)), _ends(opened.metadata), temperature, seed)
    return pieces(tokenizer, ids, tokens)


def _in_template(metadata: Metadata, file: Path, prompt: str) -> str:
    """What a user says as the first turn of a chat, up to where the answer starts.

    The template is of a stranger, and runs where it reaches nothing; names are those that transformers gives it
    (utils/chat_template_utils.py).
    """
    template, tokens = metadata.get("tokenizer.chat_template"), metadata["tokenizer.ggml.tokens"]
    if not isinstance(template, str):
        raise BitconvError("has no chat template", code=Code.GGUF_UNSUPPORTED, file=file, way_out="continue a text")
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise BitconvError("jinja2 is missing", code=Code.PACKAGE, way_out="pip install 'bitconv[eval]'") from None

    def refuse(cause: str) -> NoReturn:
        raise TemplateError(cause)

    special = {
        f"{name}_token": tokens[int(metadata[key])]  # type: ignore[index, arg-type]
        for name in ("bos", "eos", "unk")
        if (key := f"tokenizer.ggml.{'unknown' if name == 'unk' else name}_token_id") in metadata
    }
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    messages = [{"role": "user", "content": prompt}]
    try:
        return environment.from_string(template, globals={"raise_exception": refuse}).render(
            messages=messages, add_generation_prompt=True, **special
        )
    except Exception as error:  # whatever a template does
        cause = one_line(f"{type(error).__name__}: {error}")
        raise BitconvError(f"its chat template fails: {cause:.200}", code=Code.TOKENIZER, file=file) from None


def _ends(metadata: Metadata) -> set[int]:
    return {int(metadata[key]) for key in _ENDS if key in metadata}  # type: ignore[arg-type]


def _tokens(
    model: ForwardPass, ids: list[int], count: int, ends: set[int], temperature: float, seed: int
) -> Iterator[int]:
    random = np.random.Generator(np.random.PCG64(seed))
    cache = model.new_cache(len(ids) + count)
    logits = model.logits(np.array(ids), cache, len(ids) - 1)[0]
    for left in reversed(range(count)):
        token = _choice(logits, temperature, random)
        if token in ends:
            return
        yield token
        if left:
            logits = model.logits(np.array([token]), cache)[0]


def _choice(logits: Floats, temperature: float, random: np.random.Generator) -> int:
    """A token by its probability at a temperature; at 0 the likeliest, the first of equal ones."""
    if temperature == 0:
        return int(logits.argmax())
    # Subtracted first: at a small temperature the quotients are beyond a float.
    scaled = (logits - logits.max()).astype(np.float64) / temperature
    shares = np.cumsum(np.exp(log_probabilities(scaled)))
    return int(np.searchsorted(shares, random.random() * shares[-1], side="right"))


def pieces(tokenizer: Any, ids: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """The texts of tokens that follow ids; a character of several tokens comes with its last."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    for token in ids:  # a space at the start of a word is one only behind another word
        stream.step(tokenizer, token)
    for token in tokens:
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece
