"""A GGUF file against the checkpoint it was made from: the same text through both."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bitconv.commands.evaluate import log_probabilities, opened_to_run, perplexity
from bitconv.gguf import Metadata
from bitconv.inference.forward import Floats, ForwardPass, Tokens
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.quantization import ScaleConvention
from bitconv.planning.agreement import compare_metadata
from bitconv.system.errors import BitconvError, Code, check_number, first_lines, reports_system_errors
from bitconv.system.files import MAX_TEXT, read_text
from bitconv.system.jobs import Progress
from bitconv.system.results import Result
from bitconv.tokenizer.vocabulary import TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Doubles: TypeAlias = npt.NDArray[np.float64]

# What a right file keeps to. Rounding activations to int8 makes a difference in the last bit of a float a difference of
# 1/127 now and then: right files of trained models have a divergence of 0.0002 to 0.001 and 97 to 99 % of the tokens
# in common; the faults that users meet (a permutation, a norm, an activation, a base) go beyond one of these limits.
MAX_DIVERGENCE = 0.01
MIN_TOP1_AGREEMENT = 0.9
MAX_PERPLEXITY_RATIO = 1.02

DEFAULT_TEXT = """\
The lighthouse keeper counted 1,024 waves before breakfast, as she did every morning, and wrote the number down in \
a green book that nobody else was allowed to read. "It isn't science," she'd tell the boy who brought the milk, \
"but it's a habit, and habits keep the lamp alight." He never asked what would happen if she stopped; he thought \
of the harbour, of the boats that came home late with their lamps swinging, and of his father's hands on the ropes.

In the year 1987 the sea took the lower steps. The council met twice, argued for 3 hours and 45 minutes, and voted \
(12 against 7) to do nothing until spring. Spring came, and with it a letter from the capital: the light would be \
automatic from now on. She read it aloud to the gulls. Then she folded it into the green book, between two pages of \
waves, and climbed the 199 stairs once more, for the lamp does not know what is written in letters.

    def lamp(hours: int) -> str:
        return "on" if hours >= 18 or hours < 6 else "off"   # night\n
