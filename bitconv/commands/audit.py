"""Which trits float latents are depends on arithmetic: how many, and which arithmetic made a release of them."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.commands.open import Matrix, open
from bitconv.models.arithmetic import ARITHMETICS, FLOAT32, MIN_MEAN, TYPES, abs_sum, counts_from
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.quantization import ABSMEAN, ABSMEAN_BF16, Rule
from bitconv.models.ternary_floats import settle_scales
from bitconv.models.trits import TritReader, Trits
from bitconv.models.weights import ExpertsWeight, Model, TernaryWeight
from bitconv.packed.embeddings import EMBEDDING, HEAD
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.results import Result

# Of a latent's distance to its threshold, as a part of it: below it and above it.
DISTANCES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
# Where more codes than these differ from all arithmetics, none of them made the release of these latents.
_ANOTHER_MODEL = 0.05

# By name and number in a stack of experts the shape of a matrix, and how it is opened.
_Others: TypeAlias = Mapping[tuple[str, int], tuple[tuple[int, ...], Callable[[KeepGoing], Matrix]]]


@dataclass(frozen=True)
class AuditedTensor:
    """Latents that were audited. Counts are of codes.

    Attributes:
        name: In the checkpoint.
        type: In which they are stored.
        scale: Their mean magnitude, in float32.
        differ: By arithmetic, how many are others than in float32.
        ties: By type, of how many the product is exactly one half: a trit only where halves are rounded away from zero.
        near: How many latents are next to float32's threshold, or on it: one ulp of theirs away at most.
        distances: How many lie below three quarters of the threshold, then nearer and nearer to it in the steps of
            DISTANCES, then above it and farther and farther.
        against: By arithmetic, how many are others than those of the release.
    """

    name: str
    type: str
    shape: tuple[int, int]
    scale: float
    differ: dict[str, int]
    ties: dict[str, int]
    near: int
    distances: tuple[int, ...]
    against: dict[str, int] | None


@dataclass(frozen=True, repr=False)
class Audit(Result):
    """What was found, in all, as in AuditedTensor, and tensor by tensor.

    Attributes:
        holds: The type that holds every latent exactly.
        explained_by: The arithmetic that makes the most codes of the release.
        verdict: In words, a line each.
    """

    model: str
    release: str | None
    codes: int
    holds: str
    differ: dict[str, int]
    ties: dict[str, int]
    near: int
    distances: tuple[int, ...]
    against: dict[str, int] | None
    explained_by: str | None
    verdict: tuple[str, ...]
    tensors: tuple[AuditedTensor, ...]


@reports_system_errors
def audit(
    model: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Count the codes of float latents that depend on arithmetic, by the absmean rule.

    Args:
        model: A Hugging Face model of float latents, as `convert` takes it.
        against: Its packed release, as a model or as a GGUF file, whose codes are compared with those of each
            arithmetic.
        revision: As `convert` takes it.
        token: As `convert` takes it.
        threads: All cores where None.
        progress: Called with the bytes audited so far and in all.

    Returns:
        The counts, and a verdict in words.

    Raises:
        BitconvError: On anything that cannot be judged, and where the model has no float latents.

    Example:
        >>> bitconv.audit("fixtures/bitnet_b1_58-tiny").holds
        'float32'
    """
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(model, revision, token))
        settled = _with_latents(checkpoint, threads)
        latents = [(key, weight) for key, weight in _matrices(settled).items() if isinstance(weight.scale, Rule)]
        others = None if against is None else _release(stack, against, token)
        for key, weight in latents:
            if others is not None and (key not in others or others[key][0] != weight.shape):
                raise BitconvError(
                    f"has no {key[0]} of shape {weight.shape}, which the latents have: it is of another model",
                    code=Code.CONTRADICTION,
                    file=against,
                )
        work = [
            partial(_audit, checkpoint, weight, None if others is None else others[key][1]) for key, weight in latents
        ]
        sizes = [math.prod(weight.shape) * ITEMSIZE[weight.stored.dtype] for _, weight in latents]
        results, done = [], 0
        for size, result in zip(sizes, jobs.run(work, threads), strict=True):
            results.append(result)
            done += size
            if progress is not None:
                progress(done, sum(sizes))
        checkpoint.check_unchanged()
    tensors = tuple(tensor for tensor, _ in results)
    return _in_all(str(model), None if against is None else str(against), {held for _, held in results}, tensors)


