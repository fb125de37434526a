"""Embeddings and heads in ggml's quantized types: converted, verified, run, repacked and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import gguf
import numpy as np
import pytest
from bitconv.commands import convert as conversion
from bitconv.commands import repack as repacking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gguf_file import File
from synthetic import FIXTURES, Synthetic, make_checkpoint
from test_quantize_kernels import BLOCKS, GGML, GOLDEN

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROOT = Path(__file__).parent.parent
TEXT = FIXTURES / "eval.txt"


def dense_bytes(file: Path, name: str, type_name: str) -> bytes:
    read = File(file)
    tensor = read.tensors[name]
    assert tensor.type_id == GGML[type_name].value
    block, block_bytes = BLOCKS[type_name]
    return read.bytes(name, int(np.prod(tensor.ne)) // block * block_bytes)


def with_embedding(model: Synthetic, values: np.ndarray[Any, Any]) -> None:
    """Another embedding in a float32 checkpoint of a tied model."""
    tensors = load_file(model.path / "model.safetensors")
    tensors["model.embed_tokens.weight"] = values
    save_file(tensors, model.path / "model.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint, whose head is its own."""
    return make_checkpoint(tmp_path_factory.mktemp("llama") / "model", "llama").path


@pytest.mark.parametrize("type_name", BLOCKS)
def test_the_file_holds_what_llama_quantize_makes(type_name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype="f32", hidden=512)
    values = model.dense[EMBEDDING].copy()
    values[100:164] = GOLDEN["f32"]
    with_embedding(model, values)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", embed_type=type_name)
    assert {tensor.name: tensor.type for tensor in result.tensors}[EMBEDDING] == type_name
    rows = np.frombuffer(dense_bytes(tmp_path / "out.gguf", EMBEDDING, type_name), np.uint8).reshape(len(values), -1)
    assert (rows[100:164] == GOLDEN[type_name]).all()
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


