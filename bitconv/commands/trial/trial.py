"""Whether a runner computes the model in a file: what it says beside what bitconv's own forward pass says."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitconv.commands.compare import DEFAULT_TEXT
from bitconv.commands.doctor import find_programs, find_wheels, program
from bitconv.commands.evaluate import log_probabilities, opened_to_run
from bitconv.commands.evaluate import perplexity as perplexity_of
from bitconv.commands.generate import pieces
from bitconv.commands.trial.contacts import PACKAGES, WINDOW, Asked, CannotLoad, Contact, contact
from bitconv.commands.trial.faults import known_faults
from bitconv.gguf import GGUFFile
from bitconv.inference.forward import ForwardPass
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.layouts import FLOATS
from bitconv.layouts.registry import max_batch
from bitconv.packed.inspection import Inspection
from bitconv.runners import RUNNERS
from bitconv.system.errors import BitconvError, Code, check_number, reports_system_errors
from bitconv.system.files import MAX_TEXT, read_text
from bitconv.system.jobs import Progress, thread_count
from bitconv.system.results import Result
from bitconv.tokenizer.pretokenizers import PRE_TOKENIZERS

# Tokens of the text that next tokens are asked for in, and how many of its positions.
_TOKENS, _POSITIONS = 96, 12
# Of continuations: how many tokens of each.
_CONTINUED = 8
# Beyond these the runner computes something else. Right ones are below half of them (measured: llama.cpp, which rounds
# activations in blocks or not at all, 0.033 to 0.036; bitnet.cpp 0.0002 and 0.2), planted faults beyond twice.
_LIMITS = {"next tokens": 0.1, "perplexity": 0.03, "continuations": 0.5}
# By how much a prompt without a begin token must fit better than one with it.
_NEARER = 0.15
# What tokenizers differ in.
_HARD_TEXTS = (
    "Hello, world!  Two spaces,\ttab\nnewline\n\n\nthree",
    "it's we'll THEY'RE i'd 12345 1,234.5 0x1F",
    "naïve Straße цена 我想在这里工作 こんにちは مرحبا 한국어 ภาษาไทย",
    "🚀🙂👩‍👩‍👧 ≠ ∑ — “quotes” …",
    "    def f(x):\n        return x**2  # comment\r\n",
    " leading and trailing ",
)

Verdict = Literal["right", "wrong", "cannot load"]


@dataclass(frozen=True, repr=False)
class Trial(Result):
    """What a runner does with a file.

    Attributes:
        runner: As it was named: a program, a URL or a package.
        project: Of which project the program is, where that is known.
        version: As it says.
        verdict: "right", "wrong", or "cannot load".
        measured: What was compared: "next tokens" in nats, "perplexity" as the logarithm of the ratio, "continuations"
            as the share that differs; None where tokens alone were.
        difference: How far the runner is off.
        limit: From which on it is wrong.
        tokens: Whether it splits texts as the file's own tokenizer does; None where it does not tell.
        causes: What is wrong, where a known fault has the runner's numbers; or why it does not load.
    """

    runner: str
    project: str | None
    version: str | None
    verdict: Verdict
    measured: str | None
    difference: float | None
    limit: float | None
    tokens: bool | None
    causes: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Trials(Result):
    """The runners that were tried with a file."""

    file: Path
    trials: tuple[Trial, ...]

    @property
    def right(self) -> bool:
        """Whether every one computes the model."""
        return all(trial.verdict == "right" for trial in self.trials)


@reports_system_errors
def try_runner(
    file: str | os.PathLike[str],
    runner: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    text: str | os.PathLike[str] | None = None,
    timeout: int = 300,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Trials:
    """Run a file in a runner, and tell whether it computes the model.

    What the runner says is compared with bitconv's own forward pass: how it splits texts, and the likeliest next
    tokens, or the perplexity, or how it goes on where it tells no more. Where it is off, the faults that runners are
    known to have are put into the forward pass one by one, and the one with the runner's numbers is named.

    Nothing is contacted but the address that is named, and programs that are started here, which end with the call.

    Args:
        file: The GGUF file.
        runner: The path of llama-server, llama-cli, llama-completion, llama-perplexity or llama-tokenize of any fork of
            llama.cpp; the URL of a running llama-server, or of what serves OpenAI's completions with this file loaded;
            "xllamacpp" or "ik-llama-cpp-python" for these packages. None for all that `doctor` finds.
        model: The file's name at a server of several models.
        text: A text file in UTF-8, whose start is used. None for a short one in several scripts.
        timeout: Seconds for each question, and to load the file.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None, of the runner too.
        progress: Called with the runs of the model so far and in all, where a fault is looked for.

    Returns:
        A verdict a runner.

    Raises:
        BitconvError: Where the file is faulty or not supported, no runner is found, or one cannot be asked.

    Example:
        >>> bitconv.try_runner("llama.gguf", "llama.cpp/build/bin/llama-server").right  # doctest: +SKIP
        True
    """
    check_number("timeout", timeout, 1)
    opened, inspection = opened_to_run(file, kernel_config, i2_s_order)
    content = DEFAULT_TEXT if text is None else read_text(text, limit=MAX_TEXT)
    limits = [most for layout in inspection.layouts.values() if (most := max_batch(layout.name))]
    asked = Asked(opened.path, thread_count(threads), min(limits, default=None), float(timeout))
    named = _found() if runner is None else [os.fspath(runner)]
    forward = ForwardPass(opened, inspection, threads=threads)
    known = _Known(opened, inspection, forward, content)
    trials = tuple(_try(one, asked, model, known, progress) for one in named)
    return Trials(opened.path, trials)


def _found() -> list[str]:
    """Programs on PATH that say the most, and packages that can be asked."""
    programs = {found.name: found.path for found in find_programs()}
    preferred = ("llama-server", "llama-perplexity", "llama-completion", "llama-cli")
    chosen = [path for name in preferred if (path := programs.get(name))][:1]
    chosen += [found.name for found in find_wheels() if found.name in PACKAGES]
    if not chosen:
        raise BitconvError(
            "no runner is on PATH", code=Code.NOT_FOUND, way_out="name a program or the URL of a running server"
        )
    return chosen


class _Known:
    """The file's own tokenizer and forward pass."""

    def __init__(self, opened: GGUFFile, inspection: Inspection, forward: ForwardPass, text: str) -> None:
        self.opened = opened
        self.types = {layout.name for layout in inspection.layouts.values()}
        self.forward = forward
        self.tokenizer = load_tokenizer(opened.metadata, opened.path)
        self.text = text
        sentences = [line.strip()[:60].rsplit(" ", 1)[0] for line in text.splitlines() if len(line.split()) > 3]
        self.prompts = [sentence for sentence in sentences if sentence.isascii()][:6] or sentences[:6]

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Of a text; special: with the tokens that are put around it."""
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=special).ids]


class _Observed(ABC):
    """What a runner said. kind: a key of _LIMITS."""

    kind: str

    @abstractmethod
    def difference(self, forward: ForwardPass) -> float:
        """From what this forward pass says, 0 where it is the same."""

    @property
    def limit(self) -> float:
        return _LIMITS[self.kind]


class _NextTokens(_Observed):
    """at: by position in ids, the logarithms of the probabilities of the likeliest tokens after it."""

    kind = "next tokens"

    def __init__(self, ids: list[int], at: Mapping[int, Mapping[int, float]]) -> None:
        self._ids = ids
        self._at = at

    def difference(self, forward: ForwardPass) -> float:
        """In nats: the mean difference of the logarithms, by how likely the runner says that a token is."""
        logits = forward.logits(np.array(self._ids), forward.new_cache(len(self._ids)))
        found = []
        for position, told in self._at.items():
            if not told:
                return math.inf
            tokens, theirs = np.array(list(told)), np.array(list(told.values()))
            ours = log_probabilities(logits[position])[tokens]
            weights = np.exp(theirs - theirs.max())
            found.append(float((abs(theirs - ours) * weights).sum() / weights.sum()))
        return _finite(float(np.mean(found)))


class _Perplexity(_Observed):
    """Of windows of WINDOW tokens, as llama-perplexity scores them: of the second half each, behind a begin token."""

    kind = "perplexity"

    def __init__(self, value: float, ids: list[int], bos: int | None) -> None:
        self._value = value
        self._windows = np.array(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
        if bos is not None:
            self._windows[:, 0] = bos

    def difference(self, forward: ForwardPass) -> float:
        total, half = 0.0, WINDOW // 2
        for window in self._windows:
            states = forward.states(window, forward.new_cache(WINDOW))[half:-1]
            total -= float(forward.log_probabilities(states, window[half + 1 :]).sum())
        ours = perplexity_of(total / (len(self._windows) * (WINDOW - half - 1)))
        return _finite(abs(math.log(self._value / ours)) if self._value > 0 else math.inf)


class _Continuations(_Observed):
    """told: by the tokens of a prompt, the text that the runner puts after it."""

    kind = "continuations"

    def __init__(self, known: _Known, told: list[tuple[list[int], str]]) -> None:
        self._tokenizer: Any = known.tokenizer
        self._told = told

    def difference(self, forward: ForwardPass) -> float:
        """The share of the text behind the first character that differs, in the mean."""
        shares = []
        for ids, theirs in self._told:
            ours = "".join(pieces(self._tokenizer, ids, _greedy(forward, ids)))
            ours, theirs = ours.strip(), theirs.strip()
            pairs = list(zip(ours, theirs, strict=False))
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            shares.append(1.0 if ours == theirs else same / max(len(ours), 1))
        return 1 - float(np.mean(shares))


def _greedy(forward: ForwardPass, ids: list[int]) -> Iterator[int]:
    cache = forward.new_cache(len(ids) + _CONTINUED)
    logits = forward.logits(np.array(ids), cache, len(ids) - 1)[0]
    for left in reversed(range(_CONTINUED)):
        yield int(logits.argmax())
        if left:
            logits = forward.logits(np.array([logits.argmax()]), cache)[0]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _try(runner: str, asked: Asked, model: str | None, known: _Known, progress: Progress | None) -> Trial:
    packages = {found.name: found for found in find_wheels()}
    about = program(Path(runner)) if Path(runner).is_file() else packages.get(runner)
    told = (runner, None, None) if about is None else (runner, about.runner, about.version)
    not_its = list(_not_its_types(told[1], known))
    try:
        with contact(runner, asked, model) as asking:
            split = _tokens(asking)
            observed = list(_observe(asking, known))
    except CannotLoad as refusal:
        return Trial(*told, "cannot load", None, None, None, None, (*not_its, str(refusal)))
    split_so = list(_tokenizes_otherwise(split, known))
    causes, first = [*split_so], observed[0] if observed else None
    difference = None if first is None else first.difference(known.forward)
    if first is not None and difference is not None:
        if any(other.difference(known.forward) < difference - _NEARER for other in observed[1:]):
            causes.append("it does not put the begin token in front of a prompt, which the file asks for")
        elif difference > first.limit:
            causes += not_its or _cause(first, known, asked, progress)
    return Trial(
        *told,
        "wrong" if causes else "right",
        None if first is None else first.kind,
        difference,
        None if first is None else first.limit,
        None if split is None else not split_so,
        tuple(causes),
    )


def _not_its_types(project: str | None, known: _Known) -> Iterator[str]:
    """That no release of a project computes the file's types, where it is known."""
    releases = [runner for runner in RUNNERS if project and runner.name.startswith(project)]
    types = sorted(known.types - {*FLOATS})
    if releases and not any({*types} <= runner.computes for runner in releases):
        yield f"{project} does not compute {' and '.join(types)}: bitconv repack makes a file for it"


