"""Tensors with several scales, floats that are ternary already, and the rules for those that nothing marks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import StoredTensor
from bitconv.cli import app
from bitconv.commands.verify import Passed
from bitconv.gguf import read_gguf
from bitconv.inference.forward import ForwardPass
from bitconv.layouts.scales import simplest
from bitconv.models.model import load_model
from bitconv.models.ternary_floats import settle_scales
from bitconv.packed.inspection import inspect_file
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import Synthetic, absmean, make_checkpoint
from test_verify import Rebuilt, faults_of

DOWN = "blk.0.ffn_down.weight"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"
# ik_llama.cpp needs 512 columns for its types, TQ blocks of 256.
SIZES: dict[str, Any] = {"hidden": 512, "ffn": 512, "layers": 1}


def refused(arguments: list[object], *words: str) -> None:
    """One line on stderr that holds the words, exit code 2, and nothing on stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def edit(model: Synthetic, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors of a float32 or float16 checkpoint."""
    tensors = load_file(model.path / "model.safetensors")
    change(tensors)
    save_file(tensors, model.path / "model.safetensors")


def expected(type_name: str, model: Synthetic, name: str) -> bytes:
    """A packed tensor with its scales in it, by the reference."""
    form = ROW_LAYOUTS[type_name]
    trits, scale = model.trits[name], model.scales[name]
    if form.block_scale and np.ndim(scale):
        scale = np.repeat(scale, trits.shape[1] // form.block // scale.shape[1], axis=1)
    data = form.pack(trits, scale.reshape(-1) if np.ndim(scale) else scale).tobytes()
    return data + (scale.tobytes() + bytes(28) if type_name == "i2_s" else b"")


def converts_to(model: Synthetic, path: Path, type_name: str, **options: Any) -> bitconv.Conversion:
    """Convert, and check every ternary tensor's bytes and both kinds of verification."""
    result = bitconv.convert(model.path, path, type=type_name, **options)
    file = File(path)
    for name in model.trits:
        wanted = expected(type_name, model, name)
        assert file.bytes(name, len(wanted)) == wanted, name
    against = bitconv.verify(path, against=model.path)
    assert faults_of(bitconv.verify(path)) == faults_of(against) == {}
    scales = sum(np.size(s) for s in model.scales.values())
    assert against.checked["scales equal to the checkpoint's"] == Passed(scales, scales)
    return result


# Floats that are ternary already


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(
    ("family", "marked"), [("1bitllm", True), ("microsoft", True), ("llama", True), ("llama", False)]
)
def test_ternary_floats_keep_their_trits_and_scale(tmp_path: Path, family: str, marked: bool, dtype: str) -> None:
    """Also where the config says master weights: the mean of |W| would be another scale."""
    model = make_checkpoint(tmp_path / "model", family, dtype=dtype, marked=marked, ternary_floats=True)
    result = converts_to(model, tmp_path / "out.gguf", "i2_s")
    assert [t.was_ternary for t in result.tensors if t.name in model.trits] == [True] * 14
    assert {t.name: t.scale for t in result.tensors if t.scale} == {n: float(s) for n, s in model.scales.items()}


def test_the_summary_counts_what_was_ternary_already(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype="f32", packed=False, ternary_floats=True, layers=1)

    def summary() -> str:
        return CliRunner().invoke(app, ["convert", str(model.path), str(tmp_path / "out.gguf"), "--force"]).stdout

    assert "7 of 7 projections are stored as floats that are ternary already, and are kept as they are\n" in summary()
    masters = np.random.default_rng(0).standard_normal((384, 256)).astype(np.float32)
    edit(model, lambda tensors: tensors.update({UP_PROJ: masters}))
    assert "6 of 7 projections" in summary() and "unusual" in summary()
    trits, scale = absmean(masters)
    result = {tensor.name: tensor for tensor in bitconv.convert(model.path, tmp_path / "b.gguf").tensors}
    assert result["blk.0.ffn_up.weight"].scale == scale
    assert (
        File(tmp_path / "b.gguf").bytes("blk.0.ffn_up.weight", trits.size // 4)
        == ROW_LAYOUTS["i2_s"].pack(trits, 0).tobytes()
    )


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("row", [0, 300])
def test_a_value_off_by_one_ulp_makes_master_weights(tmp_path: Path, dtype: str, row: int) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype=dtype, ternary_floats=True, layers=1)

    def nudge(tensors: dict[str, np.ndarray]) -> None:
        column = np.flatnonzero(tensors[UP_PROJ][row])[5]
        tensors[UP_PROJ].view(f"i{tensors[UP_PROJ].itemsize}")[row, column] += 1

    edit(model, nudge)
    result = bitconv.convert(model.path, tmp_path / "out.gguf")
    assert [t.name for t in result.tensors if t.was_ternary is False] == ["blk.0.ffn_up.weight"]
    values = load_file(model.path / "model.safetensors")[UP_PROJ].astype(np.float32)
    assert next(t.scale for t in result.tensors if t.was_ternary is False) == absmean(values)[1]

    model.rewrite_config(quantization_config=None)
    out = tmp_path / "unmarked.gguf"
    refused(["convert", model.path, out], UP_PROJ, "is ternary but for outliers", "6 of 7", "--fallback f16")
    assert not out.exists()


def test_negative_zeros_and_rows_and_tensors_of_zeros_are_ternary(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32", marked=False, ternary_floats=True, layers=1)

    def zero(tensors: dict[str, np.ndarray]) -> None:
        tensors[UP_PROJ][:40] = 0
        tensors[UP_PROJ][tensors[UP_PROJ] == 0] = -0.0
        tensors["model.layers.0.mlp.gate_proj.weight"][:] = 0

    edit(model, zero)
    model.trits["blk.0.ffn_up.weight"][:40] = 0
    model.trits["blk.0.ffn_gate.weight"][:] = 0
    model.scales["blk.0.ffn_gate.weight"] = np.float32(1e-5)
    converts_to(model, tmp_path / "out.gguf", "i2_s")


def test_looking_at_master_weights_reads_no_more_than_their_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)
    read: list[tuple[str, int, int]] = []
    plain = Checkpoint.read

    def recording(self: Checkpoint, tensor: StoredTensor, start: int, out: np.ndarray) -> None:
        read.append((tensor.name, start, out.size))
        plain(self, tensor, start, out)

    monkeypatch.setattr(Checkpoint, "read", recording)
    with Checkpoint(model.path) as checkpoint:
        settle_scales(checkpoint, load_model(checkpoint), None, 1)
    assert len(read) == 7
    assert {(start, size) for _, start, size in read} == {(0, 256 * 4), (0, 384 * 4)}


@settings(deadline=None)
@given(
    rows=st.integers(1, 6),
    groups=st.sampled_from([1, 2, 3, 4, 8]),
    wide=st.sampled_from([1, 2, 4, 8]),
    row_wide=st.booleans(),
    tall=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_simplest_form_of_scales_says_the_same(
    rows: int, groups: int, wide: int, row_wide: bool, tall: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    fewest = (1 if tall else rows, 1 if row_wide else groups)
    scales = np.broadcast_to(random.choice([0.25, 0.5, 2], fewest).astype(np.float32), (rows, fewest[1]))
    scales = np.repeat(scales, (groups if row_wide else 1) * wide, axis=1)
    scales = np.where(random.random(scales.shape) < 0.2, np.float32(0), scales)
    simple = simplest(scales)
    if np.ndim(simple) == 0:
        assert ((scales == simple) | (scales == 0)).all()
        return
    assert simple.shape[0] == rows and scales.shape[1] % simple.shape[1] == 0
    again = np.repeat(simple, scales.shape[1] // simple.shape[1], axis=1)
    assert ((scales == again) | (scales == 0)).all()
    assert ((again != 0) | (scales == 0)).all()
    assert simple.shape[1] <= (1 if row_wide else scales.shape[1])
    assert not tall or not row_wide  # that would have been one scale


# What nothing marks as ternary


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("rule", ["absmean", "absmedian"])
def test_master_weights_that_nothing_marks_are_ternarized_by_the_rule_named(
    tmp_path: Path, dtype: str, rule: str
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype=dtype, packed=False, marked=False, layers=1)
    out = tmp_path / "out.gguf"
    refused(["convert", model.path, out], "config.json", "nothing marks this as a BitNet", "0 of 7", "--ternarize")
    bitconv.convert(model.path, out, ternarize=rule)
    result = bitconv.verify(out, against=model.path, ternarize=rule)
    assert result.right
    scales = {tensor.name: tensor.scale for tensor in result.tensors if tensor.scale is not None}
    if rule == "absmean":
        assert scales == {name: float(scale) for name, scale in model.scales.items()}
    else:
        assert scales.keys() == model.scales.keys()
        assert not bitconv.verify(out, against=model.path, ternarize="absmean").right


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("odd", [False, True])
def test_the_median_is_the_lower_of_the_two_in_the_middle(tmp_path: Path, dtype: str, odd: bool) -> None:
    """As torch.median has it."""
    import torch
    from safetensors.torch import load_file as load_torch

    sizes = {"hidden": 255, "heads": 1, "kv_heads": 1, "head_dim": 52, "ffn": 255} if odd else {}
    family = "llama" if odd else "microsoft"
    model = make_checkpoint(tmp_path / "model", family, dtype=dtype, packed=False, layers=1, **sizes)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", ternarize="absmedian")
    weight = load_torch(model.path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].float()
    median = torch.median(weight.abs())
    trits = (weight * (1 / median)).round().clamp(-1, 1)
    stored = np.frombuffer(File(tmp_path / "out.gguf").bytes(DOWN, weight.numel() * 4), np.float32)
    assert np.array_equal(stored.reshape(weight.shape), (trits * median).numpy() + np.float32(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_median_of_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[UP_PROJ][200, 3] = value

    edit(model, spoil)
    arguments = ["convert", model.path, tmp_path / "out.gguf", "--ternarize", "absmedian"]
    refused(arguments, UP_PROJ, "holds NaN or infinity")


def test_a_rule_for_packed_weights_is_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", layers=1)
    refused(["convert", model.path, tmp_path / "out.gguf", "--ternarize", "absmean"], "packed", "--ternarize")
    refused(["convert", model.path, tmp_path / "out.gguf", "--ternarize", "absmode"], "'absmode'", "absmedian")


# Several scales a tensor


@pytest.mark.parametrize("scalar_scale", [False, True])  # in shape (rows, 1), or (rows,)
@pytest.mark.parametrize("convention", ["multiply", "divide"])
def test_stored_row_scales_are_exact_in_a_layout_that_has_them(
    tmp_path: Path, convention: str, scalar_scale: bool
) -> None:
    options: dict[str, Any] = {"convention": convention, "scalar_scale": scalar_scale, **SIZES}
    model = make_checkpoint(tmp_path / "model", "llama", packed=True, row_scales=True, **options)
    if convention == "multiply":
        online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
        model.rewrite_config(quantization_config=online)
    result = converts_to(model, tmp_path / "out.gguf", "iq2_bn")
    assert {t.group for t in result.tensors if t.name in model.trits} == {512}
    assert result.exact_scales


def test_row_scales_go_nowhere_that_they_do_not_fit(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", row_scales=True, **SIZES)
    out = tmp_path / "out.gguf"
    for type_name in ("i2_s", "tl1", "tl2"):
        wanted = f"{type_name} has one scale, and this tensor has a scale a row; --type iq2_bn holds all tensors"
        refused(["convert", model.path, out, "--type", type_name], "q_proj", wanted, "; --fallback f32")
    for type_name in ("tq1_0", "tq2_0", "q2_0", "iq1_bn", "f16"):  # 1 / bfloat16 is no float16
        refused(["convert", model.path, out, "--type", type_name], "would round its scales", "--fallback f32")
    refused(["convert", model.path, out, "--fallback", "q8_0"], "one scale", "--fallback f32")
    assert not out.exists()
    result = bitconv.convert(model.path, out, fallback="f32")
    assert {t.type for t in result.tensors if t.name in model.trits} == {"f32"}
    assert bitconv.verify(out, against=model.path).right
    assert bitconv.convert(model.path, out, type="auto", force=True).type == "iq2_bn"


@pytest.mark.parametrize("type_name", ["iq2_bn", "iq1_bn", "tq1_0", "tq2_0", "q2_0"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_row_scales_of_ternary_floats_are_exact_where_float16_holds_them(
    tmp_path: Path, dtype: str, type_name: str
) -> None:
    """SpectraSuite's TriLMs, trained in model-parallel shards: float16, a scale for each block of rows."""
    model = make_checkpoint(
        tmp_path / "model", "llama", dtype=dtype, marked=False, ternary_floats=True, row_scales=True, **SIZES
    )
    result = converts_to(model, tmp_path / "out.gguf", type_name)
    assert {t.scale_error for t in result.tensors if t.name in model.trits} == {0.0}
    assert result.exact_scales
    assert not any(name.endswith(".scale") for name in File(tmp_path / "out.gguf").tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "fits"), [(32, set()), (64, {"q2_0"}), (128, {"q2_0"}), (256, {"q2_0", "tq1_0", "tq2_0"})]
)
def test_group_scales_fit_where_whole_blocks_share_one(tmp_path: Path, group: int, fits: set[str]) -> None:
    model = make_checkpoint(
        tmp_path / "model", "llama", dtype="f16", marked=False, ternary_floats=True, group=group, **SIZES
    )
    for type_name in ("i2_s", "q2_0", "tq1_0", "tq2_0", "iq2_bn", "iq1_bn"):
        out = tmp_path / f"{type_name}.gguf"
        if type_name in fits:
            result = converts_to(model, out, type_name)
            assert {t.group for t in result.tensors if t.name in model.trits} == {group}
        else:
            best = {32: "", 64: "--type q2_0 holds", 128: "--type q2_0 holds", 256: "--type tq1_0 holds"}[group]
            wanted = f"this tensor has a scale for each {group} columns; {best or '--fallback f16'}"
            refused(["convert", model.path, out, "--type", type_name], type_name, wanted, "--fallback f16")
            bitconv.convert(model.path, out, type=type_name, fallback="f16")
            assert bitconv.verify(out, against=model.path).right


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("options", [{"row_scales": True}, {"group": 64}])
def test_floats_hold_several_scales(tmp_path: Path, type_name: str, options: dict[str, Any]) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", marked=False, ternary_floats=True, **options)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    assert faults_of(bitconv.verify(tmp_path / "out.gguf", against=model.path)) == {}
    trits, scale = model.trits[DOWN], model.scales[DOWN]
    wanted = trits * np.repeat(scale, trits.shape[1] // scale.shape[1], axis=1)
    data = File(tmp_path / "out.gguf").bytes(DOWN, wanted.size * (4 if type_name == "f32" else 2))
    stored = (
        (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        if type_name == "bf16"
        else np.frombuffer(data, type_name.replace("f", "<f").replace("32", "4").replace("16", "2"))
    )
    assert np.array_equal(stored.reshape(wanted.shape), wanted)


def test_stored_row_scales_that_are_all_the_same_are_one(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32", row_scales=True, layers=1)

    def level(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[name][:] = 16

    edit(model, level)
    model.scales = {name: np.float32(1 / 16) for name in model.scales}
    converts_to(model, tmp_path / "out.gguf", "i2_s")


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_row_scale_that_is_none_is_refused(tmp_path: Path, value: float) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32", row_scales=True, layers=1)

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_scale"][77] = value

    edit(model, spoil)
    refused(["convert", model.path, tmp_path / "out.gguf"], "up_proj.weight_scale", "finite and positive")


@pytest.mark.parametrize("type_name", ["iq2_bn", "tq2_0", "q2_0", "f32"])
def test_rows_and_groups_of_zeros_have_any_scale(tmp_path: Path, type_name: str) -> None:
    for packed in (False, True):
        model = make_checkpoint(
            tmp_path / f"model{packed}",
            "llama",
            dtype="f32",
            packed=packed,
            convention="multiply",
            ternary_floats=not packed,
            row_scales=True,
            **SIZES,
        )
        offline = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}

        def zero(tensors: dict[str, np.ndarray], packed: bool = packed) -> None:
            tensors[UP_PROJ][60:70] = 0x55 if packed else 0
            tensors[UP_PROJ][80, 256:] = 0x55 if packed else 0
            for name in [name for name in tensors if name.endswith("weight_scale")]:
                tensors[name] = tensors[name].astype(np.float16).astype(np.float32)
            for name in [name for name in tensors if "_proj.weight" in name and not packed]:
                tensors[name] = tensors[name].astype(np.float16).astype(np.float32)

        edit(model, zero)
        if packed:
            model.rewrite_config(quantization_config=offline)
        out = tmp_path / f"{packed}.gguf"
        bitconv.convert(model.path, out, type=type_name)
        assert faults_of(bitconv.verify(out)) == faults_of(bitconv.verify(out, against=model.path)) == {}


# What verify finds


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("rows") / "model"
    return make_checkpoint(path, "llama", dtype="f16", marked=False, ternary_floats=True, row_scales=True, **SIZES)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    path = tmp_path_factory.mktemp("groups") / "model"
    return make_checkpoint(path, "llama", dtype="f16", marked=False, ternary_floats=True, group=256, **SIZES)


def test_a_wrong_row_scale_is_found_against_the_checkpoint(rows: Synthetic, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    bitconv.convert(rows.path, path, type="iq2_bn")
    data = bytearray(path.read_bytes())
    for row in (7, 300):
        data[File(path).tensors["blk.0.attn_q.weight"].start + row * (4 + 512 // 4)] ^= 1
    path.write_bytes(data)
    assert bitconv.verify(path).right  # one scale is as good as another to a file alone
    (fault,) = faults_of(bitconv.verify(path, against=rows.path))["blk.0.attn_q.weight"]
    assert "row 7, columns from 0: its scale is" in fault


@pytest.mark.parametrize("value", [0.0, -0.5, np.nan, np.inf])
def test_a_row_scale_of_a_file_that_is_none_is_found_alone(rows: Synthetic, tmp_path: Path, value: float) -> None:
    path = tmp_path / "out.gguf"
    bitconv.convert(rows.path, path, type="iq2_bn")
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, File(path).tensors[DOWN].start + 100 * (4 + 512 // 4), value)
    path.write_bytes(data)
    assert faults_of(bitconv.verify(path)).keys() == {DOWN}


def test_a_wrong_group_scale_is_found(groups: Synthetic, tmp_path: Path) -> None:
    """Alone where the blocks of a group differ then, and against the checkpoint where they do not."""
    path = tmp_path / "out.gguf"
    bitconv.convert(groups.path, path, type="q2_0")
    block = File(path).tensors[DOWN].start + 9 * (512 // 64 * 18) + 4 * 18  # row 9, its second group of 256
    good = path.read_bytes()
    for blocks in (1, 4):
        data = bytearray(good)
        for i in range(blocks):
            data[block + i * 18] ^= 1
        path.write_bytes(data)
        alone = faults_of(bitconv.verify(path))
        assert alone == ({} if blocks == 4 else {DOWN: (alone[DOWN][0],)})
        assert blocks == 4 or "its scales differ within rows" in alone[DOWN][0]
        (fault,) = faults_of(bitconv.verify(path, against=groups.path))[DOWN]
        assert blocks == 1 or "row 9, columns from 256: its scale is" in fault


def test_scales_that_differ_without_a_record_are_damage(rows: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(rows.path, tmp_path / "out.gguf", type="iq2_bn")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    assert f"{DOWN} 512" in rebuilt.metadata["bitconv.scales"]
    rebuilt.metadata["bitconv.scales"].remove(f"{DOWN} 512")
    path = rebuilt.write(tmp_path / "bad.gguf")
    (fault,) = faults_of(bitconv.verify(path))[DOWN]
    assert "its scales differ" in fault
    assert (
        "has one scale, the checkpoint's has a scale a row"
        in faults_of(bitconv.verify(path, against=rows.path))[DOWN][0]
    )


@pytest.mark.parametrize("record", ["x", [f"{DOWN} 96"], [f"{DOWN} 0"], [f"{DOWN} 1024"], [f"{DOWN} 512"] * 2, [DOWN]])
def test_a_record_of_scales_that_makes_no_sense_is_wrong(rows: Synthetic, tmp_path: Path, record: object) -> None:
    bitconv.convert(rows.path, tmp_path / "out.gguf", type="iq2_bn")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.metadata["bitconv.scales"] = record
    (fault,) = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults
    assert "bitconv.scales" in fault


def test_a_record_of_scales_of_no_ternary_tensor_is_wrong(rows: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(rows.path, tmp_path / "out.gguf", type="iq2_bn")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.metadata["bitconv.scales"].append("output_norm.weight 512")
    (fault,) = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults
    assert "bitconv.scales names output_norm.weight" in fault


def test_a_record_that_the_layout_has_no_room_for_is_wrong(groups: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(groups.path, tmp_path / "out.gguf", type="tq2_0")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.metadata["bitconv.scales"] = [f"{DOWN} 128"]
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))[DOWN]
    assert "tq2_0 has a scale for each 256 columns, and this tensor has a scale for each 128 columns" in fault


# From a file to another


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["rows", "groups"])
def test_repacking_keeps_several_scales(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(fixture)
    types = ["tq1_0", "tq2_0", "q2_0", "f32", "f16", *(["iq2_bn", "iq1_bn"] if fixture == "rows" else [])]
    files = {type_name: tmp_path / f"{type_name}.gguf" for type_name in types}
    for type_name, path in files.items():
        bitconv.convert(model.path, path, type=type_name)
    for source in types:
        for type_name in types:
            out = tmp_path / "out.gguf"
            result = bitconv.repack(files[source], out, type=type_name, force=True)
            assert out.read_bytes() == files[type_name].read_bytes(), (source, type_name)
            assert {(t.scale, t.scale_error) for t in result.tensors} == {(None, 0.0)}
    refused(["repack", files["tq2_0"], tmp_path / "no.gguf", "--type", "i2_s"], "i2_s has one scale, and this tensor")
    assert not (tmp_path / "no.gguf").exists()


def test_repacking_refuses_to_round_several_scales(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", row_scales=True, **SIZES)
    bitconv.convert(model.path, tmp_path / "in.gguf", type="iq2_bn")
    refused(["repack", tmp_path / "in.gguf", tmp_path / "out.gguf", "--type", "tq2_0"], "would round its scales")
    assert not (tmp_path / "out.gguf").exists()


def test_export_makes_floats_of_several_scales(rows: Synthetic, tmp_path: Path) -> None:
    """In the checkpoint's order of rows, those of q and k and their scales included."""
    bitconv.convert(rows.path, tmp_path / "in.gguf", type="iq2_bn")
    result = bitconv.export(tmp_path / "in.gguf", tmp_path / "out")
    assert (result.scale_convention, result.exact_scales) == (None, True)
    before, after = (load_file(path / "model.safetensors") for path in (rows.path, tmp_path / "out"))
    for name in [name for name in before if name.endswith("_proj.weight")]:
        assert (before[name].astype(np.float32) == after[name].astype(np.float32)).all()
    bitconv.convert(tmp_path / "out", tmp_path / "again.gguf", type="iq2_bn")
    assert bitconv.verify(tmp_path / "again.gguf", against=rows.path).right


# Computing with them


@pytest.mark.parametrize("float_activations", [False, True])
@pytest.mark.parametrize(
    ("fixture", "type_name"),
    [("rows", "iq2_bn"), ("rows", "tq1_0"), ("rows", "f32"), ("groups", "q2_0"), ("groups", "f16")],
)
def test_a_projection_with_several_scales_is_the_unpacked_matrix(
    fixture: str, type_name: str, float_activations: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    gguf = read_gguf(tmp_path / "out.gguf")
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    forward = ForwardPass(gguf, inspect_file(gguf), float_activations=float_activations, threads=3)
    for name, trits in model.trits.items():
        weights = trits * np.repeat(model.scales[name], 512 // model.scales[name].shape[1], axis=1).astype(np.float64)
        divisor = 1 / np.abs(x).max(axis=1, keepdims=True) * np.float32(127)
        values = x if float_activations else np.rint(x * divisor) / divisor.astype(np.float64)
        product = forward.product(x, name.removesuffix(".weight"))
        wanted = values @ weights.T
        assert np.abs(product - wanted).max() < 1e-6 * np.abs(wanted).max(), name


def test_logits_do_not_depend_on_the_layout(groups: Synthetic, tmp_path: Path) -> None:
    logits = []
    for type_name in ("tq2_0", "q2_0", "f32"):
        path = tmp_path / f"{type_name}.gguf"
        bitconv.convert(groups.path, path, type=type_name)
        gguf = read_gguf(path)
        forward = ForwardPass(gguf, inspect_file(gguf))
        logits.append(forward.logits(np.arange(20), forward.new_cache(20)))
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])
