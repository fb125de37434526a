"""Matrices are worked through in blocks of whole rows."""

from __future__ import annotations

from collections.abc import Iterator

# Blocks of about this many weights: few enough that the bytes of one stay in a core's caches, and enough that the time
# goes to kernels and the disk, not to Python.
BLOCK_WEIGHTS = 1 << 19


def row_blocks(rows: int, columns: int, multiple: int, weights: int = BLOCK_WEIGHTS) -> Iterator[tuple[int, int]]:
    """(first, last) of consecutive blocks of rows, each but the last a whole number of `multiple` rows."""
    step = max(1, weights // (columns * multiple)) * multiple
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
