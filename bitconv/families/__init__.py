"""The model families that bitconv knows, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitconv.errors import BitconvError
from bitconv.families import llama, microsoft, mixtral, onebitllm, qwen3
from bitconv.families.family import Family

FAMILIES = (
    onebitllm.FAMILY,
    microsoft.FAMILY,
    microsoft.SILU_FAMILY,
    llama.FAMILY,
    mixtral.FAMILY,
    qwen3.FAMILY,
    qwen3.EMBEDDING_FAMILY,
)


def detect(config: Mapping[str, Any], file: object) -> Family:
    """The family that config.json's "architectures" names; of several, the one with its "hidden_act"."""
    named = config.get("architectures")
    families = [family for family in FAMILIES if named == [family.hf_architecture]]
    for family in families:
        if family.architecture.activation == config.get("hidden_act"):
            return family
    if families:
        return families[0]
    supported = ", ".join(dict.fromkeys(family.hf_architecture for family in FAMILIES))
    raise BitconvError(f"{file}: architectures {named!r} is not supported; {supported} are")


__all__ = ["FAMILIES", "Family", "detect"]
