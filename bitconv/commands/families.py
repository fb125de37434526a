"""What is converted and what is refused, of all checkpoints there are: `bitconv families`, and docs/families.md.

Nothing is stated here: families and refusals come from bitconv.models.families, and the types
and runners of a family from bitconv.runners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitconv.checkpoint.refusals import REFUSALS
from bitconv.models.families import FAMILIES, Family
from bitconv.runners import FLOAT_FILE_TYPES, RUNNERS, Runner
from bitconv.system.errors import Written, in_python, rendered
from bitconv.system.results import Result


@dataclass(frozen=True)
class FamilyEntry:
    """name, checkpoints: as their publishers call them. recognised: by what in config.json. weights: how they may be
    stored. codes: by which rule the lab makes trits, where that is known. architecture: GGUF's. types: by runner, the
    packed layouts that it computes right."""

    name: str
    checkpoints: str
    recognised: str
    weights: str
    codes: str
    architecture: str
    types: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class RefusalEntry:
    """recognised: by what. reason, way_out: halves of a sentence."""

    name: str
    recognised: str
    reason: str
    way_out: str


@dataclass(frozen=True, repr=False)
class Catalogue(Result):
    families: tuple[FamilyEntry, ...]
    refusals: tuple[RefusalEntry, ...]


def families() -> Catalogue:
    """What is converted, and what is refused and why.

    Returns:
        Families and refusals; what each runner computes is in bitconv.runners.RUNNERS.

    Example:
        >>> {"Llama 1.58-bit", "Mixtral 1.58-bit"} <= {family.name for family in bitconv.families().families}
        True
    """
    return catalogue()


def catalogue(written: Written = in_python) -> Catalogue:
    """written: how a parameter is written where the ways out are read."""
    refusals = (RefusalEntry(r.name, r.recognised, r.reason, rendered(r.way_out, written)) for r in REFUSALS)
    return Catalogue(tuple(map(_entry, FAMILIES)), tuple(refusals))


def _entry(family: Family) -> FamilyEntry:
    graph = family.architecture
    recognised = f"{family.hf_architecture}, hidden_act {graph.activation}"
    if not family.native:
        unmarked = not (family.input_norm or family.experts)
        recognised += ", quant_method bitnet or none" if unmarked else ", quant_method bitnet"
    if family.input_norm:
        recognised += f", tensors *{family.tensor}"
    elif family.tensor:
        recognised += f", a tensor {family.tensor}"
    # As bitconv.models.quantization.storage reads them, and bitconv.models.ternary_floats finds them.
    weights = (
        "float master, ternary floats, or packed with quant_method bitnet"
        if family.native
        else "packed, float master (online), ternary floats; with no quant_method ternary floats, or a rule for others"
    )
    return FamilyEntry(
        family.name,
        family.checkpoints,
        recognised,
        family.weights or weights,
        family.codes or "not known",
        graph.name,
        {runner.name: types for runner in RUNNERS if (types := runner_types(family, runner))},
    )


def runner_types(family: Family, runner: Runner) -> tuple[str, ...]:
    """The packed layouts in which a runner computes a family."""
    if runner.activations.get(family.architecture.graph) != family.architecture.activation:
        return ()
    packed = (name for name in runner.types if name not in FLOAT_FILE_TYPES)
    return tuple(name for name in packed if not family.experts or name in runner.expert_types)


def markdown() -> str:
    """The tables of docs/families.md. A test holds them; tests/tables.py writes them."""
    listed = catalogue()
    families = table(
        ("family", "checkpoints", "recognised by", "weights", "the lab's codes", "GGUF architecture", "types"),
        (
            (
                entry.name,
                entry.checkpoints,
                entry.recognised,
                entry.weights,
                entry.codes,
                f"`{entry.architecture}`",
                "; ".join(f"{runner}: {', '.join(types)}" for runner, types in entry.types.items()),
            )
            for entry in listed.families
        ),
    )
    refusals = table(
        ("refused", "told by", "because"),
        ((entry.name, entry.recognised, entry.reason) for entry in listed.refusals),
    )
    return f"{families}\n\n{refusals}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |".replace("*", r"\*") for row in (head, ["---"] * len(head), *rows))