\tNaïve café — Zürich, Straße 5; цена: 10 €; 我想在这里工作; こんにちは; مرحبا; 🚀🙂\n
"""


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """How far a file is from its checkpoint.

    Attributes:
        tokens: Of the text, as the checkpoint splits it.
        metadata: The keys by which a runner computes that are not what the checkpoint says.
        tokenized_differently: Texts that the file splits otherwise.
        max_difference: Of logits, in absolute value.
        mean_difference: The same.
        divergence: The mean Kullback-Leibler divergence of the file's next token from the checkpoint's, in nats.
        top1_agreement: How often both find the same token likeliest.
    """

    file: str
    model: str
    tokens: int
    metadata: tuple[str, ...]
    tokenized_differently: tuple[str, ...]
    max_difference: float
    mean_difference: float
    divergence: float
    top1_agreement: float
    file_perplexity: float
    model_perplexity: float

    @property
    def disagreements(self) -> tuple[str, ...]:
        """What is beyond its threshold, in words."""
        ratio = max(self.file_perplexity / self.model_perplexity, self.model_perplexity / self.file_perplexity)
        found = list(self.metadata)
        if self.tokenized_differently:
            texts = ", ".join(repr(text[:40]) for text in self.tokenized_differently[:3])
            found.append(f"{len(self.tokenized_differently)} texts are tokenized differently: {texts}")
        if not self.divergence <= MAX_DIVERGENCE:
            found.append(f"the mean divergence is {self.divergence:.4g}, above {MAX_DIVERGENCE}")
        if self.top1_agreement < MIN_TOP1_AGREEMENT:
            found.append(f"the likeliest token agrees in {self.top1_agreement:.1%}, below {MIN_TOP1_AGREEMENT:.0%}")
        if not ratio <= MAX_PERPLEXITY_RATIO:
            found.append(f"the perplexities differ by a factor of {ratio:.4g}, above {MAX_PERPLEXITY_RATIO}")
        return tuple(found)

    @property
    def agrees(self) -> bool:
        return not self.disagreements


@reports_system_errors
def compare(
    file: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    text: str | os.PathLike[str] | None = None,
    window: int = 256,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run the same tokens through a GGUF file and, in PyTorch and float32, through its checkpoint.

    The tokens are those of the text, with what the checkpoint's tokenizer puts around a prompt, in windows, each on its
    own. Besides the text, both tokenizers split every token of the vocabulary, alone and in longer words. The verdict:
    metadata as the checkpoint says, all texts split alike, a mean divergence of MAX_DIVERGENCE at most,
    MIN_TOP1_AGREEMENT at least, and perplexities within a factor of MAX_PERPLEXITY_RATIO.

    Args:
        file: The GGUF file.
        model: As `convert` takes it.
        revision: As `convert` takes it.
        token: As `convert` takes it.
        text: A text file in UTF-8; None for a short text of bitconv's own.
        window: Tokens in a window.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None.
        progress: Called with the tokens computed so far and in all.

    Returns:
        What was measured; `agrees` is the verdict.

    Raises:
        BitconvError: Where a package of bitconv[torch] is missing, and where the file cannot be evaluated.

    Example:
        >>> bitconv.compare("llama.gguf", "fixtures/Llama3-1.58-tiny").agrees  # doctest: +SKIP
        True
    """
    check_number("window", window, 2)
    try:
        from bitconv.inference.torch_reference import load_encode, load_logits
    except ImportError as error:
        raise BitconvError(
            f"{error.name} is missing, which compare needs", code=Code.PACKAGE, way_out="pip install 'bitconv[torch]'"
        ) from None
    opened, inspection = opened_to_run(file, kernel_config, i2_s_order)
    content = DEFAULT_TEXT if text is None else read_text(text, limit=MAX_TEXT)
    source = open_checkpoint(model, revision, token)
    with source as checkpoint:
        forward = ForwardPass(opened, inspection, threads=threads)
        # The convention is verify's business, and how the pre-tokenizer splits is seen below.
        stated = opened.metadata.get("tokenizer.ggml.pre")
        pre = stated if opened.metadata["tokenizer.ggml.model"] == "gpt2" and isinstance(stated, str) else None
        understood = load_model(checkpoint, ScaleConvention.MULTIPLY)
        agreement = compare_metadata(opened.metadata, inspection, checkpoint, understood, pre)
        encode = load_encode(checkpoint)
        tokenizer = load_tokenizer(opened.metadata, opened.path)
        texts = [content, *_probes(tokenizer, opened.metadata)]
        expected, found = encode(texts), [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        tokens = np.array(expected[0])
        if len(tokens) < 2:
            raise BitconvError(f"the text has {len(tokens)} tokens; 2 at least are needed", code=Code.USAGE)
        if progress is not None:
            progress(0, len(tokens))  # loading may take longer than a window
        reference = load_logits(checkpoint)
        windows = []
        for first in range(0, len(tokens) - 1, window):
            ids = tokens[first : first + window]
            logits = reference(ids)
            if logits.shape[1] != forward.sizes.vocab:
                raise BitconvError(
                    f"has {forward.sizes.vocab} tokens, {checkpoint.path} has {logits.shape[1]}: they are "
                    "different models",
                    code=Code.CONTRADICTION,
                    file=str(opened.path),
                )
            windows.append(_compare_window(forward.logits(ids, forward.new_cache(len(ids))), logits, ids))
            if progress is not None:
                progress(first + len(ids), len(tokens))
    measured = {name: np.concatenate([getattr(w, name) for w in windows]) for name in _Window._fields}
    return Comparison(
        file=str(opened.path),
        model=os.fspath(model),
        tokens=len(tokens),
        metadata=first_lines(agreement.faults),
        tokenized_differently=tuple(text for text, a, b in zip(texts, expected, found, strict=True) if a != b),
        max_difference=float(measured["max_difference"].max()),
        mean_difference=float(measured["mean_difference"].mean()),
        divergence=float(measured["divergence"].mean()),
        top1_agreement=float(measured["same_top1"].mean()),
        file_perplexity=perplexity(measured["file_nll"].mean()),
        model_perplexity=perplexity(measured["model_nll"].mean()),
    )


class _Window(NamedTuple):
    """Of each token of a window; the likelihoods of each but the first."""

    max_difference: Floats
    mean_difference: Floats
    divergence: Doubles
    same_top1: npt.NDArray[np.bool_]
    file_nll: Doubles
    model_nll: Doubles


def _compare_window(file: Floats, model: Floats, tokens: Tokens) -> _Window:
    difference = np.abs(file - model)
    file_log, model_log = log_probabilities(file), log_probabilities(model)
    targets = np.arange(len(tokens) - 1), tokens[1:]
    return _Window(
        difference.max(axis=1),
        difference.mean(axis=1),
        (np.exp(model_log) * (model_log - file_log)).sum(axis=1),
        file.argmax(axis=1) == model.argmax(axis=1),
        -file_log[targets],
        -model_log[targets],
    )


def _probes(tokenizer: Tokenizer, metadata: Metadata) -> list[str]:
    """Every token of the vocabulary as text, alone, doubled, and beside a rare letter and a rare symbol.

    Where a word that is a token is not merged (ignore_merges), only within a longer word does a token show its merges.
    SentencePiece itself takes special tokens for plain text.
    """
    types: Any = metadata["tokenizer.ggml.token_type"]
    spm = metadata["tokenizer.ggml.model"] == "llama"
    ids = np.flatnonzero(types == TokenType.NORMAL if spm else types != TokenType.UNUSED)
    texts = tokenizer.decode_batch([[int(token_id)] for token_id in ids], skip_special_tokens=False)
    return [probe for text in texts for probe in (text, text + text.lstrip(), f"{text}\u01f0", f"\u2021{text}")]
