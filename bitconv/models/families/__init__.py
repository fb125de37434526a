"""The model families that bitconv knows, one file each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bitconv.models.families import (
    hunyuan,
    llama,
    llama_sub_norms,
    maple,
    microsoft,
    microsoft_gpu,
    minicpm,
    mistral,
    mixtral,
    olmo,
    onebitllm,
    qwen2,
    qwen3,
)
from bitconv.models.families.family import Family, Reference
from bitconv.system.errors import BitconvError, Code

# A line each, in the order in which they are listed; nothing else depends on it.
FAMILIES = (
    onebitllm.FAMILY,
    microsoft_gpu.FAMILY,
    microsoft.FAMILY,
    microsoft.SILU_FAMILY,
    *llama_sub_norms.FAMILIES,
    llama.FAMILY,
    mixtral.FAMILY,
    qwen3.INPUT_NORMS_FAMILY,
    qwen3.FAMILY,
    qwen3.EMBEDDING_FAMILY,
    qwen2.FAMILY,
    mistral.FAMILY,
    minicpm.FAMILY,
    hunyuan.FAMILY,
    olmo.FAMILY,
    maple.FAMILY,
)


# So many tensors of a layer make another model near.
_NEAR = 5


def of_class(config: Mapping[str, Any], file: object, names: Collection[str] = ()) -> list[Family]:
    """The families of the class that config.json's "architectures" names. BitconvError where there is none.

    names: of the checkpoint's tensors, by which the classes that are near can be named.
    """
    named = config.get("architectures")
    families = [family for family in FAMILIES if named == [family.hf_architecture]]
    if not families:
        supported = ", ".join(dict.fromkeys(family.hf_architecture for family in FAMILIES))
        raise BitconvError(
            f"architectures {named!r:.200} is not supported; {supported} are",
            code=Code.UNSUPPORTED,
            file=file,
            way_out=_nearest(names),
        )
    return families


def _nearest(names: Collection[str]) -> str | None:
    """What to do with a checkpoint of another class, by the tensors of its first layer; None where none are near.

    Letters of a class's name tell nothing: a model converted as one of another graph runs, and wrong.
    """
    has = {name for name in names if ".0." in name and name.endswith((".weight", ".bias")) and ".experts." not in name}
    wanted = [(family, set(family.layer_names())) for family in FAMILIES]
    family, nearest = max(wanted, key=lambda one: (len(one[1] & has), -len(one[1] ^ has)))
    if len(nearest & has) < _NEAR:
        return None
    if nearest == has:
        same = " or ".join(dict.fromkeys(other.hf_architecture for other, names in wanted if names == has))
        return (
            f"its layers have the tensors of {same}: if its own code computes the same of them, write that class in "
            "architectures, and let compare tell"
        )
    other = [*sorted(has - nearest), *sorted(nearest - has)]
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return (
        f"nearest by its tensors is {family.hf_architecture}, from which it differs in {', '.join(other[:3])}{more}: "
        "llama.cpp's convert_hf_to_gguf.py may know its class, and keeps float weights"
    )


def check_class(config: Mapping[str, Any], file: object) -> None:
    """BitconvError where config.json alone tells that there is no family for it."""
    for family in of_class(config, file):
        family.config(config, file)


def detect(config: Mapping[str, Any], file: object, names: Collection[str]) -> Family:
    """The family of a checkpoint: of those of its class that show their signs, the one with the strongest.

    names: of the checkpoint's tensors, which tell a checkpoint that was made out of another and has its config.json.
    BitconvError where there is none, or more than one.
    """
    families = of_class(config, file, names)
    shown = [family for family in families if family.shows(config, names)]
    if not shown:
        signs = " or ".join(f"*{family.tensor}" for family in families)
        cause = f"nothing marks this as a BitNet checkpoint (no tensors {signs})"
        raise BitconvError(cause, code=Code.REFUSED, file=file)
    strongest = max(_strength(family) for family in shown)
    found = [family for family in shown if _strength(family) == strongest]
    if len(found) > 1:
        both = " and ".join(f"{family.name} (*{family.tensor})" for family in found)
        raise BitconvError(f"the tensors are those of two families, {both}", code=Code.REFUSED, file=file)
    return found[0]


def _strength(family: Family) -> tuple[bool, ...]:
    return tuple(map(bool, family.signs))


__all__ = ["FAMILIES", "Family", "Reference", "check_class", "detect"]
