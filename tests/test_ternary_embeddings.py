"""Embeddings and heads that are ternary: found by looking, written in ternary types, and all that reads them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import FIXTURES, Synthetic, make_checkpoint

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
SOURCES = {EMBEDDING: "model.embed_tokens.weight", HEAD: "lm_head.weight"}
TEXT = FIXTURES / "eval.txt"
LLAMA_CPP = ("tq1_0", "tq2_0", "q2_0")
ROWS, COLUMNS = 1280, 256


def ternary_values(rng: np.random.Generator, group: int | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Trits and values (ROWS, COLUMNS) with one scale, or one for each group of columns of a row; exact in float16."""
    trits = rng.integers(-1, 2, (ROWS, COLUMNS)).astype(np.int8)
    count = (1, 1) if group is None else (ROWS, COLUMNS // group)
    scales = (rng.integers(1024, 2048, count) / 2**16).astype(np.float32)
    return trits, trits * np.repeat(scales, COLUMNS // count[1], axis=1)


def make_ternary(path: Path, family: str = "llama", group: int | None = None, **options: Any) -> Synthetic:
    """A checkpoint in float32 whose embedding, and head if it has one, are ternary."""
    model = make_checkpoint(path, family, dtype="f32", ffn=512, **options)
    tensors, rng = load_file(path / "model.safetensors"), np.random.default_rng(5)
    for name, source in SOURCES.items():
        if source in tensors:
            model.trits[name], model.dense[name] = ternary_values(rng, group)
            tensors[source] = model.dense[name].astype(np.float32)
    save_file(tensors, path / "model.safetensors")
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_ternary(tmp_path_factory.mktemp("ternary") / "model")


def types_of(result: bitconv.Conversion) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in result.tensors}


@pytest.mark.parametrize("type_name", LLAMA_CPP)
@pytest.mark.parametrize("group", [None, COLUMNS])
def test_a_ternary_type_holds_the_trits_and_scales_of_an_embedding_and_a_head(
    type_name: str, group: int | None, tmp_path: Path
) -> None:
    model = make_ternary(tmp_path / "model", group=group)
    out = tmp_path / "out.gguf"
    result = bitconv.convert(model.path, out, type="tq2_0", embed_type=type_name)
    assert types_of(result)[EMBEDDING] == types_of(result)[HEAD] == type_name
    file = File(out)
    for name in SOURCES:
        packed = np.frombuffer(file.bytes(name, result_nbytes(result, name)), np.uint8)
        trits, scales = ROW_LAYOUTS[type_name].unpack(packed, ROWS, COLUMNS)
        values = trits * np.repeat(scales, trits.size // scales.size).reshape(trits.shape)
        assert (values == model.dense[name]).all()
        assert name.replace("weight", "scale") not in file.tensors
    assert bitconv.verify(out).right
    assert bitconv.verify(out, against=model.path).right


def result_nbytes(result: bitconv.Conversion, name: str) -> int:
    return next(tensor.nbytes for tensor in result.tensors if tensor.name == name)


def test_scales_of_groups_are_held_by_the_type_whose_blocks_have_them(tmp_path: Path) -> None:
    model = make_ternary(tmp_path / "model", group=128)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", embed_type="q2_0")
    assert types_of(result)[EMBEDDING] == "q2_0"
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    with pytest.raises(bitconv.BitconvError, match=r"embed_tokens.*tq2_0 has a scale for each 256.*embed_type='q2_0'"):
        bitconv.convert(model.path, tmp_path / "bad.gguf", type="tq2_0", embed_type="tq2_0")
    assert not (tmp_path / "bad.gguf").exists()


@pytest.mark.parametrize("type_name", LLAMA_CPP)
def test_what_is_not_ternary_is_refused_with_the_type_that_it_can_have(type_name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=512)
    with pytest.raises(bitconv.BitconvError, match=r"embed_tokens.*not ternary.*embed_type='q6_k'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", embed_type=type_name)
    with pytest.raises(bitconv.BitconvError, match=r"lm_head.*not ternary.*head_type='q6_k'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", head_type=type_name)


def test_one_value_that_is_no_trit_makes_a_tensor_not_ternary(llama: Synthetic, tmp_path: Path) -> None:
    model = make_ternary(tmp_path / "model")
    tensors = load_file(model.path / "model.safetensors")
    tensors[SOURCES[EMBEDDING]][ROWS - 1, 7] = 0.5
    save_file(tensors, model.path / "model.safetensors")
    with pytest.raises(bitconv.BitconvError, match=r"embed_tokens.*not ternary"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", embed_type="tq2_0")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", preset="small")
    assert (types_of(result)[EMBEDDING], types_of(result)[HEAD]) == ("q6_k", "tq2_0")


def test_the_default_and_each_kind_of_choice(llama: Synthetic, tmp_path: Path) -> None:
    def types(**options: Any) -> tuple[str, str]:
        result = bitconv.convert(llama.path, tmp_path / "out.gguf", force=True, **options)
        assert bitconv.verify(tmp_path / "out.gguf", against=llama.path).right
        return types_of(result)[EMBEDDING], types_of(result)[HEAD]

    assert types(type="tq2_0") == ("f16", "f16")
    assert types(type="tq2_0", head_type="tq1_0") == ("f16", "tq1_0")
    assert types(type="tq2_0", embed_type="q2_0", head_type="q6_k") == ("q2_0", "q6_k")
    assert types(type="tq2_0", tensor_types=[("^output", "tq1_0")]) == ("f16", "tq1_0")
    assert types(type="tq2_0", tensor_types=[("token_embd|attn_q", "q2_0")]) == ("q2_0", "f16")
    # Small: the file's type where the runner computes it there, else the smallest that it does.
    assert types(type="tq2_0", preset="small") == ("tq2_0", "tq2_0")
    assert types(type="auto", runner="llama.cpp", preset="small") == ("tq1_0", "tq1_0")
    assert types(type="i2_s", preset="small") == ("tq1_0", "i2_s")
    assert types(type="i2_s", preset="small", head_type="f16") == ("tq1_0", "f16")


def test_where_the_runner_has_no_ternary_type_for_it_small_is_q6_k(tmp_path: Path) -> None:
    model = make_ternary(tmp_path / "model", "microsoft", hidden=512)  # whose head is the embedding
    tensors = load_file(model.path / "model.safetensors")
    tensors[SOURCES[EMBEDDING]] = np.tile(model.dense[EMBEDDING], 2)
    save_file(tensors, model.path / "model.safetensors")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="iq2_bn", fallback="f16", preset="small")
    assert types_of(result)[EMBEDDING] == "q6_k"
    with pytest.raises(bitconv.BitconvError, match=r"not known that ik_llama.cpp looks up rows of iq2_bn.*q8_0"):
        bitconv.convert(model.path, tmp_path / "bad.gguf", type="iq2_bn", fallback="f16", embed_type="iq2_bn")


@pytest.mark.parametrize("type_name", ["i2_s", "tl1", "tl2", "iq2_bn"])
def test_a_type_in_which_the_runner_cannot_look_up_rows_is_refused(
    type_name: str, llama: Synthetic, tmp_path: Path
) -> None:
    with pytest.raises(bitconv.BitconvError, match=rf"not known that bitnet.cpp looks up rows of {type_name}.*tq1_0"):
        bitconv.convert(llama.path, tmp_path / "out.gguf", embed_type=type_name)


def test_an_attestation_states_the_types_that_small_chose(llama: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    bitconv.convert(llama.path, out, type="tq2_0", preset="small", attest=True)
    assert '"embed_type": "tq2_0"' in (tmp_path / "out.gguf.intoto.json").read_text()
    assert bitconv.verify(out, against=llama.path, attestation=tmp_path / "out.gguf.intoto.json").right


# verify


@pytest.fixture(scope="module", params=LLAMA_CPP)
def packed(request: pytest.FixtureRequest, llama: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose projections, embedding and head have a type."""
    file = tmp_path_factory.mktemp(request.param) / "good.gguf"
    bitconv.convert(llama.path, file, type=request.param, preset="small")
    return file


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found_against_the_checkpoint(
    packed: Path, llama: Synthetic, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([EMBEDDING, HEAD]))
    tensor = next(tensor for tensor in bitconv.verify(packed).tensors if tensor.name == name)
    content = bytearray(packed.read_bytes())
    at = File(packed).tensors[name].start + data.draw(st.integers(0, tensor.nbytes - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bad.gguf").write_bytes(content)
    result = bitconv.verify(tmp_path / "bad.gguf", against=llama.path)
    found = [tensor.name for tensor in result.tensors if tensor.faults]
    # In TQ1_0 several bytes stand for the same trits, and such a file computes the same.
    same = tensor.type == "tq1_0" and result.right and same_values(packed, tmp_path / "bad.gguf", name, tensor.nbytes)
    assert found == [name] or same


def same_values(one: Path, other: Path, name: str, nbytes: int) -> bool:
    unpacked = [
        ROW_LAYOUTS["tq1_0"].unpack(np.frombuffer(File(file).bytes(name, nbytes), np.uint8), ROWS, COLUMNS)
        for file in (one, other)
    ]
    return all((a == b).all() for a, b in zip(*unpacked, strict=True))


def test_a_scale_that_differs_is_found_alone(packed: Path, tmp_path: Path) -> None:
    type_name = next(tensor.type for tensor in bitconv.verify(packed).tensors if tensor.name == EMBEDDING)
    offset = {"tq1_0": 52, "tq2_0": 64, "q2_0": 0}[type_name]
    content = bytearray(packed.read_bytes())
    content[File(packed).tensors[EMBEDDING].start + offset] ^= 1
    (tmp_path / "bad.gguf").write_bytes(content)
    result = bitconv.verify(tmp_path / "bad.gguf")
    assert [tensor.name for tensor in result.tensors if tensor.faults] == [EMBEDDING]


def test_the_digests_are_those_of_the_projections_alone(packed: Path, llama: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(llama.path, tmp_path / "floats.gguf", type="tq2_0")
    ours, other = bitconv.verify(packed).digests, bitconv.verify(tmp_path / "floats.gguf").digests
    assert ours is not None
    assert ours == other


def test_a_ternary_embedding_of_a_checkpoint_that_has_none_is_found(packed: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "model", "llama", dtype="f32", ffn=512)
    result = bitconv.verify(packed, against=other.path)
    faults = {tensor.name: tensor.faults for tensor in result.tensors if tensor.faults}
    assert faults == dict.fromkeys(SOURCES, ("is ternary, and the checkpoint's is not",))


def test_a_type_in_which_no_runner_looks_up_rows_is_a_fault(llama: Synthetic, tmp_path: Path) -> None:
    """bitnet.cpp multiplies by a head in I2_S, and crashes on an embedding in it."""
    bitconv.convert(llama.path, tmp_path / "good.gguf", type="i2_s", head_type="i2_s")
    assert bitconv.verify(tmp_path / "good.gguf").right
    content = bytearray((tmp_path / "good.gguf").read_bytes())
    at = content.index(EMBEDDING.encode()) + len(EMBEDDING) + 4 + 2 * 8
    assert content[at : at + 4] == (1).to_bytes(4, "little")  # f16
    content[at : at + 4] = (36).to_bytes(4, "little")
    (tmp_path / "bad.gguf").write_bytes(content)
    faults = {tensor.name: tensor.faults for tensor in bitconv.verify(tmp_path / "bad.gguf").tensors if tensor.faults}
    assert "is i2_s, in which no runner takes this tensor" in faults[EMBEDDING][0]


# eval, compare and export


@pytest.mark.parametrize("options", [{"type": "tq2_0", "embed_type": "q2_0"}, {"type": "i2_s", "preset": "small"}])
def test_eval_computes_with_the_values_that_trits_and_scales_stand_for(
    options: dict[str, str], llama: Synthetic, tmp_path: Path
) -> None:
    bitconv.convert(llama.path, tmp_path / "ternary.gguf", **options)
    bitconv.convert(llama.path, tmp_path / "floats.gguf", type=options["type"], embed_type="f32")
    runs = [
        bitconv.evaluate(tmp_path / f"{name}.gguf", TEXT, max_tokens=64, window=64) for name in ("ternary", "floats")
    ]
    assert runs[0].nll == runs[1].nll


@pytest.mark.torch
def test_compare_runs_it(packed: Path, llama: Synthetic) -> None:
    assert bitconv.compare(packed, llama.path).divergence < 0.01


@pytest.mark.parametrize("group", [None, 128])
def test_export_widens_them_without_a_loss(group: int | None, tmp_path: Path) -> None:
    model = make_ternary(tmp_path / "model", group=group)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", embed_type="q2_0")
    result = bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    assert result.dequantized == dict.fromkeys(SOURCES.values(), "q2_0")
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    for name, source in SOURCES.items():
        assert (stored[source] == model.dense[name]).all()


# repack


def test_repack_takes_them_to_the_runner_s_types_and_back(llama: Synthetic, tmp_path: Path) -> None:
    def made(name: str, **options: Any) -> Path:
        bitconv.convert(llama.path, tmp_path / name, **options)
        return tmp_path / name

    def repacked(source: Path, **options: Any) -> bytes:
        bitconv.repack(source, tmp_path / "out.gguf", force=True, **options)
        assert bitconv.verify(tmp_path / "out.gguf", against=llama.path).right
        return (tmp_path / "out.gguf").read_bytes()

    tq2_0, q2_0 = made("a.gguf", type="tq2_0", preset="small"), made("b.gguf", type="q2_0", preset="small")
    mixed = made("c.gguf", type="q2_0", embed_type="tq2_0")
    floats = made("d.gguf", type="tq2_0", embed_type="f32")
    assert repacked(tq2_0, type="q2_0") == mixed.read_bytes()  # a type that the runner takes stays
    assert repacked(tq2_0, type="q2_0", embed_type="q2_0") == q2_0.read_bytes()
    assert repacked(tq2_0, type="tq2_0", embed_type="f32") == floats.read_bytes()
    assert repacked(floats, type="tq2_0", embed_type="tq2_0") == tq2_0.read_bytes()
    assert (
        repacked(tq2_0, type="tq2_0", embed_type="q6_k") == made("e.gguf", type="tq2_0", embed_type="q6_k").read_bytes()
    )
    # bitnet.cpp looks up tq2_0 and multiplies by it, but not by q2_0.
    assert repacked(tq2_0, type="i2_s") == made("f.gguf", type="i2_s", embed_type="tq2_0").read_bytes()
    assert repacked(q2_0, type="i2_s") == made("g.gguf", type="i2_s", embed_type="tq1_0", head_type="i2_s").read_bytes()


def test_repack_makes_no_trits_of_what_has_none(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=512)
    bitconv.convert(model.path, tmp_path / "floats.gguf", type="tq2_0")
    with pytest.raises(bitconv.BitconvError, match=rf"{EMBEDDING}.*no ternary weights"):
        bitconv.repack(tmp_path / "floats.gguf", tmp_path / "out.gguf", type="tq2_0", embed_type="tq2_0")
    assert not (tmp_path / "out.gguf").exists()


def test_repack_finds_damage(packed: Path, tmp_path: Path) -> None:
    type_name = next(tensor.type for tensor in bitconv.verify(packed).tensors if tensor.name == EMBEDDING)
    content = bytearray(packed.read_bytes())
    content[File(packed).tensors[EMBEDDING].start + {"tq1_0": 52, "tq2_0": 64, "q2_0": 0}[type_name]] ^= 1
    (tmp_path / "bad.gguf").write_bytes(content)
    for options in ({"embed_type": "f16"}, {"embed_type": "tq2_0"}, {}):
        with pytest.raises(bitconv.BitconvError, match=rf"{EMBEDDING}: its scales differ"):
            bitconv.repack(tmp_path / "bad.gguf", tmp_path / "out.gguf", type="tq2_0", **options)
        assert not (tmp_path / "out.gguf").exists()
