"""A few seconds of what `make fuzz` does for minutes: the corpus of what once failed, and seeded mutations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.mutate import mutated
from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
COUNTS = {"gguf": 150, "safetensors": 150, "bin": 300, "config": 200, "tokenizer": 60, "card": 500}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    """Whatever is no BitconvError fails the test."""
    target = TARGETS[name]
    for file in sorted((CORPUS / name).glob("*")):
        target.read(file.read_bytes())
    seed, numbers = target.seed(), random.Random(20260101)
    for _ in range(COUNTS[name]):
        target.read(mutated(seed, numbers))
