"""How long a user waits for bitconv --help."""

from __future__ import annotations

import sys

from bench.measure import BITCONV, Comparison, compare

LIMIT = 1.3


def startup(repeats: int) -> Comparison:
    return compare(
        "bitconv --help",
        [*BITCONV, "--help"],
        'python -c "import typer, rich"',
        [sys.executable, "-c", "import typer, rich"],
        repeats=repeats,
        limit=LIMIT,
    )
