"""What differs between two models, whatever their layouts: metadata, tensors, trits, scales, dense values."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import numpy.typing as npt

from bitconv.commands.open import OpenModel, OpenTensor, open
from bitconv.gguf import Value
from bitconv.gguf.values import same_value, shown
from bitconv.layouts.scales import Scale
from bitconv.packed.keys import is_idle
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.results import Result

# What follows from the types of the tensors.
_OF_TYPES = ("general.architecture", "general.file_type", "general.alignment", "general.quantization_version")


@dataclass(frozen=True)
class ChangedTensor:
    """A tensor that is in both models, and not the same.

    Attributes:
        types: In the first and the second.
        shapes: Likewise. Of others nothing else is compared.
        values: How many there are.
        trits: How many differ, of a tensor that is ternary in both.
        scale: The largest relative difference of two scales, of such a tensor.
        others: How many values differ, of any other.
        largest: The largest difference of two of those.
    """

    name: str
    types: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    values: int
    trits: int = 0
    scale: float = 0.0
    others: int = 0
    largest: float = 0.0

    @property
    def same_values(self) -> bool:
        """Whether it is the types alone that differ."""
        return self.shapes[0] == self.shapes[1] and not (self.trits or self.scale or self.others)


@dataclass(frozen=True, repr=False)
class Difference(Result):
    """What differs between two models.

    Attributes:
        first: As it was named.
        second: As it was named.
        same: Whether they are the same model: all trits, scales and dense values, and the metadata by which runners
            compute. Their types may differ.
        compared: How many tensors both have.
        metadata: By key the values of both, shortened, None where there is none; without keys by which no runner
            computes.
        missing: The tensors that one of both has, with the one that has it, 0 or 1.
        tensors: Those that differ, in anything.
    """

    first: str
    second: str
    same: bool
    compared: int
    metadata: dict[str, tuple[str | None, str | None]]
    missing: dict[str, int]
    tensors: tuple[ChangedTensor, ...]

    @property
    def retyped(self) -> dict[tuple[str, str], int]:
        """How many tensors have another type, by the two."""
        return dict(Counter(tensor.types for tensor in self.tensors if tensor.types[0] != tensor.types[1]))

    @property
    def verdict(self) -> str:
        """In words."""
        if self.same:
            return f"the same model{' in other types' if self.retyped else ''}"
        changed = [tensor for tensor in self.tensors if not tensor.same_values]
        weights = f"{len(changed)} of {self.compared} tensors differ" if changed else "the weights are the same"
        if not any(tensor.trits or tensor.scale or tensor.shapes[0] != tensor.shapes[1] for tensor in changed):
            weights += "; trits and scales are the same" if changed else ""
        alone = f"; {len(self.missing)} are in one alone" if self.missing else ""
        return f"{weights}{alone}{f'; {len(self.metadata)} metadata keys differ' if self.metadata else ''}"


@reports_system_errors
def diff(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    token: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Compare two models: GGUF files, checkpoints, or one of each.

    What is ternary in both is compared trit by trit and scale by scale, anything else as floats. A scale of nothing but
    zeros plays no part. Nothing is proven of either, which `verify` does.

    Args:
        first: A GGUF file, a model directory, or an id on the Hub.
        second: The same.
        token: As `convert` takes it.
        threads: All cores where None.
        progress: Called with the values compared so far and in all.

    Returns:
        What differs.

    Raises:
        BitconvError: Where one of both cannot be opened or read.

    Example:
        >>> difference = bitconv.diff("llama.gguf", "fixtures/Llama3-1.58-tiny")
        >>> sum(tensor.trits for tensor in difference.tensors), difference.missing
        (0, {})
    """
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(open(path, token=token)) for path in (first, second)]
        common = [name for name in models[0] if name in models[1]]
        pairs = [(models[0][name], models[1][name]) for name in common]
        done, total = 0, sum(prod(one.shape) for one, _ in pairs)
        changed = []
        for (one, _), found in zip(pairs, jobs.run([partial(_compare, *p) for p in pairs], threads), strict=True):
            if found is not None:
                changed.append(found)
            done += prod(one.shape)
            if progress is not None:
                progress(done, total)
        metadata = _metadata(*models)
        for model in models:
            model.check_unchanged()
    missing = {name: i for i in (0, 1) for name in models[i] if name not in models[1 - i]}
    same = not (missing or metadata) and all(tensor.same_values for tensor in changed)
    return Difference(str(first), str(second), same, len(common), metadata, missing, tuple(changed))


