"""TL1 and TL2: their tiles, the layouts in them, and the kernel_config.ini that a runner is built with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitconv import BitconvError
from bitconv.commands.kernel_config import kernel_config
from bitconv.gguf import MalformedGGUF
from bitconv.layouts.layout import InvalidCode, Layout
from bitconv.layouts.tiled import TiledLayout
from bitconv.layouts.tiles import (
    Shape,
    Tile,
    kernel_config_text,
    read_kernel_config,
    tile_metadata,
    tiles_from_metadata,
)
from bitconv.layouts.tl1 import TL1
from bitconv.layouts.tl2 import TL2
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import golden_matrix
from synthetic import make_checkpoint

LAYOUTS: dict[str, type[TiledLayout]] = {"tl1": TL1, "tl2": TL2}
RULES = {name: layout.tile_rules for name, layout in LAYOUTS.items()}
GOLDEN = [
    vector
    for vector in json.loads((Path(__file__).parent / "golden" / "layouts.json").read_text())
    if vector["layout"] in LAYOUTS
]
EVERY_SHIPPED = [
    (type_name, shape, tile)
    for type_name, rules in RULES.items()
    for shapes in rules.shipped.values()
    for shape, tile in shapes.items()
]


def whole_tensor(layout: Layout, trits: np.ndarray, scale: float, step: int | None = None) -> bytes:
    """A tensor as a file holds it, its rows packed `step` at a time: regions, zeros where there are none, tail."""
    rows, columns = trits.shape
    data = bytearray(layout.nbytes(rows, columns))
    for first in range(0, rows, step or rows):
        block = np.ascontiguousarray(trits[first : first + (step or rows)])
        parts = layout.pack_rows(block, np.float32(scale))
        for region, part in zip(layout.regions(rows, columns), parts, strict=True):
            assert part.size == len(block) * region.row_bytes
            start = region.offset + first * region.row_bytes
            assert not any(data[start : start + part.size])
            data[start : start + part.size] = part.tobytes()
    tail = layout.tail(np.float32(scale))
    assert not any(data[-len(tail) :])
    data[-len(tail) :] = tail
    return bytes(data)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda v: f"{v['layout']}-{v['rows']}x{v['cols']}")
def test_layouts_give_the_golden_vectors(golden: dict[str, Any]) -> None:
    layout = LAYOUTS[golden["layout"]](Tile(golden["bm"], golden["bk"], golden["bmm"]))
    assert layout.obstacle(golden["rows"], golden["cols"]) is None
    trits = golden_matrix(golden["rows"], golden["cols"], golden["seed"])
    data = whole_tensor(layout, trits, golden["scale"])
    assert len(data) == golden["nbytes"]
    assert (data[:16].hex(), data[-32:].hex()) == (golden["head"], golden["tail"])
    assert hashlib.sha256(data).hexdigest() == golden["sha256"]


def test_tl2_tensors_have_a_size_of_whole_32_bytes() -> None:
    # (288 - 256) * 32 // 3 * 5 // 8 + 256 * 32 // 2 * 4 // 8 = 213 + 2048, rounded up, and the tail.
    assert TL2(Tile(32, 96, 32)).nbytes(32, 288) == 2272 + 32


@st.composite
def tiled(draw: st.DrawFn) -> tuple[Layout, int, int, int]:
    """A layout in a legal tile with a shape that it takes, and a seed."""
    if draw(st.booleans()):
        bmm = draw(st.sampled_from([32, 64]))
        bk = draw(st.integers(1, 16)) * 16
        tile = Tile(bmm * draw(st.integers(1, 3)), bk, bmm)
        layout: Layout = TL1(tile)
        columns = bk * draw(st.integers(1, 3))
    else:
        bk = draw(st.integers(1, 10)) * 24
        tile = Tile(32 * draw(st.integers(1, 3)), bk, 32)
        layout = TL2(tile)
        left_over = 32 * draw(st.integers(0, (bk - 1) // 32))
        fewest = -((left_over - 256) // bk)
        columns = bk * draw(st.integers(fewest, fewest + 2)) + left_over
    return layout, tile.bm * draw(st.integers(1, 3)), columns, draw(st.integers(0, 2**32))


@settings(deadline=None)
@given(tiled())
def test_tiled_layouts_keep_the_trits_and_stream_and_multiply(case: tuple[Layout, int, int, int]) -> None:
    layout, rows, columns, seed = case
    assert layout.obstacle(rows, columns) is None
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (rows, columns), dtype=np.int8)
    packed = layout.pack_rows(trits, np.float32(1))
    unpacked, scales = layout.unpack_rows(packed, columns)
    assert np.array_equal(unpacked, trits)
    assert scales.size == 0

    data = whole_tensor(layout, trits, 0.75)
    assert data == whole_tensor(layout, trits, 0.75, step=layout.row_multiple)
    assert layout.tail_scale(data[-32:]) == np.float32(0.75)

    x = rng.integers(-128, 128, (2, columns), dtype=np.int8)
    assert np.array_equal(layout.matmul_rows(packed, x), x.astype(np.int32) @ trits.astype(np.int32).T)


@pytest.mark.parametrize(("layout", "byte"), [(TL1(Tile(32, 32, 32)), 0x9F), (TL2(Tile(32, 96, 32)), 0xEF)])
def test_an_invalid_code_is_found_in_its_row_and_column(layout: Layout, byte: int) -> None:
    packed = layout.pack_rows(np.zeros((64, 288), np.int8), np.float32(1))
    second_block = packed[0].size // 2  # the 32 rows from row 32 on; its byte 1 is the start of row 33
    packed[0][second_block + 1] = byte
    with pytest.raises(InvalidCode) as error:
        layout.unpack_rows(packed, 288)
    assert (error.value.row, error.value.column) == (33, 0)


@pytest.mark.parametrize(
    ("type_name", "shape", "legal", "illegal", "rule"),
    [
        ("tl1", (256, 256), Tile(64, 64, 64), Tile(64, 64, 16), "bmm must be 32 or 64"),
        ("tl1", (96, 256), Tile(96, 64, 32), Tile(96, 64, 64), "bm must be a multiple of bmm"),
        ("tl1", (96, 256), Tile(32, 64, 32), Tile(64, 64, 32), "the rows must be a multiple of bm"),
        ("tl1", (64, 48), Tile(64, 12, 64), Tile(64, 12, 32), "bk must be a multiple of 256 / bmm"),
        ("tl1", (64, 1024), Tile(64, 256, 32), Tile(64, 512, 32), "bk must be 256 at most"),
        ("tl1", (64, 192), Tile(64, 96, 32), Tile(64, 128, 32), "the columns must be a multiple of bk"),
        ("tl1", (64, 40), None, Tile(64, 8, 32), "the columns must be a multiple of 16"),
        ("tl2", (128, 288), Tile(64, 96, 32), Tile(64, 96, 64), "bmm must be 32"),
        ("tl2", (96, 288), Tile(96, 96, 32), Tile(48, 96, 32), "bm must be a multiple of 32"),
        ("tl2", (96, 288), Tile(32, 96, 32), Tile(64, 96, 32), "the rows must be a multiple of bm"),
        ("tl2", (96, 256), Tile(32, 96, 32), Tile(32, 64, 32), "bk must be a multiple of 24"),
        ("tl2", (96, 2640), Tile(32, 240, 32), Tile(32, 264, 32), "bk must be 240 at most"),
        ("tl2", (96, 288), Tile(32, 144, 32), Tile(32, 120, 32), "left over by bk must be a multiple of 32"),
        ("tl2", (96, 256), Tile(32, 192, 32), None, ""),
        ("tl2", (96, 192), None, Tile(32, 96, 32), "256 columns or more"),
    ],
)
def test_a_tile_is_legal_or_breaks_a_rule(
    type_name: str, shape: Shape, legal: Tile | None, illegal: Tile | None, rule: str
) -> None:
    if legal is not None:
        assert RULES[type_name].obstacle(*shape, legal) is None
        assert LAYOUTS[type_name](legal).obstacle(*shape) is None
    if illegal is not None:
        refusal = LAYOUTS[type_name](illegal).obstacle(*shape)
        assert refusal is not None
        assert refusal == RULES[type_name].obstacle(*shape, illegal)
        assert rule in refusal
        assert f"{type_name} cannot have the tile {illegal.bm},{illegal.bk},{illegal.bmm}" in refusal
        assert f"for {shape[0]}x{shape[1]}" in refusal


@pytest.mark.parametrize(("type_name", "shape", "tile"), EVERY_SHIPPED)
def test_shipped_tiles_are_legal_and_chosen(type_name: str, shape: Shape, tile: Tile) -> None:
    assert RULES[type_name].obstacle(*shape, tile) is None
    assert RULES[type_name].choose(*shape) == tile


def test_the_tiles_of_the_official_setup_win_over_its_unused_presets() -> None:
    assert TL1.tile_rules.choose(4096, 14336) == Tile(128, 64, 64)
    assert TL1.tile_rules.choose(4096, 4096) == Tile(128, 64, 64)
    assert TL2.tile_rules.choose(4096, 1536) == Tile(256, 96, 32)
    assert len(EVERY_SHIPPED) == 20


@settings(deadline=None)
@given(st.sampled_from(["tl1", "tl2"]), st.integers(1, 50), st.integers(1, 90), st.sampled_from([1, 4, 8, 16, 32]))
def test_a_legal_tile_is_chosen_where_there_is_one(type_name: str, rows: int, columns: int, unit: int) -> None:
    rows, columns = rows * unit, columns * unit
    # A tile of more rows than bmm is legal only where one of bmm rows is.
    tiles = [Tile(bmm, bk, bmm) for bmm in (32, 64) for bk in range(4, 257, 4)]
    if any(RULES[type_name].obstacle(rows, columns, tile) is None for tile in tiles):
        assert RULES[type_name].obstacle(rows, columns, RULES[type_name].choose(rows, columns)) is None
    else:
        with pytest.raises(BitconvError, match=f"{type_name} has no legal tile for {rows}x{columns}: it needs"):
            RULES[type_name].choose(rows, columns)


def test_the_chosen_tl2_tile_packs_the_fewest_columns_in_pairs() -> None:
    assert TL2.tile_rules.choose(6912, 2560) == Tile(288, 96, 32)
    assert TL2.tile_rules.choose(2560, 3000) == Tile(320, 120, 32)
    assert TL2.tile_rules.obstacle(64, 456, Tile(64, 120, 32)) is None
    assert TL2.tile_rules.choose(64, 456) == Tile(64, 24, 32)


def test_the_chosen_tl1_tile_is_the_largest_of_the_usual_sizes() -> None:
    assert TL1.tile_rules.choose(6912, 2560) == Tile(288, 128, 32)
    assert TL1.tile_rules.choose(32, 80) == Tile(32, 80, 32)


def test_kernel_config_round_trips(tmp_path: Path) -> None:
    file = tmp_path / "kernel_config.ini"
    for type_name in RULES:
        tiles = {shape: tile for name, shape, tile in EVERY_SHIPPED if name == type_name}
        file.write_text(kernel_config_text(tiles))
        assert read_kernel_config(file, RULES[type_name]) == tiles


SECTION = "[Kernels_0]\nm = 512\nk = 1024\nbm = 256\nbk = 96\nbmm = 32\n"


def test_kernel_config_reads_what_the_code_generators_write(tmp_path: Path) -> None:
    file = tmp_path / "kernel_config.ini"
    file.write_text(SECTION + "\n[Kernels_1]\nM = 256\nK = 512\nBM = 128\nBK = 192\nbmm = 32\n\n")
    assert read_kernel_config(file, TL2.tile_rules) == {(512, 1024): Tile(256, 96, 32), (256, 512): Tile(128, 192, 32)}
    assert kernel_config_text({(512, 1024): Tile(256, 96, 32)}) == SECTION + "\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it has no sections"),
        ("m = 512\n", "not a kernel_config.ini"),
        ("\0\xff\n", "kernel_config.ini: not UTF-8"),
        (SECTION.replace("bk = 96\n", ""), "[Kernels_0]: bk is missing"),
        (SECTION.replace("512", "512.0"), "[Kernels_0]: m is '512.0', expected a positive integer"),
        (SECTION.replace("1024", "0"), "[Kernels_0]: k is '0', expected a positive integer"),
        (SECTION.replace("256", "-256"), "[Kernels_0]: bm is '-256', expected a positive integer"),
        (SECTION.replace("96", "%(bm)s"), "[Kernels_0]: bk is '%(bm)s', expected a positive integer"),
        (SECTION.replace("96", "128"), "[Kernels_0]: tl2 cannot have the tile 256,128,32"),
        (SECTION + SECTION, "section 'Kernels_0' already exists"),
        (SECTION + SECTION.replace("Kernels_0", "Kernels_1"), "[Kernels_1]: a second tile for 512x1024"),
    ],
)
def test_a_bad_kernel_config_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "kernel_config.ini"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(BitconvError) as error:
        read_kernel_config(file, TL2.tile_rules)
    assert str(error.value).startswith(str(file))
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_kernel_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitconvError, match=r"none\.ini: cannot be read: No such file"):
        read_kernel_config(tmp_path / "none.ini")


def test_tiles_are_recorded_in_metadata() -> None:
    tiles = {(1024, 512): Tile(256, 96, 32), (512, 1024): Tile(128, 192, 32)}
    metadata = tile_metadata(tiles)
    assert metadata == {"bitconv.tiles": ["1024x512 256,96,32", "512x1024 128,192,32"]}
    assert tiles_from_metadata(metadata, "a.gguf") == tiles
    assert tiles_from_metadata({}, "a.gguf") == {}


@pytest.mark.parametrize(
    "record",
    [
        "1024x512 256,96,32",
        np.array([1024, 512], np.uint32),
        [""],
        ["1024x512 256,96"],
        ["1024x512 256,96,32,1"],
        ["1024x512 256,0,32"],
        ["-1024x512 256,96,32"],
        ["1024x512 256,96,32\n"],
        ["1024x512 256,96,٣٢"],
        ["1" * 5000 + "x512 256,96,32"],
        ["1024x512 256,96,32", "1024x512 128,96,32"],
    ],
)
def test_a_bad_record_of_tiles_is_malformed(record: Any) -> None:
    with pytest.raises(MalformedGGUF, match=r"^a\.gguf: bitconv\.tiles"):
        tiles_from_metadata({"bitconv.tiles": record}, "a.gguf")


def test_kernel_config_is_written_for_the_shapes_of_a_model(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=256, ffn=384, heads=4, kv_heads=2).path
    output = tmp_path / "kernel_config.ini"
    result = kernel_config(model, output, type="tl2")
    shapes = [(256, 256), (128, 256), (384, 256), (256, 384)]
    assert [tiled.shape for tiled in result.shapes] == shapes
    assert read_kernel_config(output, TL2.tile_rules) == {shape: TL2.tile_rules.choose(*shape) for shape in shapes}
    assert result.generator_entry == '"custom": [[256, 256], [128, 256], [384, 256], [256, 384]],'
    assert result.generator == (
        "python utils/codegen_tl2.py --model custom --BM 256,128,192,256 --BK 96,96,96,96 --bm 32,32,32,32"
    )
    assert "-DBITNET_X86_TL2=ON" in result.build[0]
    assert not any(tiled.shipped for tiled in result.shapes)

    with pytest.raises(BitconvError, match="exists; pass force=True"):
        kernel_config(model, output, type="tl1")
    result = kernel_config(model, output, type="tl1", force=True)
    assert set(read_kernel_config(output, TL1.tile_rules)) == set(shapes)
    assert result.generator.startswith("python utils/codegen_tl1.py ")
    assert "-DBITNET_ARM_TL1=ON" in result.build[0]


def test_a_model_that_the_code_generator_knows_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        (128, 256): Tile(64, 192, 32),
        (256, 384): Tile(32, 48, 32),
        (384, 256): Tile(128, 96, 32),
        (256, 256): Tile(256, 96, 32),
    }
    monkeypatch.setitem(TL2.tile_rules.shipped, "smaller", {(256, 256): known[256, 256]})
    monkeypatch.setitem(TL2.tile_rules.shipped, "larger", {**known, (512, 256): Tile(256, 96, 32)})
    monkeypatch.setitem(TL2.tile_rules.shipped, "known", known)
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=256, ffn=384, heads=4, kv_heads=2).path
    result = kernel_config(model, tmp_path / "kernel_config.ini", type="tl2")
    assert result.generator_entry is None
    assert result.generator == (
        "python utils/codegen_tl2.py --model known --BM 64,32,128,256 --BK 192,48,96,96 --bm 32,32,32,32"
    )
    assert [(tiled.shape, tiled.tile, tiled.shipped) for tiled in result.shapes] == [
        (shape, tile, True) for shape, tile in known.items()
    ]


def test_kernel_config_refuses_shapes_without_a_tile(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=256, ffn=360, heads=4, kv_heads=2).path
    output = tmp_path / "kernel_config.ini"
    with pytest.raises(
        BitconvError, match=r"mlp\.gate_proj\.weight: tl2 has no legal tile for 360x256.*leave_out=True"
    ):
        kernel_config(model, output, type="tl2")
    assert not output.exists()
    result = kernel_config(model, output, type="tl2", leave_out=True)
    assert set(read_kernel_config(output, TL2.tile_rules)) == {(256, 256), (128, 256), (256, 360)}
    assert list(result.left_out) == ["360x256"]
    with pytest.raises(BitconvError, match="type with tiles 'i2_s' is not known; tl1 and tl2 are"):
        kernel_config(model, tmp_path / "other.ini", type="i2_s")


def test_kernel_config_refuses_a_model_without_any_tile(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=144, ffn=240, heads=4, kv_heads=2).path
    with pytest.raises(BitconvError, match="no shape of this model has a legal tile of tl2"):
        kernel_config(model, tmp_path / "kernel_config.ini", type="tl2", leave_out=True)