def _with_latents(checkpoint: Checkpoint, threads: int | None) -> Model:
    loaded = load_model(checkpoint)
    if any(not weight.has_scale for weight in loaded.matrices):
        settled = settle_scales(checkpoint, loaded, ABSMEAN, threads)
        if any(isinstance(weight.scale, Rule) for weight in settled.matrices):
            return settled
    kind = "packed trits" if all(weight.has_scale for weight in loaded.matrices) else "ternary floats"
    raise BitconvError(
        f"holds no float latents: its {len(loaded.matrices)} projections are {kind}, which no arithmetic changes",
        code=Code.GGUF_UNSUPPORTED,
        file=checkpoint.path,
        way_out="name the checkpoint of float master weights that it was made of",
    )


def _matrices(model: Model) -> dict[tuple[str, int], TernaryWeight]:
    """By name in the GGUF file, and number in a stack of experts."""
    weights = (weight for weight in model.weights if isinstance(weight, TernaryWeight | ExpertsWeight))
    return {(weight.name, i): matrix for weight in weights for i, matrix in enumerate(weight.matrices)}


def _release(stack: contextlib.ExitStack, against: str | os.PathLike[str], token: str | None) -> _Others:
    """The projections of a packed release. What is opened is closed by the stack."""
    release = stack.enter_context(open(against, token=token))
    return {
        (name, i): (tensor.shape[-2:], partial(tensor.matrix, i))
        for name, tensor in release.items()
        if tensor.is_ternary and name not in (EMBEDDING, HEAD)
        for i in range(tensor.count)
    }


def _audit(
    checkpoint: Checkpoint,
    weight: TernaryWeight,
    other: Callable[[KeepGoing], Matrix] | None,
    keep_going: KeepGoing,
) -> tuple[AuditedTensor, str]:
    """Reads the latents twice, as convert does: for the means, and for the codes."""
    dtype, (rows, columns) = weight.stored.dtype, weight.shape
    itemsize = ITEMSIZE[dtype]
    # Of any scale: the means are made here.
    reader = TritReader(checkpoint, replace(weight, scale=np.float32(1)), keep_going)
    sums = dict.fromkeys(TYPES, 0.0)
    beyond = np.uint32(0)
    for first, last in row_blocks(rows, columns, 1):
        keep_going()
        raw = reader.stored_bytes(first, last, itemsize)
        for to in TYPES:
            sums[to] += abs_sum(raw, dtype, to)
        if itemsize == 4 and not beyond & 0xFFFF:
            beyond |= np.bitwise_or.reduce(raw.view("<u4"))
        if not math.isfinite(sums["f32"]):
            raise weight.stored.error(f"holds NaN or infinity in rows {first} to {last - 1}", code=Code.TENSOR_VALUE)
    means = {to: np.float32(total / (rows * columns)) for to, total in sums.items()}
    least = {arithmetic.name: arithmetic.threshold(dtype, means[arithmetic.dtype]) for arithmetic in ARITHMETICS}
    inverse = float(FLOAT32.inverse(means["f32"]))
    steps = [1 - d for d in DISTANCES] + [1] + [1 + d for d in reversed(DISTANCES)]
    edges = [_kernels.threshold(dtype, inverse / step, "f32", True) for step in steps]
    edges[len(DISTANCES)] = least[FLOAT32.name]
    beside = [max(least[FLOAT32.name] - 1, 0), least[FLOAT32.name] + 1]
    patterns = np.array([*least.values(), *beside, *edges], np.uint32)
    counts = np.zeros(patterns.size, np.int64)
    release = None if other is None else other(keep_going)
    multiple = 1 if release is None else math.lcm(release.row_multiple, reader.row_multiple)
    wrong: Counter[int] = Counter()
    for first, last in row_blocks(rows, columns, multiple):
        keep_going()
        raw = reader.stored_bytes(first, last, itemsize)
        counts += counts_from(raw, dtype, patterns)
        if release is not None:
            wrong.update(_differing(reader, raw, dtype, set(least.values()), release.trits(first, last)))
    from_float32 = dict(zip(least, counts, strict=False))
    near, farther = counts[len(least) : len(least) + 2]
    bins = -np.diff([rows * columns, *counts[len(least) + 2 :], 0])
    tensor = AuditedTensor(
        name=weight.stored.name,
        type=TYPES[dtype],
        shape=weight.shape,
        scale=float(max(means["f32"], np.float32(MIN_MEAN))),
        differ={name: abs(int(count - counts[0])) for name, count in from_float32.items()},
        ties={
            TYPES[even.dtype]: int(from_float32[away.name] - from_float32[even.name])
            for even, away in zip(ARITHMETICS[::2], ARITHMETICS[1::2], strict=True)
        },
        near=int(near - farther),
        distances=tuple(map(int, bins)),
        against=None if release is None else {name: wrong[pattern] for name, pattern in least.items()},
    )
    return tensor, TYPES["f32" if beyond & 0xFFFF else "bf16"] if itemsize == 4 else TYPES[dtype]


