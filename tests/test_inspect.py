"""inspect: any GGUF file, bitconv's or another's, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.gguf import TensorEntry, encode_header
from bitconv.system.errors import BitconvError
from typer.testing import CliRunner

from gguf_file import File
from synthetic import Synthetic, make_checkpoint
from test_verify import Rebuilt


def shares(model: Synthetic, kind: str) -> tuple[float, float, float]:
    """Of -1, 0 and +1, over all layers."""
    trits = np.concatenate([t.ravel() for name, t in model.trits.items() if name.split(".")[2] == kind])
    return tuple(float((trits == value).mean()) for value in (-1, 0, 1))


@pytest.mark.parametrize(
    ("family", "type_name", "stored"),
    [
        ("llama", "i2_s", {}),
        ("microsoft", "tl2", {"hidden": 384, "ffn": 768}),
        ("plain_qwen3", "q2_0", {"ternary_floats": True, "marked": False, "group": 128, "head_dim": 64}),
        ("mixtral", "tq2_0", {"ffn": 512}),
    ],
)
def test_of_a_file_and_its_checkpoint_the_same_is_said(
    family: str, type_name: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "model", family, dtype="f16", **stored)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    seen = [bitconv.inspect(path) for path in (tmp_path / "out.gguf", model.path)]
    assert [one.form for one in seen] == ["GGUF file", "checkpoint"]
    for one in seen:
        assert one.notes == ()
        assert one.ternary == sum(t.size for t in model.trits.values())
        assert one.parameters - one.ternary >= sum(v.size for v in model.dense.values())
        assert {kind.name for kind in one.kinds} == {name.split(".")[2] for name in model.trits}
        for kind in one.kinds:
            assert (kind.minus, kind.zero, kind.plus) == pytest.approx(shares(model, kind.name), abs=1e-12)
            assert kind.scales == ("a scale for each 128 columns" if "group" in stored else "one scale")
        assert one.layers == 2 and one.context == 512
    file = File(tmp_path / "out.gguf")
    assert [(t.name, t.shape[::-1]) for t in seen[0].tensors] == [(n, t.ne) for n, t in file.tensors.items()]
    assert {t.type for t in seen[0].tensors if t.name in model.trits} == {type_name}
    projections = next(part for part in seen[0].parts if part.name == "projections")
    assert projections.bits == pytest.approx(8 * projections.nbytes / seen[0].ternary)
    assert seen[0].size == sum(part.nbytes for part in seen[0].parts)


@pytest.mark.parametrize(
    ("family", "options", "runners"),
    [
        ("llama", {"type": "i2_s"}, ("bitnet.cpp", "bitnet.cpp-2026")),
        ("llama", {"type": "i2_s", "runner": "bitnet.cpp-arm64"}, ("bitnet.cpp-arm64",)),
        ("microsoft", {"type": "tq2_0", "runner": "bitnet.cpp"}, ("bitnet.cpp",)),
        ("llama", {"type": "tq2_0"}, ("llama.cpp",)),  # with .scale tensors
        ("llama", {"type": "tq2_0", "scale_in_blocks": True}, ("bitnet.cpp", "bitnet.cpp-2026", "llama.cpp")),
        ("llama", {"type": "q2_0", "embed_type": "q6_k"}, ("llama.cpp",)),
    ],
)
def test_the_runners_are_those_that_compute_the_file_as_it_is(
    family: str, options: dict[str, str], runners: tuple[str, ...], tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "model", family, hidden=512, ffn=512)
    bitconv.convert(model.path, tmp_path / "out.gguf", **options)
    assert bitconv.inspect(tmp_path / "out.gguf").runners == runners


def foreign(path: Path, *types: int, architecture: object = "gptq-net") -> Path:
    """A file of another tool's, with a tensor of each type by its number."""
    entries = [TensorEntry(f"blk.0.t{i}.weight", (4, 256), number, 4096 * i) for i, number in enumerate(types)]
    metadata = {"general.architecture": architecture, "general.name": "some\nmodel", "x.list": ["a"] * 9}
    path.write_bytes(encode_header(metadata, entries) + bytes(4096 * len(types)))
    return path