@pytest.mark.parametrize("type_name", BLOCKS)
def test_the_bytes_depend_neither_on_threads_nor_on_how_a_tensor_is_split(
    type_name: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bitconv.convert(llama, tmp_path / "one.gguf", embed_type=type_name, threads=1)
    monkeypatch.setattr(conversion, "DENSE_JOB_VALUES", 512)
    bitconv.convert(llama, tmp_path / "many.gguf", embed_type=type_name, threads=3)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_the_head_can_have_a_type_of_its_own(llama: Path, tmp_path: Path) -> None:
    for options in (
        {"embed_type": "q8_0", "head_type": "q6_k"},
        {"embed_type": "q8_0", "tensor_types": [("^output", "q6_k")]},
    ):
        result = bitconv.convert(llama, tmp_path / "out.gguf", force=True, **options)
        types = {tensor.name: tensor.type for tensor in result.tensors}
        assert (types[EMBEDDING], types[HEAD]) == ("q8_0", "q6_k")
        assert bitconv.verify(tmp_path / "out.gguf", against=llama).right


def test_a_preset_gives_the_embedding_and_the_head_their_type_and_the_summary_says_so(
    llama: Path, tmp_path: Path
) -> None:
    def types(**options: str) -> tuple[str, str, tuple[str, ...]]:
        result = bitconv.convert(llama, tmp_path / "out.gguf", force=True, **options)
        assert bitconv.verify(tmp_path / "out.gguf", against=llama).right
        types = {tensor.name: tensor.type for tensor in result.tensors}
        return types[EMBEDDING], types[HEAD], tuple(note for note in result.notes if "preset" in note)

    assert types() == types(preset="exact") == ("f16", "f16", ())
    said = "preset small: token_embd.weight is q6_k, output.weight is "
    assert types(preset="small") == ("q6_k", "q6_k", (said + "q6_k",))
    assert types(preset="small", head_type="f32") == ("q6_k", "f32", (said + "f32",))
    assert types(preset="small", embed_type="q8_0")[:2] == ("q8_0", "q8_0")


def test_a_preset_that_the_embedding_cannot_have_is_refused_with_the_type_that_it_can(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=320)
    with pytest.raises(bitconv.BitconvError, match=f"{EMBEDDING}.*multiples of 256.*embed_type='q8_0'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", preset="small")


def test_a_model_that_multiplies_by_the_embedding_has_no_head_type(tmp_path: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match=r"head_type='q6_k': the model has no head.*embed_type='q6_k'"):
        bitconv.convert(FIXTURES / "bitnet-b1.58-2B-4T-tiny", tmp_path / "out.gguf", head_type="q6_k")


@pytest.mark.parametrize(
    ("hidden", "type_name", "way_out"), [(320, "q6_k", "q8_0"), (320, "q4_k", "q8_0"), (144, "q8_0", "f16")]
)
def test_rows_that_are_not_whole_blocks_are_refused(hidden: int, type_name: str, way_out: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", hidden=hidden, ffn=384, heads=2, kv_heads=2)
    with pytest.raises(bitconv.BitconvError, match=f"{EMBEDDING}.*multiples of.*{hidden}.*embed_type='{way_out}'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", embed_type=type_name)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", embed_type=way_out)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_a_runner_that_is_not_known_to_take_a_type_is_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm")
    with pytest.raises(bitconv.BitconvError, match=r"not known that bitnet.cpp-2026 looks up.*q6_k.*embed_type='f16'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", runner="bitnet.cpp-2026", embed_type="q6_k")


def test_a_ternary_tensor_takes_no_quantized_type(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match=r"attn_q.weight.*q6_k"):
        bitconv.convert(llama, tmp_path / "out.gguf", tensor_types=[("attn_q", "q6_k")])


@pytest.mark.parametrize("type_name", BLOCKS)
def test_a_value_that_no_block_can_hold_is_an_error(type_name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype="f32")
    values = model.dense[EMBEDDING].copy()
    values[3, 5] = 1e12
    with_embedding(model, values)
    with pytest.raises(bitconv.BitconvError, match=r"embed_tokens.weight: element \[3, 5\] is 1e\+12"):
        bitconv.convert(model.path, tmp_path / "out.gguf", embed_type=type_name)
    assert not (tmp_path / "out.gguf").exists()
    bitconv.convert(model.path, tmp_path / "floats.gguf", embed_type="f32")
    with pytest.raises(bitconv.BitconvError, match=rf"{EMBEDDING}: element \[3, 5\]"):
        bitconv.repack(tmp_path / "floats.gguf", tmp_path / "out.gguf", type="i2_s", embed_type=type_name)


@pytest.mark.parametrize("type_name", BLOCKS)
def test_a_type_has_a_page_with_its_sizes(type_name: str) -> None:
    page = (ROOT / "docs" / "types" / f"{type_name}.md").read_text(encoding="utf-8")
    columns, block_bytes = BLOCKS[type_name]
    assert f"{block_bytes} bytes for {columns} columns" in page
    assert f"| bits a weight | {8 * block_bytes / columns:.4g} |" in page
    assert f"| type id | {GGML[type_name].value} |" in page


# verify


@pytest.fixture(scope="module", params=BLOCKS)
def quantized(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A type, and a file whose embedding and head have it."""
    file = tmp_path_factory.mktemp(request.param) / "good.gguf"
    bitconv.convert(llama, file, embed_type=request.param)
    return request.param, file


def test_nothing_of_quantized_weights_is_left_uncovered(quantized: tuple[str, Path], llama: Path) -> None:
    type_name, file = quantized
    alone, against = bitconv.verify(file), bitconv.verify(file, against=llama)
    assert alone.right and against.right
    assert not any(type_name in text for text in (*alone.not_covered, *against.not_covered))
    assert alone.checked["quantized blocks whose scales are finite"].passed == 2 * 1280 * 256 // BLOCKS[type_name][0]
    assert against.checked["dense values equal to the checkpoint's"].passed >= 2 * 1280 * 256


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_quantized_tensor_is_found_against_the_checkpoint(
    quantized: tuple[str, Path], llama: Path, tmp_path: Path, data: st.DataObject
) -> None:
    type_name, file = quantized
    name = data.draw(st.sampled_from([EMBEDDING, HEAD]))
    count = len(dense_bytes(file, name, type_name))
    at = File(file).tensors[name].start + data.draw(st.integers(0, count - 1))
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bad.gguf").write_bytes(content)
    result = bitconv.verify(tmp_path / "bad.gguf", against=llama)
    assert not result.right
    assert [tensor.name for tensor in result.tensors if tensor.faults] == [name]


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_a_scale_that_is_not_finite_is_found_alone(quantized: tuple[str, Path], bits: int, tmp_path: Path) -> None:
    type_name, file = quantized
    for offset in {"q8_0": [0], "q6_k": [208], "q4_k": [0, 2]}[type_name]:
        content = bytearray(file.read_bytes())
        at = File(file).tensors[EMBEDDING].start + 7 * BLOCKS[type_name][1] + offset
        content[at : at + 2] = bits.to_bytes(2, "little")
        (tmp_path / "bad.gguf").write_bytes(content)
        result = bitconv.verify(tmp_path / "bad.gguf")
        assert [tensor.name for tensor in result.tensors if tensor.faults] == [EMBEDDING]
        with pytest.raises(bitconv.BitconvError, match=EMBEDDING):
            bitconv.export(tmp_path / "bad.gguf", tmp_path / "exported")


# eval and export


@pytest.mark.parametrize("type_name", BLOCKS)
def test_eval_computes_with_the_values_that_the_blocks_stand_for(type_name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype="f32")
    bitconv.convert(model.path, tmp_path / "quantized.gguf", embed_type=type_name)
    packed = np.frombuffer(dense_bytes(tmp_path / "quantized.gguf", EMBEDDING, type_name), np.uint8)
    with_embedding(model, gguf.dequantize(packed, GGML[type_name]).reshape(1280, 256))
    bitconv.convert(model.path, tmp_path / "floats.gguf", embed_type="f32")
    runs = [
        bitconv.evaluate(tmp_path / f"{name}.gguf", TEXT, max_tokens=64, window=64) for name in ("quantized", "floats")
    ]
    assert runs[0].nll == runs[1].nll


def test_export_widens_and_says_so(quantized: tuple[str, Path], tmp_path: Path) -> None:
    type_name, file = quantized
    result = bitconv.export(file, tmp_path / "exported")
    assert result.dequantized == {"model.embed_tokens.weight": type_name, "lm_head.weight": type_name}
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    for name, source in ((EMBEDDING, "model.embed_tokens.weight"), (HEAD, "lm_head.weight")):
        packed = np.frombuffer(dense_bytes(file, name, type_name), np.uint8)
        assert (stored[source].reshape(-1) == gguf.dequantize(packed, GGML[type_name])).all()


# repack


@pytest.mark.parametrize("type_name", BLOCKS)
def test_repack_makes_of_floats_what_convert_makes_of_the_checkpoint(
    type_name: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repacking, "CHANGE_JOB_VALUES", 1 << 12)
    bitconv.convert(llama, tmp_path / "floats.gguf", embed_type="bf16")
    bitconv.convert(llama, tmp_path / "expected.gguf", embed_type=type_name)
    result = bitconv.repack(tmp_path / "floats.gguf", tmp_path / "out.gguf", type="i2_s", embed_type=type_name)
    assert [(t.name, t.from_type, t.type) for t in result.dense] == [
        (EMBEDDING, "bf16", type_name),
        (HEAD, "bf16", type_name),
    ]
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_repack_keeps_what_is_quantized_and_does_not_quantize_it_again(
    quantized: tuple[str, Path], tmp_path: Path
) -> None:
    type_name, file = quantized
    result = bitconv.repack(file, tmp_path / "out.gguf", type="q2_0", head_type=type_name)
    assert result.dense == ()
    for name in (EMBEDDING, HEAD):
        assert dense_bytes(tmp_path / "out.gguf", name, type_name) == dense_bytes(file, name, type_name)
    for other in ("f16", "q4_k" if type_name != "q4_k" else "q8_0"):
        with pytest.raises(bitconv.BitconvError, match=f"{EMBEDDING}: it is {type_name}"):
            bitconv.repack(file, tmp_path / "again.gguf", type="q2_0", embed_type=other)
    with pytest.raises(bitconv.BitconvError, match=r"bitnet\.cpp-2026"):
        bitconv.repack(file, tmp_path / "again.gguf", type="i2_s", runner="bitnet.cpp-2026")