def _tokens(asking: Contact) -> dict[str, list[int]] | None:
    """Of the hard texts; None where the runner does not tell."""
    found = {text: asking.tokens(text) for text in _HARD_TEXTS}
    return None if None in found.values() else {text: ids for text, ids in found.items() if ids is not None}


def _observe(asking: Contact, known: _Known) -> Iterator[_Observed]:
    """The best that the runner tells; of continuations those with and those without a begin token."""
    ids = known.ids(known.text, special=True)
    used = ids[:_TOKENS]
    at = {}
    for position in np.unique(np.linspace(1, len(used) - 1, _POSITIONS, dtype=int)):
        told = asking.next_tokens(used[: position + 1])
        if told is None:
            break
        at[int(position)] = {token: value for token, value in told.items() if 0 <= token < known.forward.sizes.vocab}
    if at:
        yield _NextTokens(used, at)
        return
    copies = -(-2 * WINDOW // max(len(ids) - 2, 1))
    text = known.text * copies
    value = asking.perplexity(text)
    if value is not None:
        bare = known.ids(text, special=False)
        around = known.ids(text, special=True)
        bos = around[0] if len(around) > len(bare) else None
        yield _Perplexity(value, around, bos)
        return
    told_texts = [(prompt, asking.continuation(prompt, _CONTINUED)) for prompt in known.prompts]
    answered = [(prompt, text) for prompt, text in told_texts if text is not None]
    for special in (True, False):
        if answered:
            yield _Continuations(known, [(known.ids(prompt, special=special), text) for prompt, text in answered])


def _tokenizes_otherwise(split: Mapping[str, list[int]] | None, known: _Known) -> Iterable[str]:
    """Which other pre-tokenizer splits as the runner does, where one does."""
    if split is None or all(known.ids(text, special=False) == ids for text, ids in split.items()):
        return
    yield "it splits texts otherwise than the file's own tokenizer"
    if known.opened.metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    for name in dict.fromkeys(row.name for row in PRE_TOKENIZERS):
        try:
            other = load_tokenizer({**known.opened.metadata, "tokenizer.ggml.pre": name}, known.opened.path)
        except BitconvError:
            continue
        if all(other.encode(text, add_special_tokens=False).ids == ids for text, ids in split.items()):
            yield f"it splits them as {name} does, and the file says {known.opened.metadata.get('tokenizer.ggml.pre')}"
            return


def _cause(observed: _Observed, known: _Known, asked: Asked, progress: Progress | None) -> Iterator[str]:
    """The known fault that has the runner's numbers."""
    faults = list(known_faults(known.forward))
    differences = []
    for done, fault in enumerate(faults, 1):
        differences.append(observed.difference(fault.put()))
        if progress is not None:
            progress(done, len(faults))
    best = int(np.argmin(differences)) if faults else 0
    if faults and differences[best] <= observed.limit:
        yield faults[best].says
        return
    yield "it computes something else, and no known fault has its numbers"
    if asked.batch is not None:
        yield (
            f"{' and '.join(sorted(known.types))} is right in a runner that was built for its tiles, with at most "
            f"{asked.batch} tokens at a time (-b {asked.batch} -ub {asked.batch})"
        )
