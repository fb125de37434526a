"""The types of the embedding and of an output head."""

from __future__ import annotations

from bitconv import runners
from bitconv.runners import Runner
from bitconv.system.errors import BitconvError, Code, option

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


def check_dense(
    target: Runner, name: str, type_name: str, columns: int, *, has_head: bool, file: object = None, parameter: str
) -> None:
    """BitconvError where a tensor, the embedding or the head, of so many columns cannot have this type in a runner.

    has_head: the model multiplies by a head of its own, not by the embedding. parameter: what asked for the type.
    """

    def obstacle(type_name: str) -> str | None:
        looked_up = name == EMBEDDING
        multiplied = not (looked_up and has_head)
        return runners.dense_obstacle(target, type_name, columns, looked_up=looked_up, multiplied=multiplied)

    cause = obstacle(type_name)
    if cause is not None:
        usable = next(other for other in ("q8_0", "f16") if obstacle(other) is None)
        code = Code.RUNNER if obstacle("q8_0") == cause else Code.LAYOUT
        raise BitconvError(cause, code=code, file=file, tensor=name, way_out=f"pass {option(parameter, usable)}")