def _compare(one: OpenTensor, other: OpenTensor, keep_going: KeepGoing) -> ChangedTensor | None:
    """None where they are the same in everything."""
    shapes, types = (one.shape, other.shape), (one.type, other.type)
    count = prod(one.shape)
    if one.shape != other.shape:
        return ChangedTensor(one.name, types, shapes, count)
    trits, others = _Change(), _Change()
    for i in range(one.count):
        if one.is_ternary and other.is_ternary:
            _compare_trits(one, other, i, trits, keep_going)
        else:
            _compare_floats(one, other, i, others, keep_going)
    changed = ChangedTensor(one.name, types, shapes, count, trits.differ, trits.largest, others.differ, others.largest)
    return None if changed.same_values and one.type == other.type else changed


@dataclass
class _Change:
    """How many values differ, and by how much at most."""

    differ: int = 0
    largest: float = 0.0

    def add(self, differ: int, largest: float) -> None:
        self.differ += differ
        self.largest = max(self.largest, largest)


def _compare_trits(one: OpenTensor, other: OpenTensor, index: int, change: _Change, keep_going: KeepGoing) -> None:
    """Trits, and relative differences of scales that multiply any."""
    rows, columns = one.matrix_shape
    first_matrix, second_matrix = one.matrix(index, keep_going), other.matrix(index, keep_going)
    scales = first_matrix.scale(), second_matrix.scale()
    groups = math.lcm(*(scale.shape[1] if isinstance(scale, np.ndarray) else 1 for scale in scales))
    multiple = math.lcm(first_matrix.row_multiple, second_matrix.row_multiple)
    for first, last in row_blocks(rows, columns, multiple):
        a, b = first_matrix.trits(first, last), second_matrix.trits(first, last)
        used = (a != 0).reshape(last - first, groups, -1).any(axis=2)
        x, y = (_by_group(scale, first, last, groups)[used].astype(np.float64) for scale in scales)
        change.add(int(np.count_nonzero(a != b)), float(abs(y / x - 1).max(initial=0)))


def _by_group(scale: Scale, first: int, last: int, groups: int) -> npt.NDArray[np.float32]:
    """Of rows first to last (exclusive), float32 (last - first, groups)."""
    if not isinstance(scale, np.ndarray):
        return np.full((last - first, groups), scale, np.float32)
    return np.repeat(scale[first:last], groups // scale.shape[1], axis=1)


def _compare_floats(one: OpenTensor, other: OpenTensor, index: int, change: _Change, keep_going: KeepGoing) -> None:
    (multiple, read), (other_multiple, read_other) = (tensor.floats(index, keep_going) for tensor in (one, other))
    for first, last in row_blocks(*one.matrix_shape, math.lcm(multiple, other_multiple)):
        a, b = (of(first, last).astype(np.float64) for of in (read, read_other))
        change.add(int(np.count_nonzero(a != b)), float(abs(b - a).max()))


def _metadata(*models: OpenModel) -> dict[str, tuple[str | None, str | None]]:
    first, second = (dict(_computed_by(model)) for model in models)
    return {
        key: (shown(first[key]) if key in first else None, shown(second[key]) if key in second else None)
        for key in sorted(first.keys() | second.keys())
        if key not in first or key not in second or not same_value(first[key], second[key])
    }


def _computed_by(model: OpenModel) -> Iterator[tuple[str, Value]]:
    """Keys by which runners compute, under the architecture's name of today, and not those of its tensors' types."""
    stated = str(model.metadata.get("general.architecture"))
    yield "general.architecture", model.architecture
    for key, value in model.metadata.items():
        if not (is_idle(key, stated) or key in _OF_TYPES or key.startswith("bitconv.")):
            yield f"{model.architecture}{key.removeprefix(stated)}" if key.startswith(f"{stated}.") else key, value
