"""The model families that bitconv knows, one file each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bitconv.models.families import llama, llama_sub_norms, microsoft, microsoft_gpu, mixtral, onebitllm, qwen3
from bitconv.models.families.family import Family
from bitconv.system.errors import BitconvError, Code

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
    """The family of a checkpoint: of those of its class the one with its "hidden_act".

    names: of the checkpoint's tensors, which tell a checkpoint that was made out of another and has its config.json.
    """
    families = of_class(config, file)
    told = [f for f in families if not f.tensor or any(name.endswith(f.tensor) for name in names)]
    for family in told:
        if family.architecture.activation == config.get("hidden_act"):
            return family
    if told:
        return told[0]
    raise BitconvError(
        f"nothing marks this as a BitNet checkpoint (no tensors *{families[0].tensor})", code=Code.REFUSED, file=file
    )


__all__ = ["FAMILIES", "Family", "detect", "of_class"]
