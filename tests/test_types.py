"""Every type of ternary tensors in a file: bytes by the reference, exact scales, and what verify makes of damage."""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.layouts.tl1 import TL1
from bitconv.layouts.tl2 import TL2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_file import File
from reference import ROW_LAYOUTS, Tl2, tl1_pack
from synthetic import Synthetic, make_checkpoint

BLOCK_SCALED = ("tq1_0", "tq2_0", "q2_0")
# type, runner: the types that a llama of these sizes can have.
TYPES = [
    ("i2_s", "bitnet.cpp"),
    ("tl1", "bitnet.cpp"),
    ("tl2", "bitnet.cpp"),
    ("i2_s", "bitnet.cpp-arm64"),
    ("tq2_0", "bitnet.cpp-2026"),
    ("tq1_0", "bitnet.cpp"),
    ("tq2_0", "bitnet.cpp"),
    ("tq1_0", "llama.cpp"),
    ("tq2_0", "llama.cpp"),
    ("q2_0", "llama.cpp"),
    ("iq2_bn", "ik_llama.cpp"),
    ("iq1_bn", "ik_llama.cpp"),
    ("f32", "llama.cpp"),
    ("f16", "llama.cpp"),
    ("bf16", "llama.cpp"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(
        tmp_path_factory.mktemp("types") / "model", "llama", hidden=512, ffn=768, heads=4, kv_heads=2, layers=1
    )


def packed(type_name: str, runner: str, trits: np.ndarray, scale: np.float32) -> bytes:
    rows, columns = trits.shape
    if type_name == "tl1":
        tile = TL1.tile_rules.choose(rows, columns)
        body = tl1_pack(trits, tile.bm, tile.bk, tile.bmm).tobytes()
    elif type_name == "tl2":
        tile = TL2.tile_rules.choose(rows, columns)
        body = b"".join(part.tobytes() for part in Tl2(rows, columns, tile.bm, tile.bk).pack(trits))
        size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
        body = body.ljust((size + 31) // 32 * 32, b"\0")
    else:
        name = "i2_s_arm64" if runner == "bitnet.cpp-arm64" else type_name
        body = ROW_LAYOUTS[name].pack(trits, scale).tobytes()
    tail = np.float32(scale).tobytes() + bytes(28) if type_name in ("i2_s", "tl1", "tl2") else b""
    return body + tail


@pytest.mark.parametrize(("type_name", "runner"), [t for t in TYPES if t[0] not in ("f32", "f16", "bf16")])
@pytest.mark.parametrize("scale_in_blocks", [False, True])
def test_the_bytes_are_the_layout_s(
    model: Synthetic, tmp_path: Path, type_name: str, runner: str, scale_in_blocks: bool
) -> None:
    path = tmp_path / "out.gguf"
    bitconv.convert(model.path, path, type=type_name, runner=runner, scale_in_blocks=scale_in_blocks)
    file = File(path)
    exact = type_name in BLOCK_SCALED and runner == "llama.cpp" and not scale_in_blocks
    for name, trits in model.trits.items():
        wanted = packed(type_name, runner, trits, np.float32(1) if exact else model.scales[name])
        assert file.bytes(name, len(wanted)) == wanted, name
        scale_name = name.replace(".weight", ".scale")
        assert (scale_name in file.tensors) == exact
        if exact:
            assert file.tensors[scale_name].ne == (1,)
            assert file.tensors[scale_name].type_id == 0
            assert file.bytes(scale_name, 4) == model.scales[name].tobytes()


@pytest.mark.parametrize(("type_name", "runner"), TYPES)
def test_threads_do_not_change_a_byte_and_verify_finds_the_file_right(
    model: Synthetic, tmp_path: Path, type_name: str, runner: str
) -> None:
    for threads in (1, 8):
        bitconv.convert(model.path, tmp_path / f"{threads}.gguf", type=type_name, runner=runner, threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "8.gguf").read_bytes()
    result = bitconv.verify(tmp_path / "1.gguf", against=model.path)
    assert result.right
    for tensor in result.tensors:
        if tensor.name in model.trits:
            assert tensor.scale == pytest.approx(float(model.scales[tensor.name]), rel=2**-8)


@pytest.mark.parametrize("type_name", ["tq1_0", "iq1_bn", "q2_0"])
def test_the_summary_says_how_far_a_rounded_scale_is_off(model: Synthetic, tmp_path: Path, type_name: str) -> None:
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, scale_in_blocks=True)
    assert not result.exact_scales
    for tensor in result.tensors:
        if tensor.name in model.trits:
            scale = np.float64(model.scales[tensor.name])
            assert tensor.scale_error == abs(np.float64(np.float16(scale)) / scale - 1)


@pytest.mark.parametrize("type_name", ["i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "q2_0", "iq2_bn"])
def test_a_kept_scale_is_off_by_nothing(model: Synthetic, tmp_path: Path, type_name: str) -> None:
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    assert result.exact_scales
    assert {t.scale_error for t in result.tensors if t.name in model.trits} == {0.0}


def test_blocks_of_zeros_and_a_tensor_of_zeros_keep_their_scale(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1, hidden=512, ffn=512)
    tensors = load_file(model.path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][7:9, 100:] = 0
    tensors["model.layers.0.mlp.gate_proj.weight"][:] = 0
    save_file(tensors, model.path / "model.safetensors")
    for type_name, runner in TYPES:
        if type_name != "f16" or runner != "llama.cpp":
            path = tmp_path / f"{type_name}-{runner}.gguf"
            bitconv.convert(model.path, path, type=type_name, runner=runner)
            assert bitconv.verify(path, against=model.path).right, (type_name, runner)
            assert bitconv.verify(path).right


@pytest.fixture(scope="module")
def files(model: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = {(t, r): folder / f"{t}-{r}.gguf" for t, r in TYPES}
    for (type_name, runner), path in paths.items():
        bitconv.convert(model.path, path, type=type_name, runner=runner)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize(("type_name", "runner"), TYPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_codes_or_scale_is_found_against_the_checkpoint(
    model: Synthetic,
    files: dict[tuple[str, str], Path],
    tmp_path: Path,
    type_name: str,
    runner: str,
    data: st.DataObject,
) -> None:
    good = files[type_name, runner]
    file = File(good)
    name = data.draw(st.sampled_from(sorted(model.trits)))
    rows, columns = model.trits[name].shape
    if type_name in ("f32", "f16", "bf16"):
        nbytes = rows * columns * (4 if type_name == "f32" else 2)
    else:
        nbytes = len(packed(type_name, runner, model.trits[name], np.float32(1)))
        nbytes -= 28 if type_name in ("i2_s", "tl1", "tl2") else 0
    content = bytearray(good.read_bytes())
    at = data.draw(st.integers(0, nbytes - 1))
    if type_name == "tl2" and content[file.tensors[name].start + at] == 0:
        return  # perhaps the padding between the codes and the scale, which means nothing
    content[file.tensors[name].start + at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bad.gguf").write_bytes(content)
    result = bitconv.verify(tmp_path / "bad.gguf", against=model.path)
    assert [t.name for t in result.tensors if t.faults] == [name]


@pytest.mark.parametrize("type_name", BLOCK_SCALED)
def test_a_flipped_bit_of_a_scale_tensor_is_found_against_the_checkpoint(
    model: Synthetic, files: dict[tuple[str, str], Path], tmp_path: Path, type_name: str
) -> None:
    content = bytearray(files[type_name, "llama.cpp"].read_bytes())
    content[File(files[type_name, "llama.cpp"]).tensors["blk.0.attn_v.scale"].start] ^= 1
    (tmp_path / "bad.gguf").write_bytes(content)
    assert bitconv.verify(tmp_path / "bad.gguf").right
    result = bitconv.verify(tmp_path / "bad.gguf", against=model.path)
    assert [t.name for t in result.tensors if t.faults] == ["blk.0.attn_v.weight"]


@pytest.mark.parametrize(("type_name", "position"), [("tq1_0", 52), ("tq2_0", 64), ("q2_0", 0), ("iq2_bn", 0)])
def test_scales_that_differ_within_a_tensor_are_found_alone(
    model: Synthetic, files: dict[tuple[str, str], Path], tmp_path: Path, type_name: str, position: int
) -> None:
    runner = "ik_llama.cpp" if type_name == "iq2_bn" else "llama.cpp"
    content = bytearray(files[type_name, runner].read_bytes())
    content[File(files[type_name, runner]).tensors["blk.0.attn_v.weight"].start + position] ^= 1
    (tmp_path / "bad.gguf").write_bytes(content)
    (fault,) = next(t.faults for t in bitconv.verify(tmp_path / "bad.gguf").tensors if t.faults)
    assert "its scales differ" in fault


def test_tl_files_say_their_tiles_and_verify_uses_them(model: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tl2")
    tiles = File(tmp_path / "out.gguf").metadata["bitconv.tiles"]
    shapes = {trits.shape for trits in model.trits.values()}
    assert len(tiles) == len(shapes)
    assert {tuple(map(int, text.split()[0].split("x"))) for text in tiles} == shapes
