"""How long a user waits for bitconv --help."""

from __future__ import annotations

import sys
from functools import partial

from bench.measure import Comparison, bitconv, compare, run

LIMIT = 1.3


def startup(repeats: int) -> Comparison:
    return compare(
        "bitconv --help",
        partial(bitconv, "--help"),
        'python -c "import typer, rich"',
        partial(run, [sys.executable, "-c", "import typer, rich"]),
        repeats=repeats,
        limit=LIMIT,
    )
