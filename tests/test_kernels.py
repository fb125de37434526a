"""The native kernels: against the golden vectors, the reference in numpy, and every instruction set of this CPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitconv import _kernels
from bitconv.layouts.q8_0 import Q8_0
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference

GOLDEN = json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text())
NO_SCALES = np.empty(0, np.float32)
PACKED_BY_ROWS = list(reference.ROW_LAYOUTS)
FLOATS = {"f32": "<f4", "f16": "<f2"}
SCALES = {"f32": (1e-45, 0.3, 1e30), "f16": (2.99e-8, 0.3, 60000), "bf16": (4.6e-41, 0.3, 1e30)}


@pytest.fixture(params=_kernels.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test on each instruction set of this CPU."""
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_trits(rows: int, cols: int) -> reference.Trits:
    trits = rng(rows, cols).integers(-1, 2, (rows, cols), dtype=np.int8)
    trits[: rows // 3] = 0
    return trits


def activations(n: int, cols: int) -> NDArray[np.int8]:
    """Vectors of int8, the first all -128, the second all 127."""
    x = rng(n, cols).integers(-128, 128, (n, cols), dtype=np.int8)
    x[:1], x[1:2] = -128, 127
    return x


def product(trits: reference.Trits, x: NDArray[np.int8]) -> NDArray[np.int32]:
    return x.astype(np.int32) @ trits.T.astype(np.int32)


# The row layouts


def scales_of(layout: str, rows: int, cols: int, scale: float = 0.3) -> NDArray[np.float32]:
    """As many as the layout has, all the same."""
    form = reference.ROW_LAYOUTS[layout]
    return np.full(rows if form.row_scale else rows * cols // form.block if form.block_scale else 0, scale, np.float32)


def pack(layout: str, trits: reference.Trits, scale: float | NDArray[np.float32] = 0.3) -> reference.Bytes:
    out = np.full(reference.ROW_LAYOUTS[layout].pack(trits, 1).size, 0xEE, np.uint8)
    scales = scale if isinstance(scale, np.ndarray) else scales_of(layout, *trits.shape, scale)
    _kernels.pack_rows(layout, trits, scales, out)
    return out


def unpack(
    layout: str, packed: reference.Bytes, rows: int, cols: int
) -> tuple[int, reference.Trits, NDArray[np.float32]]:
    """The index of an invalid code, the trits, the scales."""
    out, scales = np.full((rows, cols), 99, np.int8), scales_of(layout, rows, cols, 99)
    return _kernels.unpack_rows(layout, packed, out, scales), out, scales


@pytest.mark.slow
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"{g['layout']}-{g['rows']}x{g['cols']}")
def test_packs_and_unpacks_the_golden_matrices(golden: dict[str, Any]) -> None:
    layout, rows, cols, scale = (golden[key] for key in ("layout", "rows", "cols", "scale"))
    trits = reference.golden_matrix(rows, cols, golden["seed"])
    tail = b"" if layout not in ("i2_s", "i2_s_arm64", "i2_s_row4", "tl1", "tl2") else np.float32(scale).tobytes()
    tail += bytes(28) if tail else b""
    out = np.empty_like(trits)
    if layout == "tl1":
        tile = (golden["bm"], golden["bk"], golden["bmm"])
        packed = np.empty(trits.size // 4, np.uint8)
        _kernels.tl1_pack(trits, *tile, packed)
        assert _kernels.tl1_unpack(packed, *tile, out) == -1
        data = packed.tobytes()
    elif layout == "tl2":
        parts = tl2_parts(trits, golden["bm"], golden["bk"])
        assert _kernels.tl2_unpack(*parts, golden["bm"], golden["bk"], out) == -1
        data = b"".join(part.tobytes() for part in parts).ljust(golden["nbytes"] - 32, b"\0")
    elif layout == "i2_s_row4":  # read only
        packed = reference.i2_s_row4_pack(trits)
        assert _kernels.unpack_rows(layout, packed, out, NO_SCALES) == -1
        data = packed.tobytes()
    else:
        packed = pack(layout, trits, scale)
        invalid, out, scales = unpack(layout, packed, rows, cols)
        assert invalid == -1
        assert (scales == np.float32(scale if layout == "iq2_bn" else np.float16(scale))).all()
        data = packed.tobytes()
    data += tail
    assert len(data) == golden["nbytes"]
    assert data[:16].hex() == golden["head"]
    assert data[-32:].hex() == golden["tail"]
    assert hashlib.sha256(data).hexdigest() == golden["sha256"]
    assert (out == trits).all()


@pytest.mark.parametrize("layout", PACKED_BY_ROWS)
@given(rows=st.integers(0, 5), blocks=st.integers(1, 9), scale=st.floats(2**-13, 2**15, width=32))
@settings(max_examples=25, deadline=None)
def test_packs_like_the_reference(layout: str, rows: int, blocks: int, scale: float) -> None:
    cols = blocks * reference.ROW_LAYOUTS[layout].block
    trits = random_trits(rows, cols)
    packed = pack(layout, trits, scale)
    assert (packed == reference.ROW_LAYOUTS[layout].pack(trits, scale)).all()
    invalid, out, scales = unpack(layout, packed, rows, cols)
    assert invalid == -1
    assert (out == trits).all()
    assert (scales == reference.ROW_LAYOUTS[layout].unpack(packed, rows, cols)[1]).all()


@pytest.mark.parametrize("layout", [name for name in PACKED_BY_ROWS if not name.startswith("i2_s")])
@given(rows=st.integers(0, 5), blocks=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_packs_and_unpacks_scales_that_differ_like_the_reference(
    layout: str, rows: int, blocks: int, seed: int
) -> None:
    form = reference.ROW_LAYOUTS[layout]
    trits = random_trits(rows, blocks * form.block)
    scales = (2.0 ** rng(seed).uniform(-13, 15, scales_of(layout, *trits.shape).shape)).astype(np.float32)
    packed = pack(layout, trits, scales)
    assert (packed == form.pack(trits, scales)).all()
    invalid, out, out_scales = unpack(layout, packed, *trits.shape)
    assert invalid == -1 and (out == trits).all()
    if form.block_scale:
        scales = np.where(trits.reshape(-1, form.block).any(axis=1), scales, 0)
    assert (out_scales == scales.astype(form.row_scale or "<f2").astype(np.float32)).all()


@pytest.mark.parametrize("layout", reference.ROW_LAYOUTS)
@given(data=st.data(), blocks=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_finds_the_first_invalid_code(layout: str, data: st.DataObject, blocks: int) -> None:
    form = reference.ROW_LAYOUTS[layout]
    rows, cols = 2, blocks * form.block
    packed = form.pack(random_trits(rows, cols), 0.3)
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, packed.size - 1))] = data.draw(st.integers(0, 255))
    expected, scales = form.unpack(packed, rows, cols)
    invalid, out, out_scales = unpack(layout, packed, rows, cols)
    assert invalid == reference.first_invalid(expected)
    if invalid < 0:
        assert (out == expected).all()
        assert np.array_equal(out_scales, scales, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tq1_0", "iq1_bn"])
def test_accepts_exactly_the_bytes_that_packing_makes(layout: str) -> None:
    form = reference.ROW_LAYOUTS[layout]
    packed = form.pack(np.zeros((1, form.block), np.int8), 1.0)
    for byte in range(2 if form.row_scale else 0, packed.size - (2 if form.block_scale else 0)):
        for value in range(256):
            packed[byte], before = value, packed[byte]
            invalid, out, _ = unpack(layout, packed, 1, form.block)
            again = form.pack(np.clip(out, -1, 1), 1.0)
            assert (invalid == -1) == (again[byte] == value)
            packed[byte] = before


@pytest.mark.parametrize("layout", PACKED_BY_ROWS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 9])
def test_multiplies_packed_rows_exactly(layout: str, n: int) -> None:
    for blocks in (1, 2, 3, 5, 8, 17):
        trits = random_trits(5, blocks * reference.ROW_LAYOUTS[layout].block)
        x = activations(n, trits.shape[1])
        out = np.full((n, 5), 99, np.int32)
        _kernels.matmul_rows(layout, pack(layout, trits), x, out)
        assert (out == product(trits, x)).all()


def test_unpacks_groups_of_four_rows() -> None:
    trits = random_trits(8, 37)
    packed, out = reference.i2_s_row4_pack(trits), np.empty_like(trits)
    assert _kernels.unpack_rows("i2_s_row4", packed, out, NO_SCALES) == -1
    assert (out == trits).all()
    packed[37 + 5] = 0b11_00_11_00  # rows 4 and 6 at column 5
    assert _kernels.unpack_rows("i2_s_row4", packed, out, NO_SCALES) == 4 * 37 + 5


def test_writes_scale_zero_in_blocks_of_zeros() -> None:
    for layout, block in (("tq1_0", 256), ("tq2_0", 256), ("q2_0", 64)):
        trits = np.zeros((1, 3 * block), np.int8)
        trits[0, block + 17] = -1
        assert unpack(layout, pack(layout, trits, 0.5), 1, 3 * block)[2].tolist() == [0, 0.5, 0]


# TL1 and TL2

TL1_TILES = [(64, 64, (64, 32, 32)), (96, 40, (32, 8, 32)), (128, 36, (64, 12, 64)), (64, 264, (64, 264, 32))]
TL2_TILES = [(64, 96, 32, 96), (64, 256, 64, 96), (96, 32, 32, 48), (32, 264, 32, 264), (64, 176, 32, 72)]


def tl2_parts(trits: reference.Trits, bm: int, bk: int) -> tuple[reference.Bytes, reference.Bytes, reference.Bytes]:
    rows, cols = trits.shape
    paired = cols % bk
    sizes = (cols - paired) // 6, (cols - paired) // 24, paired // 4
    values, signs, pairs = (np.full(rows * size, 0xEE, np.uint8) for size in sizes)
    _kernels.tl2_pack(trits, bm, bk, values, signs, pairs)
    return values, signs, pairs


@pytest.mark.parametrize(("rows", "cols", "tile"), TL1_TILES)
def test_tl1_equals_the_reference(rows: int, cols: int, tile: tuple[int, int, int]) -> None:
    trits = random_trits(rows, cols)
    packed, out = np.empty(rows * cols // 4, np.uint8), np.empty_like(trits)
    _kernels.tl1_pack(trits, *tile, packed)
    assert (packed == reference.tl1_pack(trits, *tile)).all()
    assert _kernels.tl1_unpack(packed, *tile, out) == -1
    assert (out == trits).all()
    for n in (0, 1, 2, 3, 5, 9):
        x, products = activations(n, cols), np.full((n, rows), 99, np.int32)
        _kernels.tl1_matmul(packed, *tile, x, products)
        assert (products == product(trits, x)).all()


@given(byte=st.integers(0, 1023), value=st.integers(0, 255))
@settings(deadline=None)
def test_tl1_finds_the_first_invalid_code(byte: int, value: int) -> None:
    rows, cols, tile = TL1_TILES[0]
    packed, out = reference.tl1_pack(random_trits(rows, cols), *tile), np.empty((rows, cols), np.int8)
    packed[byte] = value
    packed[-1] = 0x59
    expected = reference.tl1_unpack(packed, rows, cols, *tile)
    assert _kernels.tl1_unpack(packed, *tile, out) == reference.first_invalid(expected) >= 0


@pytest.mark.parametrize(("rows", "cols", "bm", "bk"), TL2_TILES)
def test_tl2_equals_the_reference(rows: int, cols: int, bm: int, bk: int) -> None:
    trits = random_trits(rows, cols)
    parts, out = tl2_parts(trits, bm, bk), np.empty_like(trits)
    for part, expected in zip(parts, reference.Tl2(rows, cols, bm, bk).pack(trits), strict=True):
        assert (part == expected).all()
    assert _kernels.tl2_unpack(*parts, bm, bk, out) == -1
    assert (out == trits).all()
    for n in (0, 1, 2, 3, 5, 9):
        x, products = activations(n, cols), np.full((n, rows), 99, np.int32)
        _kernels.tl2_matmul(*parts, bm, bk, x, products)
        assert (products == product(trits, x)).all()


@given(data=st.data(), part=st.integers(0, 2))
@settings(deadline=None)
def test_tl2_finds_the_first_invalid_code(data: st.DataObject, part: int) -> None:
    rows, cols, bm, bk = TL2_TILES[1]
    form = reference.Tl2(rows, cols, bm, bk)
    parts, out = form.pack(random_trits(rows, cols)), np.empty((rows, cols), np.int8)
    parts[part][data.draw(st.integers(0, parts[part].size - 1))] = data.draw(st.integers(0, 255))
    expected = form.unpack(*parts)
    assert _kernels.tl2_unpack(*parts, bm, bk, out) == reference.first_invalid(expected)


def test_tl2_rejects_the_sign_of_zero() -> None:
    values, signs, pairs = tl2_parts(np.zeros((32, 24), np.int8), 32, 24)
    signs[0] = 1  # bit 0 of word 0: triple 7 of row 16
    assert _kernels.tl2_unpack(values, signs, pairs, 32, 24, np.empty((32, 24), np.int8)) == 16 * 24 + 21


# Sources and floats


def bits(values: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """Float values, rounded to nearest even, as raw bytes."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values.astype(FLOATS[dtype])).view(np.uint8).ravel()
    x = values.astype("<f4").view(np.uint32).astype(np.uint64)
    rounded = ((x + 0x7FFF + (x >> 16 & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").view(np.uint8).ravel()


def floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Raw bytes as float32 values."""
    if dtype == "bf16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    return raw.view(FLOATS[dtype]).astype(np.float32)


def awkward_values(dtype: str, scale: float) -> NDArray[np.uint8]:
    """Values on and beside the thresholds of a scale, dead ones, huge ones, subnormals, zeros; then random ones."""
    near = np.array([0.5, 1, 1.5, 2], np.float32) * np.float32(scale)
    near = np.concatenate([near, np.nextafter(near, 0), np.nextafter(near, np.float32(np.inf))])
    rare = [0, 1e-34, 1e-45, 1e-40, 6e-8, 1e-5, 3e38, 65504, 1e9]
    values = np.concatenate([near, rare, rng(1).normal(0, scale, 1003)])
    return bits(np.concatenate([values, -values]).astype(np.float32), dtype)


def ternarized(x: NDArray[np.float32], inverse_scale: float) -> NDArray[np.int8]:
    with np.errstate(over="ignore", invalid="ignore"):
        trits = np.clip(np.rint(x * np.float32(inverse_scale)), -1, 1)
    return np.nan_to_num(trits).astype(np.int8)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("scale", [1e-5, 0.0123, 1.0, 2.163161277770996, 3e4])
def test_ternarizes_by_rounding_the_float32_product(dtype: str, scale: float) -> None:
    inverse_scale = float(np.float32(1) / np.float32(scale))
    x = awkward_values(dtype, scale)
    out = np.full(x.size // np.dtype(FLOATS.get(dtype, "<f2")).itemsize, 99, np.int8)
    _kernels.ternarize(x, dtype, inverse_scale, out)
    assert (out == ternarized(floats(x, dtype), inverse_scale)).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("inverse_scale", [1.0, 0.37, 1 / 3, 1e5, 1e-6, 3.4e38])
def test_ternarizes_every_16_bit_float(dtype: str, inverse_scale: float) -> None:
    x = np.arange(65536, dtype="<u2").view(np.uint8)
    out = np.full(65536, 99, np.int8)
    _kernels.ternarize(x, dtype, inverse_scale, out)
    assert (out == ternarized(floats(x, dtype), inverse_scale)).all()


def test_rounds_ties_to_even() -> None:
    x = bits(np.array([0.5, -0.5, 1.5, -1.5, np.nextafter(np.float32(0.5), np.float32(1))]), "f32")
    out = np.empty(5, np.int8)
    _kernels.ternarize(x, "f32", 1.0, out)
    assert out.tolist() == [0, 0, 1, -1, 1]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000, 4096])
def test_sums_magnitudes_in_the_documented_order(dtype: str, n: int) -> None:
    x = bits(rng(n).normal(0, 1, n) * 10.0 ** rng(n, 1).integers(-4, 4, n), dtype)
    lanes = np.zeros(-(-n // 64) * 64)
    lanes[:n] = np.abs(floats(x, dtype).astype(np.float64))
    sums = np.zeros(64)
    for row in lanes.reshape(-1, 64):
        sums += row
    while sums.size > 1:
        sums = sums[: sums.size // 2] + sums[sums.size // 2 :]
    assert _kernels.abs_sum(x, dtype) == sums[0]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sum_of_magnitudes_shows_what_is_not_finite(dtype: str, value: float) -> None:
    for position in (0, 70, 129):
        x = np.ones(130)
        x[position] = value
        assert not np.isfinite(_kernels.abs_sum(bits(x, dtype), dtype))


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("n", [0, 1, 33, 1000])
def test_unpacks_a_quarter_of_hugging_face_rows(quarter: int, n: int) -> None:
    codes = rng(n).integers(0, 3, (4, n))
    packed, out = reference.TwoBit().encode(codes.T), np.full(n, 99, np.int8)
    assert _kernels.unpack_hf(packed, quarter, out) == -1
    assert (out == codes[quarter] - 1).all()
    packed[n // 2 :: 3] |= 3 << 2 * quarter
    assert _kernels.unpack_hf(packed, quarter, out) == (n // 2 if n else -1)
    assert _kernels.unpack_hf(packed, (quarter + 1) % 4, out) == -1


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("out_dtype", ["f32", "f16", "bf16"])
def test_converts_every_16_bit_float(dtype: str, out_dtype: str) -> None:
    """Each pattern alone, since the first that is not finite ends a conversion."""
    patterns = np.arange(65536, dtype="<u2")
    values = floats(patterns.view(np.uint8), dtype)
    expected = bits(values, out_dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(floats(expected, out_dtype))
    size = expected.size // 65536
    out = np.empty(finite.sum() * size, np.uint8)
    assert _kernels.convert_floats(patterns[finite].view(np.uint8), dtype, out, out_dtype) == -1
    assert (out.reshape(-1, size) == expected.reshape(-1, size)[finite]).all()
    for pattern in patterns[~finite][::7]:
        one = np.array([0, 0, pattern], "<u2").view(np.uint8)
        assert _kernels.convert_floats(one, dtype, np.empty(3 * size, np.uint8), out_dtype) == 2


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", ["f32", "f16", "bf16"])
@given(patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70))
@settings(max_examples=200, deadline=None)
def test_converts_float32_like_numpy(out_dtype: str, patterns: list[int]) -> None:
    x = np.array(patterns, "<u4").view("<f4")
    with np.errstate(invalid="ignore", over="ignore"):
        expected = bits(x, out_dtype)
        finite = np.isfinite(floats(expected, out_dtype))
    out = np.empty(expected.size, np.uint8)
    index = _kernels.convert_floats(x.view(np.uint8), "f32", out, out_dtype)
    assert index == (-1 if finite.all() else np.flatnonzero(~finite)[0])
    if index < 0:
        assert (out == expected).all()


def test_converts_float32_at_the_edges_of_float16() -> None:
    halves = np.arange(0x7C00, dtype="<u2").view("<f2").astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    x = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))])
    x = np.concatenate([x, -x, [np.nextafter(np.float32(65520), np.float32(0))]])
    out = np.empty(2 * x.size, np.uint8)
    assert _kernels.convert_floats(x.view(np.uint8), "f32", out, "f16") == -1
    assert (out == x.astype("<f2").view(np.uint8)).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dequantizes_to_minus_scale_zero_and_scale(dtype: str) -> None:
    trits = np.array([0, 1, -1] * 33, np.int8)
    for scales in (*([scale] for scale in SCALES[dtype]), SCALES[dtype]):
        scales = np.array(scales, np.float32)
        expected = bits(trits * np.repeat(scales, trits.size // scales.size) + np.float32(0), dtype)
        out = np.full(expected.size, 0xEE, np.uint8)
        _kernels.dequantize(trits, scales, out, dtype)
        assert (out == expected).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@given(groups=st.integers(1, 9), group=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_finds_the_scales_of_floats_that_are_ternary(dtype: str, groups: int, group: int, seed: int) -> None:
    values = random_trits(groups, group) * 2.0 ** rng(seed).uniform(-13, 15, (groups, 1)).astype(np.float32)
    values[values == 0] *= rng(seed).choice([-1, 1])  # -0 is a zero too
    x = bits(values.astype(np.float32), dtype)
    scales = np.full(groups, 99, np.float32)
    assert _kernels.ternary_scales(x, dtype, scales) == -1
    assert (scales == np.abs(floats(x, dtype)).reshape(groups, group).max(axis=1)).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_float_off_by_one_ulp_is_not_ternary(dtype: str, step: int) -> None:
    size = 4 if dtype == "f32" else 2
    x = bits(np.tile(np.array([0.3, -0.3, 0], np.float32), 32), dtype)
    x.view(f"<i{size}")[70] += step  # in the second group; where it is the largest then, the group's others are wrong
    scales = np.empty(2, np.float32)
    assert _kernels.ternary_scales(x, dtype, scales) == (70 if step < 0 else 48)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_not_ternary(dtype: str, value: float) -> None:
    values = np.zeros(64)
    values[40] = value
    assert _kernels.ternary_scales(bits(values, dtype), dtype, np.empty(2, np.float32)) == 40


@pytest.mark.parametrize(("rows", "cols", "n"), [(0, 5, 2), (3, 0, 2), (1, 1, 1), (7, 31, 5), (4, 1000, 9)])
def test_multiplies_unpacked_rows_exactly(rows: int, cols: int, n: int) -> None:
    trits, x, out = random_trits(rows, cols), activations(n, cols), np.full((n, rows), 99, np.int32)
    _kernels.matmul(trits, x, out)
    assert (out == product(trits, x)).all()


def test_q8_0_multiplies_many_columns_exactly() -> None:
    """So many that sums of 127 times the activations would not fit int32."""
    packed = Q8_0().pack_rows(np.ones((1, 132128), np.int8), np.ones((1, 4129), np.float32))
    assert Q8_0().matmul_rows(packed, np.full((1, 132128), -128, np.int8)) == -128 * 132128


# The binding


def test_rejects_sizes_that_do_not_fit() -> None:
    u8, i8, i32, f32 = (lambda *s, t=t: np.zeros(s, t) for t in (np.uint8, np.int8, np.int32, np.float32))
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("columns is 100, not a multiple of 128", lambda: _kernels.pack_rows("i2_s", i8(1, 100), f32(0), u8(25))),
        ("packed array has 31 elements, expected 32", lambda: _kernels.pack_rows("i2_s", i8(1, 128), f32(0), u8(31))),
        ("packed array has 31 elements, expected 32", lambda: _kernels.unpack_rows("i2_s", u8(31), i8(1, 128), f32(0))),
        ("rows is 3, not a multiple of 4", lambda: _kernels.unpack_rows("i2_s_row4", u8(6), i8(3, 8), f32(0))),
        ("scales has 2 elements, expected 1", lambda: _kernels.unpack_rows("q2_0", u8(18), i8(1, 64), f32(2))),
        ("x has 2 vectors, out 3", lambda: _kernels.matmul_rows("i2_s", u8(32), i8(2, 128), i32(3, 1))),
        ("shapes of trits, x and out", lambda: _kernels.matmul(i8(2, 5), i8(1, 4), i32(1, 2))),
        ("bmm is 16", lambda: _kernels.tl1_pack(i8(32, 16), 32, 16, 16, u8(128))),
        ("rows is 32, not a multiple of 64", lambda: _kernels.tl1_pack(i8(32, 16), 64, 16, 32, u8(128))),
        ("bm is 48, not a multiple of 32", lambda: _kernels.tl1_pack(i8(48, 16), 48, 16, 32, u8(192))),
        ("bk is 12, not a multiple of 8", lambda: _kernels.tl1_pack(i8(32, 12), 32, 12, 32, u8(96))),
        ("bm or bk is 0", lambda: _kernels.tl1_pack(i8(0, 0), 0, 8, 32, u8(0))),
        ("bk is 32, not a multiple of 24", lambda: _kernels.tl2_pack(i8(32, 32), 32, 32, u8(0), u8(0), u8(0))),
        ("beyond a multiple of bk is 8", lambda: _kernels.tl2_pack(i8(32, 32), 32, 24, u8(0), u8(0), u8(0))),
        ("signs has 0 elements, expected 32", lambda: _kernels.tl2_pack(i8(32, 24), 32, 24, u8(128), u8(0), u8(0))),
        ("size of x in bytes is 7", lambda: _kernels.abs_sum(u8(7), "f16")),
        ("dtype is 'f64'", lambda: _kernels.abs_sum(u8(8), "f64")),
        ("out has 3 elements, expected 2", lambda: _kernels.ternarize(u8(4), "f16", 1.0, i8(3))),
        ("inverse_scale", lambda: _kernels.ternarize(u8(4), "f16", 0.0, i8(2))),
        ("inverse_scale", lambda: _kernels.ternarize(u8(4), "f16", float("nan"), i8(2))),
        ("quarter", lambda: _kernels.unpack_hf(u8(4), 4, i8(4))),
        ("out has 4 elements, expected 8", lambda: _kernels.convert_floats(u8(4), "f16", u8(4), "f32")),
        ("out has 4 elements, expected 8", lambda: _kernels.dequantize(i8(2), f32(1), u8(4), "f32")),
        ("values is 4, not a multiple of 3", lambda: _kernels.dequantize(i8(4), f32(3), u8(16), "f32")),
        ("values is 4, not a multiple of 3", lambda: _kernels.ternary_scales(u8(16), "f32", f32(3))),
        ("no scales", lambda: _kernels.ternary_scales(u8(16), "f32", f32(0))),
        ("scales has 2 elements, expected 1", lambda: _kernels.pack_rows("q2_0", i8(1, 64), f32(2), u8(18))),
        ("is too large", lambda: _kernels.matmul_rows("i2_s", u8(0), i8(0, 128), i32(0, 2**57))),
        ("is too large", lambda: _kernels.tl1_matmul(u8(0), 32, 64, 32, i8(0, 64), i32(0, 2**58))),
        ("is too large", lambda: _kernels.tl2_matmul(u8(0), u8(0), u8(0), 32, 96, i8(0, 32), i32(0, 2**59))),
        ("is too large", lambda: _kernels.float_matmul(u8(0), "f32", f32(0, 2**32), f32(0, 2**32))),
        ("too large", lambda: _kernels.pack_rows("q2_0", i8(1, 64), f32(1) + 65520, u8(18))),
        ("too large", lambda: _kernels.pack_rows("iq2_bn", i8(1, 64), f32(1) + np.inf, u8(20))),
        ("too large", lambda: _kernels.dequantize(i8(2), f32(1) + np.nan, u8(8), "f32")),
        ("too large", lambda: _kernels.dequantize(i8(2), f32(1) + np.float32(3.4e38), u8(4), "bf16")),
        (
            "too small for float16",
            lambda: _kernels.pack_rows("iq1_bn", i8(1, 64), f32(1) + np.float32(2.0**-25), u8(15)),
        ),
        ("too small for bfloat16", lambda: _kernels.dequantize(i8(2), f32(1) + np.float32(2.0**-134), u8(4), "bf16")),
    ]
    for message, call in wrong:
        with pytest.raises(ValueError, match=message):
            call()


def test_does_not_loop_over_the_shape_of_an_array_without_elements() -> None:
    u8, i8, i32, f32 = (lambda *s, t=t: np.zeros(s, t) for t in (np.uint8, np.int8, np.int32, np.float32))
    many = 2**60
    for rows, n in ((many, 0), (0, many)):
        _kernels.matmul_rows("i2_s", u8(0), i8(n, 0), i32(n, rows))
        _kernels.tl1_matmul(u8(0), 32, 64, 32, i8(n, 0), i32(n, rows))
        _kernels.tl2_matmul(u8(0), u8(0), u8(0), 32, 96, i8(n, 0), i32(n, rows))
        _kernels.matmul(i8(rows, 0), i8(n, 0), i32(n, rows))
        _kernels.float_matmul(u8(0), "f32", f32(n, 0), f32(n, rows))
    _kernels.pack_rows("i2_s", i8(many, 0), f32(0), u8(0))
    _kernels.tl1_pack(i8(many, 0), 32, 64, 32, u8(0))
    _kernels.tl2_pack(i8(many, 0), 32, 96, u8(0), u8(0), u8(0))
    assert _kernels.unpack_rows("i2_s", u8(0), i8(many, 0), f32(0)) == -1
    assert _kernels.unpack_rows("i2_s_row4", u8(0), i8(many, 0), f32(0)) == -1
    assert _kernels.tl1_unpack(u8(0), 32, 64, 32, i8(many, 0)) == -1
    assert _kernels.tl2_unpack(u8(0), u8(0), u8(0), 32, 96, i8(many, 0)) == -1


def test_rejects_arrays_of_another_type_or_order() -> None:
    out = np.zeros(32, np.uint8)
    for trits in (np.zeros((1, 128), np.int16), np.zeros((128, 1), np.int8).T[:, ::2], np.zeros(128, np.int8)):
        with pytest.raises(TypeError):
            _kernels.pack_rows("i2_s", trits, NO_SCALES, out)
    frozen = np.zeros((1, 128), np.int8)
    frozen.flags.writeable = False
    _kernels.pack_rows("i2_s", frozen, NO_SCALES, out)  # inputs may be read-only
    with pytest.raises(TypeError):
        _kernels.unpack_rows("i2_s", out, frozen, NO_SCALES)


def test_takes_unaligned_arrays() -> None:
    raw = np.zeros(4 * 100 + 1, np.uint8)
    raw[1:] = bits(rng(0).normal(0, 1, 100), "f32")
    assert _kernels.abs_sum(raw[1:], "f32") == _kernels.abs_sum(raw[1:].copy(), "f32")


def test_every_layout_of_rows_has_a_reference() -> None:
    assert set(_kernels.row_layouts()) == {*reference.ROW_LAYOUTS, "i2_s_row4"}


def test_refuses_a_layout_that_is_not_there_and_to_write_one_that_is_only_read() -> None:
    trits, packed = np.zeros((4, 64), np.int8), np.zeros(64, np.uint8)
    with pytest.raises(ValueError, match="no layout 'i3_s'"):
        _kernels.unpack_rows("i3_s", packed, trits, NO_SCALES)
    with pytest.raises(ValueError, match="i2_s_row4 is only read"):
        _kernels.pack_rows("i2_s_row4", trits, NO_SCALES, packed)
    with pytest.raises(ValueError, match="i2_s_row4 is only read"):
        _kernels.matmul_rows("i2_s_row4", packed, np.zeros((1, 64), np.int8), np.zeros((1, 4), np.int32))


def misaligned(*shape: int, dtype: type = np.float32) -> NDArray[Any]:
    """Zeros at an address that is one more than a multiple of four."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + 8, np.uint8)
    start = 1 - memory.ctypes.data % 4 + 4
    return memory[start : start + size].view(dtype).reshape(shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: _kernels.ternary_scales(np.zeros(8, np.uint8), "f32", misaligned(2)),
        lambda: _kernels.dequantize(np.zeros(2, np.int8), misaligned(2), np.zeros(8, np.uint8), "f32"),
        lambda: _kernels.pack_rows("q2_0", np.zeros((1, 64), np.int8), misaligned(1), np.zeros(18, np.uint8)),
        lambda: _kernels.unpack_rows("q2_0", np.zeros(18, np.uint8), np.zeros((1, 64), np.int8), misaligned(1)),
        lambda: _kernels.matmul_rows(
            "i2_s", np.zeros(32, np.uint8), np.zeros((1, 128), np.int8), misaligned(1, 1, dtype=np.int32)
        ),
        lambda: _kernels.matmul(np.zeros((1, 8), np.int8), np.zeros((1, 8), np.int8), misaligned(1, 1, dtype=np.int32)),
        lambda: _kernels.float_matmul(np.zeros(4, np.uint8), "f32", misaligned(1, 1), np.zeros((1, 1), np.float32)),
        lambda: _kernels.float_matmul(np.zeros(4, np.uint8), "f32", np.zeros((1, 1), np.float32), misaligned(1, 1)),
        lambda: _kernels.tl1_matmul(
            np.zeros(64, np.uint8), 32, 8, 32, np.zeros((1, 8), np.int8), misaligned(1, 32, dtype=np.int32)
        ),
        lambda: _kernels.tl2_matmul(
            *(np.zeros(n, np.uint8) for n in (128, 32, 0)),
            32,
            24,
            np.zeros((1, 24), np.int8),
            misaligned(1, 32, dtype=np.int32),
        ),
    ],
)
def test_refuses_arrays_that_are_not_aligned_for_their_type(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call()


def test_names_the_portable_instruction_set_first() -> None:
    assert _kernels.isas()[0] == "scalar"


def test_refuses_an_unknown_instruction_set(isa: str) -> None:
    with pytest.raises(ValueError, match="'mmx' is not available"):
        _kernels.use_isa("mmx")
    assert _kernels.isa() == isa


def test_environment_chooses_the_instruction_set(tmp_path: Path) -> None:
    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from bitconv import _kernels; print(_kernels.isa())"]
        environment = {**os.environ, "BITCONV_ISA": name}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run("scalar").stdout.strip() == "scalar"
    unknown = run("mmx")
    assert unknown.returncode != 0
    assert "ImportError: BITCONV_ISA names 'mmx'" in unknown.stderr


# The product of floats


def float_product(w: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """16 partial sums, number l of the columns k with k % 16 = l in ascending order, folded by halves."""
    pad = [(0, 0), (0, -w.shape[1] % 16)]
    sums = np.zeros((len(x), len(w), 16), np.float32)
    for k in range(0, w.shape[1], 16):
        columns = slice(k, k + 16)
        sums += np.pad(w, pad)[None, :, columns] * np.pad(x, pad)[:, None, columns]
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 16), (33, 100), (17, 2080)])
def test_float_matmul_adds_in_its_stated_order(dtype: str, rows: int, cols: int) -> None:
    w = rng(rows, cols).standard_normal((rows, cols)).astype(np.float32)
    raw = w.astype("<f4").view(np.uint8) if dtype == "f32" else (w.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    if dtype == "f16":
        raw, w = w.astype("<f2").view(np.uint8), w.astype(np.float16).astype(np.float32)
    elif dtype == "bf16":
        w = (w.view(np.uint32) & 0xFFFF0000).view(np.float32)
    for n in (0, 1, 3, 4, 9):
        x = rng(n).standard_normal((n, cols)).astype(np.float32)
        out = np.full((n, rows), 7, np.float32)
        _kernels.float_matmul(raw.reshape(-1), dtype, x, out)
        assert np.array_equal(out, float_product(w, x))


def test_float_matmul_refuses_sizes_that_do_not_fit() -> None:
    x, out = np.zeros((2, 8), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="w has 23 elements, expected 24"):
        _kernels.float_matmul(np.zeros(92, np.uint8), "f32", x, out)
    with pytest.raises(ValueError, match="x has 2 vectors, out 1"):
        _kernels.float_matmul(np.zeros(96, np.uint8), "f32", x, out[:1])
