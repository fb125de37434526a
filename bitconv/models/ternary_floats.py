"""Float tensors that are ternary already, found by looking: they have their trits and scales, and no rule is applied.

The absmean rule would make another scale of them: the mean of |trit * scale| is not the scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.refusals import FEW_LEVELS, UNMARKED_MASTER
from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.layouts.scales import MIN_GROUP, Scale, describe, group_of, simplest
from bitconv.models.architectures import Role
from bitconv.models.arithmetic import MIN_MEAN
from bitconv.models.quantization import Rule, ScaleConvention
from bitconv.models.trits import ternarize_absmax
from bitconv.models.weights import DenseWeight, ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.jobs import KeepGoing, Progress

# So many rows of a tensor tell whether it is ternary but for outliers.
_SAMPLE = 8
# Fewer than a group of trained floats has.
_FEW_LEVELS = 8


def settle_scales(
    checkpoint: Checkpoint,
    model: Model,
    rule: Rule | None,
    threads: int | None,
    convention: ScaleConvention | None = None,
    *,
    keep_floats: bool = False,
    progress: Progress | None = None,
) -> Model:
    """The model with the scales of every float weight that is ternary already; the others are left to a rule.

    rule, convention: the user's choice; None for the checkpoint's own. keep_floats: what is not ternary, in a
    checkpoint of which most is, and has no rule, becomes a DenseWeight. The first row tells nearly always that a tensor
    is not ternary; one that is is read whole. progress: called with the bytes looked at so far and in all.

    BitconvError where a weight is not ternary and there is no rule for it, where there is a rule and no float weight,
    and where there is a convention and no packed weight. The rule of absmax makes scales too, reading all weights.
    """
    open_weights = [weight for weight in model.matrices if not weight.has_scale]
    config = checkpoint.path / "config.json"
    if convention is not None and len(open_weights) == len(model.matrices):
        raise BitconvError(
            f"the weights are floats; {option('scale_convention')} is for packed trits with scales",
            code=Code.OPTIONS,
            file=config,
        )
    if not open_weights:
        if rule is not None:
            raise BitconvError(
                f"the weights are packed trits with scales; {option('ternarize')} is for float weights",
                code=Code.OPTIONS,
                file=config,
            )
        return model
    work = [partial(find_scale, checkpoint, weight) for weight in open_weights]
    scales, done, total = {}, 0, sum(weight.stored.nbytes for weight in open_weights)
    for weight, scale in zip(open_weights, jobs.run(work, threads), strict=True):
        scales[weight.stored.name] = scale
        done += weight.stored.nbytes
        if progress is not None:
            progress(done, total)
    kept = _keptin_floats(checkpoint, open_weights, scales, rule, keep=keep_floats)

    largest: dict[str, Scale] = {}
    if rule is not None and rule.group is not None:
        masters = [weight for weight in open_weights if scales[weight.stored.name] is None]
        found_largest = jobs.run([partial(absmax, checkpoint, weight, rule.group) for weight in masters], threads)
        largest = dict(zip((weight.stored.name for weight in masters), found_largest, strict=True))

    def with_scale(weight: TernaryWeight) -> TernaryWeight:
        if weight.has_scale:
            return weight
        found = scales[weight.stored.name]
        if weight.stored.name in largest:
            return replace(weight, scale=largest[weight.stored.name], absmax=True)
        return replace(weight, scale=(rule or weight.scale) if found is None else found)

    def with_scales(weight: Weight) -> Weight:
        if isinstance(weight, ExpertsWeight):
            return replace(weight, matrices=tuple(map(with_scale, weight.matrices)))
        if not isinstance(weight, TernaryWeight):
            return weight
        return in_floats(weight) if weight.stored.name in kept else with_scale(weight)

    return replace(model, weights=tuple(map(with_scales, model.weights)))


def find_ternary(checkpoint: Checkpoint, model: Model, names: Collection[str], threads: int | None) -> Model:
    """The model with the ternary form of its dense weights of these names, where they have one."""
    dense = [weight for weight in model.weights if isinstance(weight, DenseWeight) and weight.name in names]
    found = jobs.run([partial(ternary_form, checkpoint, weight) for weight in dense], threads)
    forms = {weight.name: replace(weight, ternary=form) for weight, form in zip(dense, found, strict=True)}
    return replace(model, weights=tuple(forms.get(weight.name, weight) for weight in model.weights))


def ternary_form(checkpoint: Checkpoint, weight: DenseWeight, keep_going: KeepGoing) -> TernaryWeight | None:
    """A matrix of floats in trits and scales; None where it is not ternary, which the first row tells nearly always."""
    rows, columns = weight.shape
    ternary = TernaryWeight(weight.name, (rows, columns), weight.stored, None, rope_heads=0, interleave=False)
    scale = find_scale(checkpoint, ternary, keep_going)
    return None if scale is None else replace(ternary, scale=scale)


def in_floats(weight: TernaryWeight) -> DenseWeight:
    """The same weight as floats, its rows in the order of the GGUF file.

    Of each rotary head row i/2, and head_dim/2 + (i-1)/2 where i is odd, for its row i; or the way back.
    """
    stored, rows = weight.stored, np.arange(weight.shape[0])
    if weight.rope_heads:
        heads = rows.reshape(weight.rope_heads, -1)
        parts = (2, -1) if weight.interleave else (heads.shape[1] // 2, 2)
        order = heads.reshape(weight.rope_heads, *parts).swapaxes(1, 2).ravel()
        stored = replace(stored, row_order=tuple(map(int, order)))
    return DenseWeight(weight.name, weight.shape, stored, Role.TERNARY)


def _keptin_floats(
    checkpoint: Checkpoint,
    weights: list[TernaryWeight],
    scales: Mapping[str, Scale | None],
    rule: Rule | None,
    *,
    keep: bool,
) -> set[str]:
    """Of the float weights that are not ternary the names of those for which there is no rule, to be kept as they are.

    A rule over whole tensors would make one scale of several, or another scale of what is one, where a tensor is
    ternary but for a few outliers, and where most others have several scales. keep: what the user wants of them.
    BitconvError where they are not to be kept, and where most weights are not ternary.
    """
    several = [weight for weight in weights if isinstance(scales[weight.stored.name], np.ndarray)]
    # The rule that config.json states is the model's own, whatever the weights look like.
    others = [weight for weight in weights if scales[weight.stored.name] is None and (rule or weight.scale is None)]
    if not others:
        return set()
    nearly = {weight.stored.name: nearly_ternary(checkpoint, weight) for weight in others}
    found = sum(scale is not None for scale in scales.values())
    near = sum(group is not None for group in nearly.values())
    kept = set()
    for weight in others:
        name, group = weight.stored.name, nearly[weight.stored.name]
        grouped = rule is not None and rule.group is not None
        if rule is not None and group is None and (grouped or 2 * len(several) <= len(weights)):
            continue
        if rule is None and 2 * (found + near) <= len(weights):
            if has_few_levels(checkpoint, weight):
                raise FEW_LEVELS.error(checkpoint.path, tensor=name)
            where = f"{name} ({found} of {len(weights)} projections are ternary)"
            raise UNMARKED_MASTER.error(checkpoint.path / "config.json", tensor=where)
        if keep and rule is None:
            kept.add(name)
            continue
        count = f"{found} of {len(weights)} projections are ternary"
        if several:
            columns = several[0].shape[1]
            share = group_of(scales[several[0].stored.name], columns) or columns
            count += f", {len(several)} with {describe(share, columns)}"
        outliers = f"is ternary but for outliers, with {describe(group, weight.shape[1])}" if group else ""
        cause = f"{outliers or 'is not ternary'}; {count}"
        if rule is not None:
            cause += ": a rule over the whole tensor is not what made it"
        leave = f"leave {option('ternarize')} out and " if rule else ""
        keeping = f"pass {option('fallback', 'f16')}, which keeps what is not ternary in floats"
        raise weight.stored.error(cause, code=Code.CONVENTION, way_out=f"{leave}{keeping}")
    return kept


def nearly_ternary(checkpoint: Checkpoint, weight: TernaryWeight) -> int | None:
    """How many columns of a row share a scale in a float weight that is ternary but for outliers; None of another.

    Looked for in a few rows: in most groups of MIN_GROUP columns all that is not zero has one magnitude. Groups of
    little else than zeros do not count. Trained master weights have no such group, however coarse their floats.
    """
    columns, values = weight.shape[1], _sample(checkpoint, weight)
    if values is None:
        return None
    groups = np.abs(values).reshape(len(values), -1, MIN_GROUP)
    scales = groups.max(axis=2)
    told = np.count_nonzero(groups, axis=2) >= MIN_GROUP // 4
    fits = told & ((groups == 0) | (groups == scales[..., None])).all(axis=2)
    if 2 * np.count_nonzero(fits) <= np.count_nonzero(told) or not fits.any():
        return None
    group = MIN_GROUP
    while scales.shape[1] % 2 == 0:
        both = fits[:, ::2] & fits[:, 1::2]
        same = both & (scales[:, ::2] == scales[:, 1::2])
        if 2 * np.count_nonzero(same) <= np.count_nonzero(both):
            break
        scales, fits, group = scales[:, ::2], same, 2 * group
    return columns if scales.shape[1] == 1 else group


def has_few_levels(checkpoint: Checkpoint, weight: TernaryWeight) -> bool:
    """Whether most groups of MIN_GROUP columns in a few rows hold _FEW_LEVELS values at most, of several magnitudes.

    Those are of two or three bits. Of as many trained floats nearly all differ; dead ones are all alike.
    """
    values = _sample(checkpoint, weight)
    if values is None:
        return False
    groups = values.reshape(-1, MIN_GROUP)
    levels, magnitudes = (
        1 + np.count_nonzero(np.diff(np.sort(g, axis=1), axis=1), axis=1) for g in (groups, abs(groups))
    )
    several = magnitudes - (groups == 0).any(axis=1) > 1
    return bool(2 * np.count_nonzero(several & (levels <= _FEW_LEVELS)) > len(levels))


def _sample(checkpoint: Checkpoint, weight: TernaryWeight) -> npt.NDArray[np.float32] | None:
    """A few rows of a float weight; None where its columns are not whole groups, or a value is not finite."""
    rows, columns = weight.shape
    if columns % MIN_GROUP:
        return None
    itemsize = ITEMSIZE[weight.stored.dtype]
    values = np.empty((min(rows, _SAMPLE), columns), np.float32)
    for i, row in enumerate(np.linspace(0, rows - 1, len(values), dtype=int)):
        raw = np.empty(columns * itemsize, np.uint8)
        checkpoint.read(weight.stored, int(row) * columns * itemsize, raw)
        if _kernels.convert_floats(raw, weight.stored.dtype, values[i].view(np.uint8), "f32") >= 0:
            return None
    return values


def find_scale(checkpoint: Checkpoint, weight: TernaryWeight, keep_going: KeepGoing) -> Scale | None:
    """The scales of a float weight of nothing but -scale, 0 and +scale, in the checkpoint's order; None of another.

    Of one scale, one a row and one for each group of columns, the simplest form that fits. Zeros may be negative. A
    weight of zeros has the least scale that the absmean rule makes. Of a sampled checkpoint the first and the last row
    tell.
    """
    stored = weight.stored
    rows, columns = weight.shape
    groups = columns // MIN_GROUP if columns % MIN_GROUP == 0 else 1
    row_bytes = columns * ITEMSIZE[stored.dtype]
    scales = np.empty((rows, groups), np.float32)
    # The ends of a sampled tensor, its last row for those between.
    ends, between = [(0, 1), (rows - 1, rows)], slice(1, rows - 1)
    for first, last in ends if checkpoint.sampled else [ends[0], *row_blocks(rows, columns, 1)]:
        keep_going()
        raw = np.empty((last - first) * row_bytes, np.uint8)
        checkpoint.read(stored, first * row_bytes, raw)
        if _kernels.ternary_scales(raw, stored.dtype, scales[first:last]) >= 0:
            return None
    if checkpoint.sampled:
        scales[between] = scales[-1]
    if (scales[scales > 0] < np.finfo(np.float32).tiny).any():
        return None  # dead values, which have no inverse in float32
    scale = simplest(scales)
    return np.float32(MIN_MEAN) if np.ndim(scale) == 0 and scale == 0 else scale


def absmax(checkpoint: Checkpoint, weight: TernaryWeight, group: int, keep_going: KeepGoing) -> Scale:
    """The largest magnitude of each group of columns, 0 where all trits are; 1 of a sampled checkpoint."""
    rows, columns = weight.shape
    if columns % group:
        raise weight.stored.error(
            f"has {columns} columns, of which {option('group', group)} does not make whole groups", code=Code.OPTIONS
        )
    scales = np.ones((rows, columns // group), np.float32)
    for first, last in () if checkpoint.sampled else row_blocks(rows, columns, 1):
        keep_going()
        ternarize_absmax(checkpoint, weight, first, last, scales[first:last])
    return scales
