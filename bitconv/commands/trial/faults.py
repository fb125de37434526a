"""Faults that runners are known to have, put into bitconv's own forward pass to see whose numbers a runner gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from bitconv.inference.forward import ForwardPass, Projection
from bitconv.layouts import I2_S_ORDERS
from bitconv.layouts.i2_s import I2S

# Those that models are published with, and that runners take where a file states none.
_ROPE_BASES = (10_000.0, 500_000.0, 1_000_000.0)


class Fault(NamedTuple):
    """says: what the runner does. put: changes a forward pass that is otherwise right."""

    says: str
    put: Callable[[ForwardPass], None]


def known_faults(model: ForwardPass) -> Iterator[Fault]:
    """Those that a runner of this model's graph and types can have."""
    architecture = model.architecture
    other = {"silu": "relu2", "relu2": "silu"}[architecture.activation]
    yield Fault(
        f"it applies {other} where the model has {architecture.activation}: it has another graph by this name",
        lambda model: _graph(model, activation=other),
    )
    if architecture.sub_norms:
        yield Fault(
            "it leaves out the sub-norms: it has another graph by this name", lambda m: _graph(m, sub_norms=False)
        )
    yield Fault(
        "it rotates other rows of q and k together than the file has: its graph has them in the checkpoint's order",
        lambda model: _graph(model, interleaved_rope=not architecture.interleaved_rope),
    )
    for base in _ROPE_BASES:
        if base != model.sizes.rope_base:
            yield Fault(
                f"it rotates by the base {base:g}, and the file says {model.sizes.rope_base:g}",
                lambda model, base=base: model.set_rope_base(base),  # type: ignore[misc]
            )
    yield Fault("it divides by the scales of the weights", lambda model: _scales(model, lambda scale: 1 / scale))
    yield Fault("it leaves out the scales of the weights", lambda model: _scales(model, lambda scale: scale / scale))
    yield Fault("it does not round activations to int8", lambda model: setattr(model, "float_activations", True))
    layouts = [p.layout for p in model.projections.values() if isinstance(p, Projection)]
    orders = {layout.byte_order or I2_S_ORDERS[0] for layout in layouts if isinstance(layout, I2S)}
    for order in I2_S_ORDERS if orders else ():
        if order not in orders:
            yield Fault(
                f"it reads I2_S in the byte order {order}: it is a build for another machine; repack the file for it",
                lambda model, order=order: _order(model, order),  # type: ignore[misc]
            )


@contextmanager
def put(fault: Fault, model: ForwardPass) -> Iterator[ForwardPass]:
    """The forward pass with the fault, as long as the context lasts."""
    before, projections = dict(vars(model)), {name: dict(vars(p)) for name, p in model.projections.items()}
    try:
        fault.put(model)
        yield model
    finally:
        vars(model).update(before)
        for name, projection in model.projections.items():
            vars(projection).update(projections[name])


def _graph(model: ForwardPass, **changes: object) -> None:
    model.architecture = replace(model.architecture, **changes)  # type: ignore[arg-type]


def _scales(model: ForwardPass, change: Callable[[Any], Any]) -> None:
    for projection in model.projections.values():
        if isinstance(projection, Projection):
            projection.scales = [change(scale) for scale in projection.scales]


def _order(model: ForwardPass, order: str) -> None:
    for projection in model.projections.values():
        if isinstance(projection, Projection):
            projection.layout = projection.layout.in_byte_order(order)
