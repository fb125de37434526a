"""Faults that runners are known to have, put into bitconv's own forward pass to see whose numbers a runner gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from bitconv.inference.forward import FloatProjection, ForwardPass, Projection
from bitconv.layouts import I2_S_ORDERS
from bitconv.layouts.i2_s import I2S
from bitconv.layouts.scales import Scale

# Those that models are published with, and that runners take where a file states none.
_ROPE_BASES = (10_000.0, 500_000.0, 1_000_000.0)


class Fault(NamedTuple):
    """says: what the runner does. put: a forward pass that is otherwise right, with the fault."""

    says: str
    put: Callable[[], ForwardPass]


def known_faults(model: ForwardPass) -> Iterator[Fault]:
    """Those that a runner of this model's graph and types can have."""
    architecture = model.architecture
    other = {"silu": "relu2", "relu2": "silu"}[architecture.activation]
    yield Fault(
        f"it applies {other} where the model has {architecture.activation}: it has another graph by this name",
        partial(_graph, model, activation=other),
    )
    if architecture.sub_norms:
        yield Fault(
            "it leaves out the sub-norms: it has another graph by this name", partial(_graph, model, sub_norms=False)
        )
    yield Fault(
        "it rotates other rows of q and k together than the file has: its graph has them in the checkpoint's order",
        partial(_graph, model, interleaved_rope=not architecture.interleaved_rope),
    )
    for base in _ROPE_BASES:
        if base != model.sizes.rope_base:
            yield Fault(
                f"it rotates by the base {base:g}, and the file says {model.sizes.rope_base:g}",
                partial(model.changed, rope_base=base),
            )
    yield Fault("it divides by the scales of the weights", partial(_scales, model, lambda scale: np.float32(1) / scale))
    yield Fault("it leaves out the scales of the weights", partial(_scales, model, lambda scale: scale / scale))
    yield Fault("it does not round activations to int8", partial(model.changed, float_activations=True))
    layouts = [p.layout for p in model.projections.values() if isinstance(p, Projection)]
    orders = {layout.byte_order or I2_S_ORDERS[0] for layout in layouts if isinstance(layout, I2S)}
    for order in I2_S_ORDERS if orders else ():
        if order not in orders:
            yield Fault(
                f"it reads I2_S in the byte order {order}: it is a build for another machine; repack the file for it",
                partial(_projections, model, partial(_in_order, order)),
            )


def _graph(model: ForwardPass, **changes: bool | str) -> ForwardPass:
    return model.changed(architecture=replace(model.architecture, **changes))  # type: ignore[arg-type]


def _projections(model: ForwardPass, change: Callable[[Projection], Projection]) -> ForwardPass:
    changed: dict[str, Projection | FloatProjection] = {
        name: change(projection) if isinstance(projection, Projection) else projection
        for name, projection in model.projections.items()
    }
    return model.changed(projections=changed)


def _scales(model: ForwardPass, change: Callable[[Scale], Scale]) -> ForwardPass:
    return _projections(model, lambda projection: replace(projection, scale=change(projection.scale)))


def _in_order(order: str, projection: Projection) -> Projection:
    return replace(projection, layout=projection.layout.in_byte_order(order))
