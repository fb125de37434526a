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
    minicpm.FAMILY,
    hunyuan.FAMILY,
    olmo.FAMILY,
    maple.FAMILY,
)


def of_class(config: Mapping[str, Any], file: object) -> list[Family]:
    """The families of the class that config.json's "architectures" names. BitconvError where there is none."""
    named = config.get("architectures")
    families = [family for family in FAMILIES if named == [family.hf_architecture]]
    if not families:
        supported = ", ".join(dict.fromkeys(family.hf_architecture for family in FAMILIES))
        raise BitconvError(
            f"architectures {named!r} is not supported; {supported} are", code=Code.UNSUPPORTED, file=file
        )
    return families


def detect(config: Mapping[str, Any], file: object, names: Collection[str]) -> Family:
    """The family of a checkpoint: of those of its class that show their signs, the one with the strongest.

    names: of the checkpoint's tensors, which tell a checkpoint that was made out of another and has its config.json.
    BitconvError where there is none, or more than one.
    """
    families = of_class(config, file)
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


__all__ = ["FAMILIES", "Family", "Reference", "detect", "of_class"]
