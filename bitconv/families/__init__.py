"""The model families that bitconv knows, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitconv.errors import BitconvError
from bitconv.families import llama, microsoft, onebitllm
from bitconv.families.family import Family

FAMILIES = (onebitllm.FAMILY, microsoft.FAMILY, llama.FAMILY)


def detect(config: Mapping[str, Any], file: object) -> Family:
    """The family that config.json's "architectures" names."""
    named = config.get("architectures")
    for family in FAMILIES:
        if named == [family.hf_architecture]:
            return family
    supported = ", ".join(family.hf_architecture for family in FAMILIES)
    raise BitconvError(f"{file}: architectures {named!r} is not supported; {supported} are")


__all__ = ["FAMILIES", "Family", "detect"]
