"""From one layout to another without the checkpoint."""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.layouts.tiles import kernel_config_text
from bitconv.layouts.tl2 import TL2
from typer.testing import CliRunner

from gguf_file import File
from reference import ROW_LAYOUTS, i2_s_row4_pack
from synthetic import FIXTURES, Synthetic, make_checkpoint
from test_verify import Rebuilt

FORMS = [
    ("i2_s", "bitnet.cpp", False),
    ("tl1", "bitnet.cpp", False),
    ("tl2", "bitnet.cpp", False),
    ("i2_s", "bitnet.cpp-arm64", False),
    ("f32", "bitnet.cpp-2026", False),
    ("tq1_0", "llama.cpp", False),
    ("tq2_0", "llama.cpp", False),
    ("tq2_0", "llama.cpp", True),
    ("q2_0", "llama.cpp", False),
    ("iq2_bn", "ik_llama.cpp", False),
    ("iq1_bn", "ik_llama.cpp", False),
    ("f32", "llama.cpp", False),
    ("f16", "llama.cpp", False),
]
ROUNDS = {("tq2_0", True), ("iq1_bn", False), ("f16", False)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Its scales are powers of two, which no float16 rounds, so that every direction is exact."""
    from safetensors.numpy import load_file, save_file

    model = make_checkpoint(
        tmp_path_factory.mktemp("repack") / "model", "llama", dtype="f32", hidden=512, ffn=768, layers=1
    )
    tensors = load_file(model.path / "model.safetensors")
    for i, name in enumerate(sorted(n for n in tensors if n.endswith("weight_scale"))):
        tensors[name] = np.array([2.0 ** (2 + i % 4)], np.float32)
    save_file(tensors, model.path / "model.safetensors")
    return model


@pytest.fixture(scope="module")
def files(model: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], Path]:
    folder = tmp_path_factory.mktemp("forms")
    paths = {form: folder / f"{i}.gguf" for i, form in enumerate(FORMS)}
    for (type_name, runner, in_blocks), path in paths.items():
        bitconv.convert(model.path, path, type=type_name, runner=runner, scale_in_blocks=in_blocks)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("source", FORMS)
def test_any_layout_to_any_other_is_what_convert_writes(
    files: dict[tuple[str, str, bool], Path], tmp_path: Path, source: tuple[str, str, bool]
) -> None:
    for type_name, runner, in_blocks in FORMS:
        out = tmp_path / "out.gguf"
        result = bitconv.repack(
            files[source], out, type=type_name, runner=runner, scale_in_blocks=in_blocks, force=True
        )
        assert out.read_bytes() == files[type_name, runner, in_blocks].read_bytes(), (source, type_name, runner)
        assert {tensor.scale_error for tensor in result.tensors} == {0.0}


def test_a_rounded_scale_is_reported(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "in.gguf")
    result = bitconv.repack(tmp_path / "in.gguf", tmp_path / "out.gguf", type="iq1_bn")
    for tensor in result.tensors:
        assert tensor.scale_error == abs(np.float64(np.float16(tensor.scale)) / tensor.scale - 1)
    assert max(tensor.scale_error for tensor in result.tensors) > 0


def published(tmp_path: Path, architecture: str) -> Path:
    """A file like Microsoft's own I2_S GGUF: another converter's metadata, junk after each scale, file type 40."""
    bitconv.convert(FIXTURES / "bitnet-b1.58-2B-4T-tiny", tmp_path / "plain.gguf")
    rebuilt = Rebuilt(tmp_path / "plain.gguf")
    rebuilt.metadata = {
        key.replace("bitnet-b1.58.", f"{architecture}."): value for key, value in rebuilt.metadata.items()
    } | {"general.architecture": architecture, "general.name": "bitnet2b", "somebody.note": "kept"}
    for tensor in rebuilt.tensors:
        if tensor[2] == 36:
            tensor[3] = tensor[3][:-28] + b"\xab" * 28
    return rebuilt.write(tmp_path / "published.gguf")


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_the_published_i2_s_file_becomes_iq2_bn_for_ik_llama_cpp(tmp_path: Path, architecture: str) -> None:
    source = published(tmp_path, architecture)
    result = bitconv.repack(source, tmp_path / "out.gguf", type="iq2_bn")
    assert result.runner == "ik_llama.cpp"
    before, after = File(source), File(tmp_path / "out.gguf")
    changed = {key for key, value in after.metadata.items() if before.metadata.get(key) != value}
    assert changed == {"general.file_type"} and after.metadata["general.file_type"] == 137
    assert after.metadata.keys() == before.metadata.keys()
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in after.tensors.items():
        count = int(np.prod(tensor.ne))
        if tensor.type_id == 135:
            i2_s = np.frombuffer(before.bytes(name, count // 4), np.uint8)
            trits, _ = ROW_LAYOUTS["i2_s"].unpack(i2_s, *tensor.ne[::-1])
            scale = np.frombuffer(before.bytes(name, count // 4 + 4)[-4:], np.float32)[0]
            wanted = ROW_LAYOUTS["iq2_bn"].pack(trits, scale).tobytes()
            assert after.bytes(name, len(wanted)) == wanted
        else:
            nbytes = count * {0: 4, 1: 2}[tensor.type_id]
            assert after.bytes(name, nbytes) == before.bytes(name, nbytes)


def test_a_published_file_without_pre_and_with_an_idle_head_is_taken(tmp_path: Path) -> None:
    """bitnet.cpp's converters write no tokenizer.ggml.pre, and some an output.weight that its graph does not use."""
    rebuilt = Rebuilt(published(tmp_path, "bitnet-25"))
    del rebuilt.metadata["tokenizer.ggml.pre"], rebuilt.metadata["somebody.note"]
    rebuilt.tensors.append(["output.weight", *rebuilt.tensor("token_embd.weight")[1:]])
    source = rebuilt.write(tmp_path / "source.gguf")
    assert bitconv.verify(source).faults == ("tokenizer.ggml.pre is missing",)
    assert bitconv.repack(source, tmp_path / "as_it_is.gguf", type="iq2_bn").warnings == (
        "tokenizer.ggml.pre is missing",
    )
    assert bitconv.repack(source, tmp_path / "out.gguf", type="iq2_bn", pre="llama-bpe").warnings == ()
    assert bitconv.verify(tmp_path / "out.gguf").right
    assert bitconv.verify(tmp_path / "out.gguf", against=FIXTURES / "bitnet-b1.58-2B-4T-tiny").right
    with pytest.raises(bitconv.BitconvError, match="pre='other'"):
        bitconv.repack(source, tmp_path / "out2.gguf", type="iq2_bn", pre="other")


@pytest.mark.parametrize("name", ["falcon3", "falcon_e"])
def test_bitnet_cpp_s_names_of_the_falcons_are_not_carried_to_other_runners(tmp_path: Path, name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=512, layers=1)
    bitconv.convert(model.path, tmp_path / "in.gguf", pre=name)
    for options in ({"type": "tq2_0"}, {"type": "iq2_bn"}, {"type": "i2_s", "runner": "bitnet.cpp-2026"}):
        with pytest.raises(bitconv.BitconvError, match=rf"in\.gguf: tokenizer\.ggml\.pre is {name}, .*pre='falcon' "):
            bitconv.repack(tmp_path / "in.gguf", tmp_path / "out.gguf", force=True, **options)
        bitconv.repack(tmp_path / "in.gguf", tmp_path / "out.gguf", pre="falcon", force=True, **options)
    bitconv.repack(tmp_path / "in.gguf", tmp_path / "same.gguf", type="tq2_0", runner="bitnet.cpp")
    assert File(tmp_path / "same.gguf").metadata["tokenizer.ggml.pre"] == name


def test_the_older_architecture_name_is_replaced_for_a_runner_that_lacks_it(tmp_path: Path) -> None:
    """bitnet.cpp knows both names, so the name stays; nothing but the type changes."""
    source = published(tmp_path, "bitnet-25")
    bitconv.repack(source, tmp_path / "out.gguf", type="tq2_0", runner="bitnet.cpp")
    assert File(tmp_path / "out.gguf").metadata["general.architecture"] == "bitnet-25"


def test_tl2_in_the_ids_of_july_2026_is_read_and_becomes_the_older_ones(model: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(model.path, tmp_path / "39.gguf", type="tl2")
    rebuilt = Rebuilt(tmp_path / "39.gguf")
    rebuilt.metadata["general.file_type"] = np.uint32(43)
    for name in model.trits:
        rebuilt.tensor(name)[2] = 42
    newer = rebuilt.write(tmp_path / "42.gguf")
    assert bitconv.verify(newer, against=model.path).right
    bitconv.repack(newer, tmp_path / "back.gguf", type="tl2", runner="bitnet.cpp")
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "39.gguf").read_bytes()
    options = ("--type", "tl2", "--runner", "bitnet.cpp-2026")
    refused(tmp_path / "39.gguf", tmp_path / "out.gguf", "is not known to compute tl2", options=options)


def test_a_matrix_whose_rows_the_row4_order_cannot_hold_is_a_fault(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, heads=64, kv_heads=1, head_dim=2)
    file = tmp_path / "in.gguf"
    bitconv.convert(model.path, file)
    faults = {t.name: t.faults for t in bitconv.verify(file, i2_s_order="row4").tensors}
    assert faults["blk.0.attn_k.weight"] == ("i2_s_row4 needs rows in multiples of 4, and 2 are not",)
    options = ("--type", "i2_s", "--from-i2-s-order", "row4")
    refused(file, tmp_path / "out.gguf", "blk.0.attn_k.weight", "multiples of 4", options=options)


@pytest.mark.parametrize("order", ["arm64", "row4"])
def test_i2_s_in_the_byte_order_of_another_build_is_read_when_told(
    model: Synthetic, tmp_path: Path, order: str
) -> None:
    bitconv.convert(model.path, tmp_path / "plain.gguf")
    rebuilt = Rebuilt(tmp_path / "plain.gguf")
    for name, trits in model.trits.items():
        packed = ROW_LAYOUTS["i2_s_arm64"].pack(trits, 0) if order == "arm64" else i2_s_row4_pack(trits)
        rebuilt.tensor(name)[3] = packed.tobytes() + rebuilt.tensor(name)[3][-32:]
    other = rebuilt.write(tmp_path / "other.gguf")
    assert not bitconv.verify(other, against=model.path).right
    assert bitconv.verify(other, against=model.path, i2_s_order=order).right
    bitconv.repack(other, tmp_path / "back.gguf", type="i2_s", from_i2_s_order=order)
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def without_tiles(model: Synthetic, tmp_path: Path) -> Path:
    bitconv.convert(model.path, tmp_path / "tl2.gguf", type="tl2")
    rebuilt = Rebuilt(tmp_path / "tl2.gguf")
    del rebuilt.metadata["bitconv.tiles"]
    return rebuilt.write(tmp_path / "elsewhere.gguf")


def test_the_tiles_of_a_file_from_elsewhere_are_asked_for(model: Synthetic, tmp_path: Path) -> None:
    elsewhere = without_tiles(model, tmp_path)
    with pytest.raises(bitconv.BitconvError, match="pass kernel_config with the ini"):
        bitconv.verify(elsewhere)
    shapes = {trits.shape for trits in model.trits.values()}
    ini = tmp_path / "kernel_config.ini"
    ini.write_text(kernel_config_text({shape: TL2.tile_rules.choose(*shape) for shape in shapes}))
    assert bitconv.verify(elsewhere, against=model.path, kernel_config=ini).right
    bitconv.repack(elsewhere, tmp_path / "out.gguf", type="i2_s", from_kernel_config=ini)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def refused(source: Path, output: Path, *words: str, options: tuple[str, ...] = ("--type", "iq2_bn")) -> None:
    before = sorted(output.parent.iterdir())
    result = CliRunner().invoke(app, ["repack", str(source), str(output), *options])
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert sorted(output.parent.iterdir()) == before


def test_a_sentencepiece_file_gets_no_pre_tokenizer(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "bitnet_b1_58-tiny", tmp_path / "in.gguf")
    options = ("--type", "tq2_0", "--pre", "llama-bpe")
    refused(tmp_path / "in.gguf", tmp_path / "out.gguf", "--pre llama-bpe is for byte-level", options=options)


def test_a_file_that_is_not_ternary_is_refused(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "f16.gguf", type="f16")
    rebuilt = Rebuilt(tmp_path / "f16.gguf")
    masters = np.random.default_rng(0).standard_normal(512 * 512).astype(np.float16)
    rebuilt.tensor("blk.1.attn_q.weight")[3] = masters.tobytes()
    masters_file = rebuilt.write(tmp_path / "masters.gguf")
    refused(masters_file, tmp_path / "out.gguf", "masters.gguf", "blk.1.attn_q.weight", "no ternary weights")


def test_a_damaged_file_is_refused(files: dict[tuple[str, str, bool], Path], tmp_path: Path) -> None:
    data = files["i2_s", "bitnet.cpp", False].read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[:-100])
    refused(tmp_path / "short.gguf", tmp_path / "out.gguf", "short.gguf", "truncated", "bitconv verify")


def test_a_runner_that_would_compute_it_wrong_is_refused(tmp_path: Path) -> None:
    source = published(tmp_path, "bitnet-25")
    refused(source, tmp_path / "out.gguf", "llama.cpp", "--runner bitnet.cpp", options=("--type", "tq2_0"))


def test_a_shape_that_the_layout_cannot_take_is_refused(tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "bitnet_b1_58-tiny", tmp_path / "in.gguf")
    refused(tmp_path / "in.gguf", tmp_path / "out.gguf", "blk.0.attn_q.weight", "512 columns")


def test_the_input_is_never_the_output(files: dict[tuple[str, str, bool], Path]) -> None:
    source = files["i2_s", "bitnet.cpp", False]
    refused(source, source, "is the input itself", options=("--type", "iq2_bn", "--force"))


def test_repack_prints_what_changed(files: dict[tuple[str, str, bool], Path], tmp_path: Path) -> None:
    arguments = ["repack", str(files["i2_s", "bitnet.cpp", False]), str(tmp_path / "out.gguf"), "--type", "tq1_0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "7 tensors, i2_s to tq1_0" in result.stdout
    assert "scales: exact" in result.stdout
