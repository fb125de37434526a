"""The types of the embedding and of an output head: looking up rows and multiplying are different code in runners."""

from __future__ import annotations

from bitconv import runners
from bitconv.layouts import FLOATS, PACKED
from bitconv.layouts.dense import dense_obstacle
from bitconv.runners import Runner
from bitconv.system.errors import BitconvError, Code, option

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


def takes(target: Runner, name: str, type_name: str, *, has_head: bool) -> bool:
    """Whether a runner is known to compute a tensor, the embedding or the head, in a type.

    has_head: the model multiplies by a head of its own, not by the embedding.
    """
    return _unknown_use(target, name, type_name, has_head=has_head) is None


def _unknown_use(target: Runner, name: str, type_name: str, *, has_head: bool) -> str | None:
    """What it is not known to do with the tensor, in words."""
    if type_name in FLOATS:
        return None
    if name == EMBEDDING and type_name not in target.lookups:
        return "looks up rows of"
    multiplied = name == HEAD or not has_head
    return "computes" if multiplied and type_name not in target.heads else None


def obstacle(target: Runner, name: str, type_name: str, shape: tuple[int, ...], *, has_head: bool) -> str | None:
    """Why a tensor, the embedding or the head, of this shape cannot have this type in a runner; None where it can."""
    use = _unknown_use(target, name, type_name, has_head=has_head)
    if use is not None:
        return f"it is not known that {target.name} {use} {type_name}"
    rows, columns = shape
    if type_name in PACKED:
        return runners.shape_obstacle(target, runners.layout_for(target, type_name), rows, columns)
    return dense_obstacle(type_name, columns)


def check(
    target: Runner,
    name: str,
    type_name: str,
    shape: tuple[int, ...],
    *,
    has_head: bool,
    file: object = None,
    parameter: str,
) -> None:
    """BitconvError where there is such an obstacle. parameter: what asked for the type."""

    def of(other: str) -> str | None:
        return obstacle(target, name, other, shape, has_head=has_head)

    cause = of(type_name)
    if cause is not None:
        nearest = [*(PACKED if type_name in PACKED else ()), "q8_0", "f16"]
        usable = next(other for other in nearest if of(other) is None)
        known = takes(target, name, type_name, has_head=has_head)
        code = Code.LAYOUT if known else Code.RUNNER
        raise BitconvError(cause, code=code, file=file, tensor=name, way_out=f"pass {option(parameter, usable)}")
