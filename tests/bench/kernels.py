"""The kernels of one core beside what its memory can do, all in one process."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from bitconv.layouts import PACKED
from bitconv.layouts.layout import Bytes, Layout, Trits
from bitconv.layouts.registry import make_layout
from bitconv.layouts.scales import block_scales
from bitconv.system.blocks import row_blocks

# ffn_gate of 2b-4t; and a matrix of as many columns and more rows than the caches hold.
ROWS, COLUMNS = 6912, 2560
READ_SHARE = 0.6


@dataclass(frozen=True)
class Rate:
    """An operation beside another, on as many bytes read and written. Seconds of each run."""

    layout: str
    operation: str
    beside: str
    nbytes: int
    seconds: tuple[float, ...]
    other_seconds: tuple[float, ...]

    @property
    def speed(self) -> float:
        """In bytes a second."""
        return self.nbytes / median(self.seconds)

    @property
    def other_speed(self) -> float:
        return self.nbytes / median(self.other_seconds)

    @property
    def ratios(self) -> list[float]:
        """Of the speeds of each pair of runs."""
        return [other / mine for mine, other in zip(self.seconds, self.other_seconds, strict=True)]


def rates(repeats: int) -> list[Rate]:
    """pack, unpack and matmul of one int8 vector of each layout, beside a memory copy."""
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (ROWS, COLUMNS), np.int8)
    x = rng.integers(-127, 128, (1, COLUMNS), np.int8)
    found = []
    for name in PACKED:
        layout = make_layout(name, (ROWS, COLUMNS))
        # As the streaming engine does it: a block that fits the cache at a time.
        blocks = [trits[first:last] for first, last in row_blocks(ROWS, COLUMNS, layout.row_multiple)]
        packed = _pack(layout, blocks)
        size = sum(part.size for parts in packed for part in parts)
        for operation, nbytes, work in (
            ("pack", trits.size + size, lambda: _pack(layout, blocks)),  # noqa: B023 - called within the loop
            ("unpack", trits.size + size, lambda: _unpack(layout, packed)),  # noqa: B023
            ("matmul", size, lambda: _matmul(layout, packed, x)),  # noqa: B023
        ):
            found.append(_rate(name, operation, nbytes, work, "memory copy", _copy(nbytes), repeats))
    return found


def read_rate(nbytes: int, repeats: int) -> Rate:
    """I2_S's matmul of one int8 vector over `nbytes` packed bytes, beside reading as many."""
    rng = np.random.default_rng(0)
    layout = make_layout("i2_s")
    rows = layout.row_multiple * 1024
    ((part,),) = _pack(layout, [rng.integers(-1, 2, (rows, COLUMNS), np.int8)])
    packed = np.tile(part, -(-nbytes // part.size))
    x = rng.integers(-127, 128, (1, COLUMNS), np.int8)
    read = min(_readers(packed), key=lambda reader: min(_seconds(reader) for _ in range(3)))
    return _rate("i2_s", "matmul", packed.size, lambda: layout.matmul_rows([packed], x), "reading", read, repeats)


def beyond_cache() -> int:
    """Bytes that no cache holds a noticeable part of: eight times the last level, or 256 MB where that is not known."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return max(8 * int(text.removesuffix("K")) * 1024, 1 << 28)
    except (OSError, ValueError):
        return 1 << 28


def _readers(data: Bytes) -> Sequence[Callable[[], object]]:
    """Ways to read all of an array with one core and do next to nothing with it: the fastest is the bandwidth."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    absent = next(byte for byte in range(255, 0, -1) if not (data[: 1 << 20] == byte).any())  # 255 is four codes of 3
    return (
        lambda: memchr(data.ctypes.data, absent, data.size),
        lambda: data[: data.size // 4 * 4].view(np.int32).max(),
    )


def _copy(nbytes: int) -> Callable[[], None]:
    """Reads half of the bytes and writes half."""
    source, target = np.ones(nbytes // 2, np.uint8), np.ones(nbytes // 2, np.uint8)
    return lambda: np.copyto(target, source)


def _pack(layout: Layout, blocks: Sequence[Trits]) -> list[Sequence[Bytes]]:
    """Each block of rows, with the scale 1."""
    return [layout.pack_rows(block, block_scales(layout, np.float32(1), 0, len(block), COLUMNS)) for block in blocks]


def _unpack(layout: Layout, packed: Sequence[Sequence[Bytes]]) -> None:
    for parts in packed:
        layout.unpack_rows(parts, COLUMNS)


def _matmul(layout: Layout, packed: Sequence[Sequence[Bytes]], x: np.ndarray) -> None:
    for parts in packed:
        layout.matmul_rows(parts, x)


def _rate(
    layout: str,
    operation: str,
    nbytes: int,
    work: Callable[[], object],
    beside: str,
    other: Callable[[], object],
    repeats: int,
) -> Rate:
    seconds, other_seconds = [], []
    _seconds(work)
    _seconds(other)
    for _ in range(repeats):
        other_seconds.append(_seconds(other))
        seconds.append(_seconds(work))
    return Rate(layout, operation, beside, nbytes, tuple(seconds), tuple(other_seconds))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
