"""What the layouts are, in numpy, written from their definition and slowly: the kernels are tested against this.

A layout is an arrangement: which element of the matrix each digit of each byte stands for. Elements are numbered
in row order, -1 is a digit without an element. Packing writes digits, unpacking reads them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Trits = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]

INVALID = 2  # what unpacking writes in place of a trit where the code is invalid


def golden_matrix(rows: int, cols: int, seed: int) -> Trits:
    """The matrix of a golden vector: integer hashes modulo 3."""
    x = np.arange(rows * cols, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed * 40503 % 2**32)
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    return ((x % 3).astype(np.int8) - 1).reshape(rows, cols)


@dataclass(frozen=True)
class TwoBit:
    """Four codes a byte, code = trit + 1, digit i at bits 2i+1:2i; code 3 is invalid."""

    digits: int = 4

    def encode(self, codes: Index) -> Bytes:
        """codes [..., 4] -> bytes."""
        return (codes << np.array([0, 2, 4, 6])).sum(axis=-1).astype(np.uint8)

    def decode(self, packed: Bytes, used: NDArray[np.bool_]) -> Trits:
        """bytes -> trits [..., 4], INVALID for code 3."""
        return (packed[..., None] >> np.array([0, 2, 4, 6]) & 3).astype(np.int8) - 1


@dataclass(frozen=True)
class Base3:
    """Five codes a byte: their number in base 3, first digit highest, times 256 / 243, rounded up."""

    digits: int = 5

    def encode(self, codes: Index) -> Bytes:
        """codes [..., 5] -> bytes."""
        value = (codes * np.array([81, 27, 9, 3, 1])).sum(axis=-1)
        return ((value * 256 + 242) // 243).astype(np.uint8)

    def decode(self, packed: Bytes, used: NDArray[np.bool_]) -> Trits:
        """bytes -> trits [..., 5], INVALID throughout a byte that cannot come from packing."""
        values = np.full(256, -1)
        values[(np.arange(243) * 256 + 242) // 243] = np.arange(243)
        value = values[packed][..., None]
        codes = value // np.array([81, 27, 9, 3, 1]) % 3
        invalid = (value < 0) | ((codes != 0) & ~used).any(axis=-1, keepdims=True)
        return np.where(invalid, INVALID, codes - 1).astype(np.int8)


def _high_first(index: Index, group: int) -> Index:
    """[..., 4 * group] -> [..., group, 4]: byte j holds elements j, group + j, ..., the first in the high bits."""
    return index.reshape(*index.shape[:-1], 4, group).swapaxes(-1, -2)[..., ::-1]


def _low_first(index: Index, group: int) -> Index:
    return _high_first(index, group)[..., ::-1]


def _tq1_0(block: Index) -> Index:
    first = block[..., :160].reshape(*block.shape[:-1], 5, 32).swapaxes(-1, -2)
    second = block[..., 160:240].reshape(*block.shape[:-1], 5, 16).swapaxes(-1, -2)
    third = block[..., 240:].reshape(*block.shape[:-1], 4, 4).swapaxes(-1, -2)
    third = np.concatenate([third, np.full_like(third[..., :1], -1)], axis=-1)
    return np.concatenate([first, second, third], axis=-2)


def _iq1_bn(block: Index) -> Index:
    sixteens = block.reshape(*block.shape[:-1], 4, 16)
    fives = sixteens[..., :15].reshape(*block.shape[:-1], 12, 5)[..., ::-1]
    last = sixteens[..., None, ::-1, 15]
    last = np.concatenate([np.full_like(last[..., :1], -1), last], axis=-1)
    return np.concatenate([fives, last], axis=-2)


@dataclass(frozen=True)
class RowLayout:
    """A layout of rows of blocks, with a scale in each block (float16), in each row, or outside."""

    block: int
    arrange: Callable[[Index], Index]  # elements [..., block] -> [..., bytes, digits]
    codes: TwoBit | Base3 = TwoBit()
    row_scale: str = ""  # numpy dtype of a scale before each row
    block_scale: str = ""  # "before" or "after" the codes of each block

    def arrangement(self, rows: int, cols: int) -> Index:
        """[rows, blocks, bytes, digits]."""
        return self.arrange(np.arange(rows * cols).reshape(rows, cols // self.block, self.block))

    def pack(self, trits: Trits, scale: float | NDArray[np.float32]) -> Bytes:
        """trits [rows, cols] -> bytes. scale: the same everywhere, or as many as `unpack` returns."""
        arrangement = self.arrangement(*trits.shape)
        codes = np.append(trits.ravel().astype(np.int64) + 1, 0)[arrangement]
        packed = self.codes.encode(codes)
        rows, blocks = packed.shape[:2]
        if self.block_scale:
            zero = ~trits.reshape(rows, blocks, self.block).any(axis=-1)
            d = np.where(zero, 0, np.full(zero.size, scale).reshape(zero.shape)).astype("<f2")[..., None].view(np.uint8)
            packed = np.concatenate([d, packed] if self.block_scale == "before" else [packed, d], axis=-1)
        packed = packed.reshape(rows, blocks * packed.shape[2])
        if self.row_scale:
            header = np.full(rows, scale).astype(self.row_scale)[:, None].view(np.uint8)
            packed = np.concatenate([header, packed], axis=-1)
        return packed.ravel()

    def unpack(self, packed: Bytes, rows: int, cols: int) -> tuple[Trits, NDArray[np.float32]]:
        """bytes -> trits [rows, cols] and the scales, flat."""
        arrangement = self.arrangement(rows, cols)
        blocks, code_bytes = arrangement.shape[1:3]
        header = np.dtype(self.row_scale).itemsize if self.row_scale else 0
        packed = packed.reshape(rows, header + blocks * (code_bytes + (2 if self.block_scale else 0)))
        scales = np.empty(0)
        if self.row_scale:
            scales = np.ascontiguousarray(packed[:, :header]).view(self.row_scale)
        packed = packed[:, header:].reshape(rows, blocks, code_bytes + (2 if self.block_scale else 0))
        if self.block_scale:
            d = packed[..., :2] if self.block_scale == "before" else packed[..., -2:]
            scales = np.ascontiguousarray(d).view("<f2")
            packed = packed[..., 2:] if self.block_scale == "before" else packed[..., :-2]
        trits = np.empty(rows * cols, np.int8)
        used = arrangement >= 0
        trits[arrangement[used]] = self.codes.decode(packed, used)[used]
        return trits.reshape(rows, cols), scales.astype(np.float32).ravel()


ROW_LAYOUTS = {
    "i2_s": RowLayout(128, lambda block: _high_first(block, 32)),
    "i2_s_arm64": RowLayout(64, lambda block: _high_first(block, 16)),
    "tq2_0": RowLayout(
        256,
        lambda block: _low_first(block.reshape(*block.shape[:-1], 2, 128), 32).reshape(*block.shape[:-1], 64, 4),
        block_scale="after",
    ),
    "q2_0": RowLayout(64, lambda block: block.reshape(*block.shape[:-1], 16, 4), block_scale="before"),
    "iq2_bn": RowLayout(64, lambda block: _low_first(block, 16), row_scale="<f4"),
    "tq1_0": RowLayout(256, _tq1_0, Base3(), block_scale="after"),
    "iq1_bn": RowLayout(64, _iq1_bn, Base3(), row_scale="<f2"),
}


def i2_s_row4_pack(trits: Trits) -> Bytes:
    """Byte (g, k) holds rows 4g to 4g + 3 at column k, the first in the high bits."""
    codes = trits.reshape(-1, 4, trits.shape[1]).astype(np.int64) + 1
    return TwoBit().encode(codes.swapaxes(-1, -2)[..., ::-1]).ravel()


def _tiles(elements: Index, *sizes: tuple[int, int]) -> Index:
    """Cut [rows, cols] into tiles of (rows, cols), those into smaller ones, and so on: [..., tile rows, tile cols].

    Tiles come row by row.
    """
    for rows, cols in sizes:
        *outer, m, k = elements.shape
        elements = elements.reshape(*outer, m // rows, rows, k // cols, cols).swapaxes(-3, -2)
    return elements


def tl1_arrangement(rows: int, cols: int, bm: int, bk: int, bmm: int) -> Index:
    """[bytes, 2 nibbles, 2 elements], the high nibble first."""
    elements = np.arange(rows * cols).reshape(rows, cols)
    return _tiles(elements, (bm, bk), (bmm, 256 // bmm), (16, 4)).reshape(-1, 2, 2)


def _pair_bytes(trits: Trits, arrangement: Index) -> Bytes:
    pairs = trits.ravel().astype(np.int64)[arrangement] @ np.array([3, 1]) + 4
    return (pairs @ np.array([16, 1])).astype(np.uint8)


def _unpack_pairs(packed: Bytes, arrangement: Index, trits: Trits) -> None:
    nibble = packed[:, None] >> np.array([4, 0]) & 15
    pairs = np.stack([nibble // 3, nibble % 3], axis=-1).astype(np.int8) - 1
    trits[arrangement] = np.where(nibble[..., None] > 8, INVALID, pairs)


def tl1_pack(trits: Trits, bm: int, bk: int, bmm: int) -> Bytes:
    """trits [rows, cols] -> bytes."""
    return _pair_bytes(trits, tl1_arrangement(*trits.shape, bm, bk, bmm))


def tl1_unpack(packed: Bytes, rows: int, cols: int, bm: int, bk: int, bmm: int) -> Trits:
    """bytes -> trits [rows, cols]."""
    trits = np.empty(rows * cols, np.int8)
    _unpack_pairs(packed, tl1_arrangement(rows, cols, bm, bk, bmm), trits)
    return trits.reshape(rows, cols)


TL2_ROWS = np.array([*range(8), *range(16, 24), *range(8, 16), *range(24, 32)])


@dataclass(frozen=True)
class Tl2:
    """TL2's three parts for a shape and tile sizes."""

    rows: int
    cols: int
    bm: int
    bk: int

    def _split(self) -> tuple[Index, Index]:
        elements = np.arange(self.rows * self.cols).reshape(self.rows, self.cols)
        three = self.cols - self.cols % self.bk
        return elements[:, :three], elements[:, three:]

    def values(self) -> Index:
        """[bytes, 2 nibbles, 3 elements], the high nibble first."""
        tiles = _tiles(self._split()[0], (self.bm, self.bk), (32, 6))
        return tiles[..., TL2_ROWS, :].reshape(-1, 2, 3)

    def signs(self) -> Index:
        """[words, 16 bits, 3 elements], the high bit first: triple 0 of row j, of row 16 + j, triple 1 of row j..."""
        tiles = _tiles(self._split()[0], (self.bm, self.bk), (32, 24))
        words = tiles.reshape(-1, 2, 16, 8, 3).transpose(0, 2, 3, 1, 4)
        return words.reshape(-1, 16, 3)

    def pairs(self) -> Index:
        """[bytes, 2 nibbles, 2 elements], the high nibble first."""
        tiles = _tiles(self._split()[1], (self.bm, 32), (32, 32), (32, 4))
        return tiles[..., TL2_ROWS, :].reshape(-1, 2, 2)

    def pack(self, trits: Trits) -> tuple[Bytes, Bytes, Bytes]:
        """trits [rows, cols] -> absolute values, signs, pairs."""
        weights = np.array([9, 3, 1])
        flat = trits.ravel().astype(np.int64)
        values = np.abs(flat[self.values()] @ weights) @ np.array([16, 1])
        signs = (flat[self.signs()] @ weights < 0) @ (1 << np.arange(15, -1, -1))
        return values.astype(np.uint8), signs.astype("<u2").view(np.uint8), _pair_bytes(trits, self.pairs())

    def unpack(self, values: Bytes, signs: Bytes, pairs: Bytes) -> Trits:
        """Absolute values, signs, pairs -> trits [rows, cols]."""
        size = self.rows * self.cols
        magnitude, negative = np.zeros(size, np.int64), np.zeros(size, np.int64)
        magnitude[self.values()] = (values[:, None] >> np.array([4, 0]) & 15)[..., None]
        negative[self.signs()] = (signs.view("<u2")[:, None] >> np.arange(15, -1, -1) & 1)[..., None]
        triple = np.where(negative == 1, -magnitude, magnitude) + 13
        weight = np.zeros(size, np.int64)
        weight[self.values()] = np.array([9, 3, 1])
        trits = (triple // np.maximum(weight, 1) % 3).astype(np.int8) - 1
        trits[(magnitude > 13) | ((magnitude == 0) & (negative == 1))] = INVALID
        _unpack_pairs(pairs, self.pairs(), trits)
        return trits.reshape(self.rows, self.cols)


def first_invalid(trits: Trits) -> int:
    """The lowest index of an invalid code, or -1."""
    found = np.flatnonzero(trits == INVALID)
    return int(found[0]) if found.size else -1
