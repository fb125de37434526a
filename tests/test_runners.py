"""Which combinations of runner, type and model are written, and which are refused with the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bitconv
import pytest
from bitconv.cli import app
from bitconv.commands.kernel_config import kernel_config
from bitconv.layouts import TERNARY_TYPES
from bitconv.runners import RUNNERS, default_runner, layout_name, runner
from bitconv.system.errors import BitconvError
from typer.testing import CliRunner

from gguf_file import File
from synthetic import make_checkpoint

# ggml type id and general.file_type of each type in each runner, written out again.
NUMBERS = {
    ("bitnet.cpp", "i2_s"): (36, 40),
    ("bitnet.cpp", "tl1"): (38, 38),
    ("bitnet.cpp", "tl2"): (39, 39),
    ("bitnet.cpp", "tq1_0"): (34, 36),
    ("bitnet.cpp", "tq2_0"): (35, 37),
    ("bitnet.cpp-2026", "i2_s"): (36, 41),
    ("bitnet.cpp-2026", "tq2_0"): (35, 37),
    ("bitnet.cpp-2026", "f32"): (0, 0),
    ("bitnet.cpp-arm64", "i2_s"): (36, 40),
    ("llama.cpp", "tq1_0"): (34, 36),
    ("llama.cpp", "tq2_0"): (35, 37),
    ("llama.cpp", "q2_0"): (42, 41),
    ("ik_llama.cpp", "iq2_bn"): (135, 137),
    ("ik_llama.cpp", "iq1_bn"): (134, 136),
}


@pytest.mark.parametrize(("runner_name", "type_name"), NUMBERS)
def test_type_ids_and_file_types_are_the_runner_s(tmp_path: Path, runner_name: str, type_name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=1024, layers=1)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, runner=runner_name)
    file = File(tmp_path / "out.gguf")
    assert {file.tensors[name].type_id for name in model.trits} == {NUMBERS[runner_name, type_name][0]}
    assert file.metadata["general.file_type"] == NUMBERS[runner_name, type_name][1]
    result = bitconv.verify(tmp_path / "out.gguf", against=model.path)
    assert result.right
    assert {tensor.type for tensor in result.tensors if tensor.name in model.trits} == {type_name}


@pytest.mark.parametrize(
    ("type_name", "implied"),
    [
        ("i2_s", "bitnet.cpp"),
        ("tl1", "bitnet.cpp"),
        ("tl2", "bitnet.cpp"),
        ("tq1_0", "llama.cpp"),
        ("tq2_0", "llama.cpp"),
        ("q2_0", "llama.cpp"),
        ("iq2_bn", "ik_llama.cpp"),
        ("iq1_bn", "ik_llama.cpp"),
        ("f16", "llama.cpp"),
    ],
)
def test_a_type_implies_its_runner(type_name: str, implied: str) -> None:
    assert default_runner(type_name, "llama").name == implied


def test_floats_of_an_architecture_that_llama_cpp_lacks_are_for_bitnet_cpp() -> None:
    assert default_runner("f16", "bitnet-b1.58").name == "bitnet.cpp"


REFUSED = [
    ("microsoft", {"type": "tq2_0"}, ["llama.cpp does not know the architecture bitnet-b1.58", "runner='bitnet.cpp'"]),
    ("microsoft", {"type": "q2_0"}, ["bitnet-b1.58", "type='i2_s' runner='bitnet.cpp'"]),
    ("microsoft", {"type": "f16", "runner": "llama.cpp"}, ["does not know the architecture bitnet-b1.58"]),
    ("microsoft", {"type": "i2_s", "runner": "bitnet.cpp-2026"}, ["applies silu", "runner='bitnet.cpp'"]),
    ("llama", {"type": "tl1", "runner": "bitnet.cpp-2026"}, ["not known to compute tl1", "issue 631", "type='tl1'"]),
    ("llama", {"type": "tl2", "runner": "bitnet.cpp-2026"}, ["does not build", "type='tl2' runner='bitnet.cpp'"]),
    (
        "llama",
        {"type": "tq2_0", "runner": "bitnet.cpp-arm64"},
        ["does not compute tq2_0", "type='tq2_0' runner='bitnet.cpp'"],
    ),
    ("llama", {"type": "i2_s", "runner": "ik_llama.cpp"}, ["does not compute i2_s", "runner='bitnet.cpp'"]),
    (
        "llama",
        {"type": "i2_s", "runner": "llama.cpp"},
        ["does not compute i2_s", "runner='bitnet.cpp', or type='tq1_0' runner='llama.cpp'"],
    ),
    ("llama", {"type": "q2_0", "runner": "bitnet.cpp"}, ["does not compute q2_0", "runner='llama.cpp'"]),
    ("llama", {"type": "iq2_bn"}, ["needs 512 columns", "256", "fallback='f16'"]),
    ("llama", {"type": "tq1_0", "kv_heads": 2}, ["multiples of 256", "384", "fallback='f16'"]),
    ("1bitllm", {"type": "i2_s", "runner": "nothing.cpp"}, ["'nothing.cpp'", "bitnet.cpp"]),
    ("1bitllm", {"type": "q4_0"}, ["'q4_0'", "i2_s"]),
]


@pytest.mark.parametrize(("family", "options", "words"), REFUSED)
def test_what_a_runner_would_get_wrong_is_refused_with_the_way_out(
    tmp_path: Path, family: str, options: dict, words: list[str]
) -> None:
    options = dict(options)
    shape = {"kv_heads": options.pop("kv_heads")} if "kv_heads" in options else {}
    model = make_checkpoint(tmp_path / "model", family, **shape)
    with pytest.raises(bitconv.BitconvError) as error:
        bitconv.convert(model.path, tmp_path / "out.gguf", **options)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.slow
def test_every_way_out_that_is_named_works(tmp_path: Path) -> None:
    """Whatever a refusal by runner and type proposes converts."""
    for family in ("microsoft", "llama", "1bitllm"):
        model = make_checkpoint(tmp_path / family, family, hidden=512, ffn=1024, layers=1)
        for target in RUNNERS:
            for type_name in TERNARY_TYPES:
                try:
                    bitconv.convert(
                        model.path, tmp_path / "x.gguf", type=type_name, runner=target.name, dry_run=True, force=True
                    )
                except bitconv.BitconvError as error:
                    assert error.way_out is not None
                    named = re.findall(r"type='(\w+)' runner='(\S+)'", error.way_out)
                    assert 1 <= len(named) <= 2
                    for name, runner in named:
                        bitconv.convert(
                            model.path, tmp_path / "x.gguf", type=name, runner=runner, dry_run=True, force=True
                        )


@pytest.mark.parametrize("fallback", ["f16", "q8_0"])
def test_only_tensors_that_the_type_cannot_take_fall_back(tmp_path: Path, fallback: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=384)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", fallback=fallback)
    fell = {t.name: t.type for t in result.tensors if t.fallback}
    assert fell == {f"blk.{layer}.ffn_down.weight": fallback for layer in range(2)}
    assert all("multiples of 256" in t.fallback for t in result.tensors if t.fallback)
    file = File(tmp_path / "out.gguf")
    for name, trits in model.trits.items():
        assert file.tensors[name].type_id == ({"f16": 1, "q8_0": 8}[fallback] if name in fell else 35)
        assert file.tensors[name].ne == trits.shape[::-1]
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_a_fallback_is_named_in_the_summary(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=384)
    arguments = ["convert", str(model.path), str(tmp_path / "out.gguf"), "--type", "tq1_0", "--fallback", "q8_0"]
    result = CliRunner().invoke(app, arguments)
    assert "fell back to q8_0: blk.1.ffn_down.weight: tq1_0 needs columns in multiples of 256" in result.stdout


def test_a_pattern_overrules_the_type_of_the_tensors_it_is_found_in(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=512)
    arguments = ["convert", str(model.path), str(tmp_path / "out.gguf"), "--type", "tq2_0"]
    arguments += ["--tensor-type", r"blk\.1\..*_down=f16", "--tensor-type", "ffn=tq1_0", "--tensor-type", "embd=f32"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    ids = {name: tensor.type_id for name, tensor in File(tmp_path / "out.gguf").tensors.items()}
    assert ids["blk.1.ffn_down.weight"] == 1
    assert ids["blk.0.ffn_down.weight"] == ids["blk.1.ffn_up.weight"] == 34
    assert ids["blk.1.attn_q.weight"] == 35
    assert (ids["token_embd.weight"], ids["output.weight"]) == (0, 1)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


@pytest.mark.parametrize("text", ["ffn", "=f16", "ffn=nothing", "(=f16", "ffn=iq2_bn", "embd=tq2_0", "q=tl1"])
def test_a_pattern_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=512)
    arguments = ["convert", str(model.path), str(tmp_path / "out.gguf"), "--type", "tq2_0", "--tensor-type", text]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("pattern", ["ffn_dwn", "norm", "^ffn"])
def test_a_pattern_that_sets_no_type_is_named(tmp_path: Path, pattern: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=512)
    with pytest.raises(BitconvError, match=f"tensor_types={re.escape(repr(pattern))} is found in .* no tensor"):
        bitconv.convert(model.path, tmp_path / "out.gguf", tensor_types=[("attn", "f16"), (pattern, "f16")])


def test_a_kernel_config_that_the_type_does_not_heed_is_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=512, head_dim=128)
    good, out, ini = tmp_path / "good.gguf", tmp_path / "out.gguf", tmp_path / "k.ini"
    bitconv.convert(model.path, good)
    kernel_config(model.path, ini, type="tl2")
    for run in (bitconv.convert, bitconv.repack):
        source = model.path if run is bitconv.convert else good
        with pytest.raises(BitconvError, match="none is asked for"):
            run(source, out, type="tq2_0", kernel_config=ini, force=True)
        run(source, out, type="tl2", kernel_config=ini, force=True)


@pytest.mark.parametrize(
    ("family", "shape", "options", "wanted"),
    [
        ("llama", {"ffn": 512}, {}, ("tq1_0", "llama.cpp")),
        ("llama", {"ffn": 384}, {}, ("i2_s", "bitnet.cpp")),
        ("llama", {"ffn": 320}, {}, ("q2_0", "llama.cpp")),
        ("llama", {"ffn": 384}, {"runner": "llama.cpp"}, ("q2_0", "llama.cpp")),
        ("microsoft", {"hidden": 512, "ffn": 1024}, {}, ("i2_s", "bitnet.cpp")),
        ("microsoft", {"hidden": 512, "ffn": 1024}, {"runner": "ik_llama.cpp"}, ("iq2_bn", "ik_llama.cpp")),
    ],
)
def test_auto_is_the_smallest_exact_layout(
    tmp_path: Path, family: str, shape: dict, options: dict, wanted: tuple[str, str]
) -> None:
    model = make_checkpoint(tmp_path / "model", family, **shape)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="auto", **options)
    assert (result.type, result.runner) == wanted
    assert result.exact_scales
    assert wanted[0] in str(result.reason) and wanted[1] in str(result.reason)


def test_auto_says_when_nothing_fits(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", ffn=320)
    with pytest.raises(bitconv.BitconvError, match="no packed layout"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="auto")


def test_the_id_42_is_read_by_the_file_type() -> None:
    assert layout_name(42, 41) == layout_name(42, None) == "q2_0"
    assert layout_name(42, 43) == layout_name(39, 39) == "tl2"


def test_the_runners_are_printed_from_the_table() -> None:
    listed = json.loads(CliRunner().invoke(app, ["runners", "--json"]).stdout)
    assert [entry["name"] for entry in listed] == [r.name for r in RUNNERS]
    assert listed[2]["types"] == dict(runner("llama.cpp").types)
    text = CliRunner().invoke(app, ["runners"]).stdout
    for target in RUNNERS:
        assert target.name in text
        assert all(type_name in text for type_name in target.types)
