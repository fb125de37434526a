"""The model families that bitconv knows, one file each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bitconv.errors import BitconvError
from bitconv.families import llama, llama_sub_norms, microsoft, microsoft_gpu, mixtral, onebitllm, qwen3
from bitconv.families.family import Family

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


def detect(config: Mapping[str, Any], file: object, names: Collection[str]) -> Family:
    """The family that config.json's "architectures" names; of several, the one with its "hidden_act".

    names: of the checkpoint's tensors, which tell a checkpoint that was made out of another and has its config.json.
    """
    named = config.get("architectures")
    families = [family for family in FAMILIES if named == [family.hf_architecture]]
    told = [f for f in families if not f.tensor or any(name.endswith(f.tensor) for name in names)]
    for family in told:
        if family.architecture.activation == config.get("hidden_act"):
            return family
    if told:
        return told[0]
    if families:
        raise BitconvError(f"{file}: nothing marks this as a BitNet checkpoint (no tensors *{families[0].tensor})")
    supported = ", ".join(dict.fromkeys(family.hf_architecture for family in FAMILIES))
    raise BitconvError(f"{file}: architectures {named!r} is not supported; {supported} are")


__all__ = ["FAMILIES", "Family", "detect"]