def test_types_that_are_not_known_are_told_by_number_and_by_all_that_they_mean(tmp_path: Path) -> None:
    file = foreign(tmp_path / "a.gguf", 36, 38, 39, 42, 12, 135, 137, 143, 200)
    seen = bitconv.inspect(file)
    assert [tensor.type for tensor in seen.tensors] == [
        "type 36: i2_s of bitnet.cpp or i2_s of bitnet.cpp-2026 or i2_s of bitnet.cpp-arm64",
        "type 38: tl1 of bitnet.cpp or tl1 of bitnet.cpp-2026",
        "type 39: tl2 of bitnet.cpp or mxfp4 of ggml",
        "type 42: tl2 of bitnet.cpp-2026 or q2_0 of llama.cpp",
        "q4_k",
        "type 135: iq2_bn of ik_llama.cpp",
        "type 137: iq2_k of ik_llama.cpp",
        "type 143: that of PrismML's fork for Bonsai 2, whose weights are rotated; without the rotation they run, and "
        "wrong",
        "type 200",
    ]
    assert {tensor.nbytes for tensor in seen.tensors} == {4096}
    assert (seen.architecture, seen.name, seen.runners, seen.kinds) == ("gptq-net", "some model", (), ())
    assert seen.metadata["x.list"] == "9: a, a, a, a, ..."
    assert seen.notes[0].startswith("architecture 'gptq-net' is not supported (llama, bitnet, ")


@pytest.mark.parametrize("architecture", [None, np.uint32(5)])
def test_a_file_that_does_not_say_what_it_is_is_shown(architecture: object, tmp_path: Path) -> None:
    if architecture is None:
        path = tmp_path / "a.gguf"
        path.write_bytes(encode_header({}, []))
    else:
        path = foreign(tmp_path / "a.gguf", 0, architecture=architecture)
    seen = bitconv.inspect(path)
    assert seen.architecture is None and len(seen.notes) == 1


def test_a_faulty_file_is_shown_and_said_to_be_faulty(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rebuilt.tensors.remove(rebuilt.tensor("blk.0.ffn_norm.weight"))
    seen = bitconv.inspect(rebuilt.write(tmp_path / "bad.gguf"))
    assert seen.runners == () and seen.kinds == ()
    assert seen.notes == ("tensor blk.0.ffn_norm.weight is missing; bitconv verify lists what is wrong",)
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    codes = bytearray(rebuilt.tensor("blk.1.attn_v.weight")[3])
    codes[2] = 0xFF
    rebuilt.tensor("blk.1.attn_v.weight")[3] = bytes(codes)
    seen = bitconv.inspect(rebuilt.write(tmp_path / "bad.gguf"))
    assert "blk.1.attn_v.weight: row 0, column 0 holds" in seen.notes[0] and seen.kinds == ()


def test_master_weights_without_a_mark_are_shown_without_shares(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, marked=False)
    seen = bitconv.inspect(model.path)
    assert seen.kinds == () and "nothing marks this as a BitNet checkpoint" in seen.notes[0]
    assert {part.name for part in seen.parts} == {"projections", "embedding", "head", "norms"}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no file of this kind"])
def test_what_is_no_model_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(BitconvError, match=r"a\.gguf: "):
        bitconv.inspect(tmp_path / "a.gguf")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "nothing")])
    assert result.exit_code == 2 and "nothing" in result.output and len(result.output.splitlines()) == 1


def test_the_command_prints_what_is_asked_for(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="i2_s")
    run = lambda *options: CliRunner().invoke(app, ["inspect", str(tmp_path / "out.gguf"), *options])  # noqa: E731
    text = run().stdout
    assert "runners:       bitnet.cpp, bitnet.cpp-2026\n" in text and "attn_output" in text
    assert "blk.0.attn_q.weight" not in text and "general.architecture" not in text
    assert "blk.0.attn_q.weight" in run("--tensors").stdout
    assert "general.architecture = llama" in run("--metadata").stdout
    value = json.loads(run("--json").stdout)
    assert value["families"][0] == "Llama 1.58-bit" and value["tensors"][0]["name"] == "token_embd.weight"


def test_metadata_cannot_play_tricks_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(
        encode_header({"general.architecture": "llama", "general.name": "\x1b[2Jgone", "k": "\x1b[31m"}, [])
    )
    result = CliRunner().invoke(app, ["inspect", str(path), "--metadata"])
    assert "\x1b" not in result.output and "\ufffd[2Jgone" in result.output
