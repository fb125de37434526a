"""Float tensors that are ternary already, found by looking: they have their trits and scales, and no rule is applied.

The absmean rule would make another scale of them: the mean of |trit * scale| is not the scale.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from bitconv import _kernels
from bitconv.checkpoint.directory import ITEMSIZE, Checkpoint
from bitconv.checkpoint.refusals import UNMARKED_MASTER
from bitconv.layouts.scales import MIN_GROUP, Scale, simplest
from bitconv.models.quantization import Rule, ScaleConvention
from bitconv.models.trits import MIN_MEAN
from bitconv.models.weights import ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.jobs import KeepGoing


def settle_scales(
    checkpoint: Checkpoint,
    model: Model,
    rule: Rule | None,
    threads: int | None,
    convention: ScaleConvention | None = None,
) -> Model:
    """The model with the scales of every float weight that is ternary already; the others are left to a rule.

    rule, convention: the user's choice; None for the checkpoint's own. The first row tells nearly always that a tensor
    is not ternary; one that is is read whole.

    BitconvError where a weight is not ternary and there is no rule for it, where there is a rule and no float weight,
    and where there is a convention and no packed weight.
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
    scales = dict(zip((weight.stored.name for weight in open_weights), jobs.run(work, threads), strict=True))
    for weight in open_weights:
        if scales[weight.stored.name] is None and rule is None and weight.scale is None:
            found = sum(scale is not None for scale in scales.values())
            where = f"{weight.stored.name} ({found} of {len(scales)} projections are ternary)"
            raise UNMARKED_MASTER.error(config, tensor=where)

    def with_scale(weight: TernaryWeight) -> TernaryWeight:
        if weight.has_scale:
            return weight
        found = scales[weight.stored.name]
        return replace(weight, scale=(rule or weight.scale) if found is None else found)

    def with_scales(weight: Weight) -> Weight:
        if isinstance(weight, ExpertsWeight):
            return replace(weight, matrices=tuple(map(with_scale, weight.matrices)))
        return with_scale(weight) if isinstance(weight, TernaryWeight) else weight

    return replace(model, weights=tuple(map(with_scales, model.weights)))


def find_scale(checkpoint: Checkpoint, weight: TernaryWeight, keep_going: KeepGoing) -> Scale | None:
    """The scales of a float weight of nothing but -scale, 0 and +scale, in the checkpoint's order; None of another.

    Of one scale, one a row and one for each group of columns, the simplest form that fits. Zeros may be negative. A
    weight of zeros has the least scale that the absmean rule makes.
    """
    stored = weight.stored
    rows, columns = weight.shape
    groups = columns // MIN_GROUP if columns % MIN_GROUP == 0 else 1
    row_bytes = columns * ITEMSIZE[stored.dtype]
    scales = np.empty((rows, groups), np.float32)
    for first, last in [(0, 1), *row_blocks(rows, columns, 1)]:
        keep_going()
        raw = np.empty((last - first) * row_bytes, np.uint8)
        checkpoint.read(stored, first * row_bytes, raw)
        if _kernels.ternary_scales(raw, stored.dtype, scales[first:last]) >= 0:
            return None
    if (scales[scales > 0] < np.finfo(np.float32).tiny).any():
        return None  # dead values, which have no inverse in float32
    scale = simplest(scales)
    return np.float32(MIN_MEAN) if np.ndim(scale) == 0 and scale == 0 else scale