def _differing(
    reader: TritReader, raw: npt.NDArray[np.uint8], dtype: str, least: set[int], trits: Trits
) -> dict[int, int]:
    """How many codes from each threshold on are others than a release's."""
    block = np.empty(trits.shape, np.int8)
    found = {}
    for pattern in least:
        _kernels.ternarize_from(raw, dtype, pattern, block.reshape(-1))
        found[pattern] = int(np.count_nonzero(reader.reordered(block) != trits))
    return found


def _in_all(model: str, release: str | None, holds: set[str], tensors: tuple[AuditedTensor, ...]) -> Audit:
    codes = sum(math.prod(tensor.shape) for tensor in tensors)
    differ = _added(tensor.differ for tensor in tensors)
    ties = _added(tensor.ties for tensor in tensors)
    against = None if release is None else _added(tensor.against or {} for tensor in tensors)
    explained_by = None if against is None else min(against, key=lambda name: against[name])
    held = next(name for name in TYPES.values() if name in holds)
    return Audit(
        model=model,
        release=release,
        codes=codes,
        holds=held,
        differ=differ,
        ties=ties,
        near=sum(tensor.near for tensor in tensors),
        distances=tuple(map(sum, zip(*(tensor.distances for tensor in tensors), strict=True))),
        against=against,
        explained_by=explained_by,
        verdict=tuple(_verdict(held, {tensor.type for tensor in tensors}, codes, differ, ties, release, against)),
        tensors=tensors,
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _verdict(
    holds: str,
    stored: set[str],
    codes: int,
    differ: dict[str, int],
    ties: dict[str, int],
    release: str | None,
    against: dict[str, int] | None,
) -> list[str]:
    def share(count: int) -> str:
        return f"{count / codes:.2%} of the codes" if count else "none of the codes"

    kind = holds if holds in stored else f"{holds}, stored as {' and '.join(sorted(stored))}"
    lines = [
        f"these latents are {kind}: {share(ties['bfloat16'])} sit on a tie of the bfloat16 product, and "
        f"{share(differ['bfloat16'])} are others in bfloat16 ({ABSMEAN_BF16.name}) than in float32 ({ABSMEAN.name})"
    ]
    if against is not None:
        best = min(against, key=lambda name: against[name])
        rule = {"float32": f" ({ABSMEAN.name})", "bfloat16": f" ({ABSMEAN_BF16.name})"}.get(best, "")
        if against[best] > _ANOTHER_MODEL * codes:
            what = "is of other latents, or of another rule; the nearest arithmetic is"
        else:
            what = "is nearest to" if against[best] else "was made in"
        than = "" if best == "float32" else f", and {share(against['float32'])} from float32's"
        lines.append(f"{release} {what} {best}{rule}: {share(against[best])} differ{than}")
    return lines
