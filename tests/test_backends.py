"""Which type for which machine: the table, what auto takes on a backend, and what convert says of this machine."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import bitconv
import pytest
from bitconv import backends
from bitconv.backends import BACKENDS, CELLS, MILLISECONDS, Speed
from bitconv.cli import app
from bitconv.commands.layouts import backends_table, milliseconds_table
from bitconv.layouts import PACKED
from bitconv.runners import RUNNERS, runner
from typer.testing import CliRunner

from synthetic import Synthetic, make_checkpoint

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(tmp_path_factory.mktemp("backends") / "model", "llama", hidden=512, ffn=768, layers=1)


def on(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)


def test_every_packed_type_that_a_runner_computes_has_cells_and_no_other() -> None:
    for target in RUNNERS:
        packed = {name for name in target.types if name in PACKED}
        known = set(CELLS[target.name])
        assert known <= packed, target.name
        if target.name != "bitnet.cpp-2026":  # its TQ2_0 is a submodule's, which was not read
            assert known == packed, target.name
    assert {backend for types in CELLS.values() for cells in types.values() for backend in cells} == set(BACKENDS)


def test_every_cell_says_what_it_was_read_or_measured_in() -> None:
    cells = [cell for types in CELLS.values() for by_backend in types.values() for cell in by_backend.values()]
    assert all(cell.source.endswith((", read", ", measured")) for cell in cells)
    for name, times in MILLISECONDS.items():
        assert all(CELLS[name][type_name]["x86"].source.endswith(", measured") for type_name in times)


@pytest.mark.parametrize(("name", "table"), [("backends", backends_table), ("milliseconds", milliseconds_table)])
def test_the_page_has_the_tables(name: str, table: object) -> None:
    page = (DOCS / "runners.md").read_text(encoding="utf-8")
    section = page.split(f"<!-- bitconv {name} -->\n")[1].split(f"\n<!-- /bitconv {name} -->")[0]
    assert section == table(), f"print bitconv.commands.layouts.{name}_table() there"  # type: ignore[operator]


def test_the_table_is_printed_with_its_sources() -> None:
    text = CliRunner().invoke(app, ["runners"]).stdout
    header, *rows = [line.split() for line in text.split("on which processor")[1].splitlines()[1:]]
    assert header == list(BACKENDS)
    sources = {row[0]: " ".join(row[1:]) for row in rows if row[0].isdigit()}
    q2_0 = next(row for row in rows if row[:2] == ["llama.cpp", "q2_0"])
    assert (q2_0[2], sources[q2_0[3]]) == ("generic", "llama.cpp b11549, measured")
    assert (q2_0[6], sources[q2_0[7]]) == ("fast", "ggml 0.21.0 of August 2026, read")
    listed = json.loads(CliRunner().invoke(app, ["runners", "--json"]).stdout)
    entry = next(entry for entry in listed if entry["name"] == "llama.cpp")
    assert entry["backends"]["q2_0"]["x86"] == {"speed": "generic", "source": "llama.cpp b11549, measured"}


@pytest.mark.parametrize(
    ("backend", "options", "wanted"),
    [
        ("x86", {"runner": "llama.cpp"}, ("tq2_0", "llama.cpp")),
        ("x86", {"runner": "bitnet.cpp"}, ("i2_s", "bitnet.cpp")),
        ("arm", {}, ("tq2_0", "llama.cpp")),
        ("arm", {"runner": "bitnet.cpp-arm64"}, ("i2_s", "bitnet.cpp-arm64")),
        ("cuda", {}, ("q2_0", "llama.cpp")),
        ("CUDA", {"runner": "ik_llama.cpp"}, ("iq2_bn", "ik_llama.cpp")),
        ("metal", {}, ("tq2_0", "llama.cpp")),
        ("vulkan", {}, ("tq2_0", "llama.cpp")),
        ("sycl", {}, ("q2_0", "llama.cpp")),
    ],
)
def test_auto_is_the_fastest_exact_type_on_the_backend(
    llama: Synthetic, tmp_path: Path, backend: str, options: dict[str, str], wanted: tuple[str, str]
) -> None:
    result = bitconv.convert(llama.path, tmp_path / "out.gguf", type="auto", backend=backend, **options)
    assert (result.type, result.runner) == wanted
    assert result.exact_scales
    assert f"on {backend.lower()}, in {wanted[1]} (" in str(result.reason)
    assert bitconv.verify(tmp_path / "out.gguf", against=llama.path).right


def test_auto_on_x86_is_the_fastest_that_was_measured(llama: Synthetic, tmp_path: Path) -> None:
    times = {
        (milliseconds, name, target)
        for target, by_type in MILLISECONDS.items()
        for name, milliseconds in by_type.items()
        if name != "iq1_bn"  # not exact for this model
    }
    result = bitconv.convert(llama.path, tmp_path / "out.gguf", type="auto", backend="x86")
    assert (result.type, result.runner) == min(times)[1:]


@pytest.mark.parametrize(("backend", "options"), [("webgpu", {}), ("cuda", {"runner": "bitnet.cpp"})])
def test_a_backend_without_code_for_any_exact_type_is_an_error(
    llama: Synthetic, tmp_path: Path, backend: str, options: dict[str, str]
) -> None:
    with pytest.raises(bitconv.BitconvError, match=f"backend='{backend}': nothing is known there"):
        bitconv.convert(llama.path, tmp_path / "out.gguf", type="auto", backend=backend, **options)
    assert not (tmp_path / "out.gguf").exists()


def test_shapes_decide_before_speed(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=320, layers=1)  # no multiple of 256
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="auto", backend="x86", runner="llama.cpp")
    assert result.type == "q2_0" and "in generic code on x86" in str(result.reason)
    assert not any("times faster" in note for note in result.notes)


def test_convert_notes_what_the_machine_computes_faster(
    llama: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "AMD64")
    (note,) = bitconv.convert(llama.path, tmp_path / "out.gguf", type="q2_0").notes
    ratio = MILLISECONDS["llama.cpp"]["q2_0"] / MILLISECONDS["llama.cpp"]["tq2_0"]
    assert note.startswith(f"on this x86 llama.cpp computes tq2_0 about {ratio:.0f} times faster than q2_0")
    assert bitconv.convert(llama.path, tmp_path / "out.gguf", type="tq2_0", force=True).notes == ()
    on(monkeypatch, "arm64")
    assert bitconv.convert(llama.path, tmp_path / "out.gguf", type="q2_0", force=True).notes == ()
    on(monkeypatch, "riscv64")
    assert bitconv.convert(llama.path, tmp_path / "out.gguf", type="q2_0", force=True).notes == ()


def test_a_backend_that_is_named_is_what_the_note_is_about(llama: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    (note,) = bitconv.convert(llama.path, out, type="tq2_0", backend="cuda").notes
    assert note.startswith("on cuda llama.cpp has a kernel for q2_0 and nothing for tq2_0")
    (note,) = bitconv.convert(llama.path, out, type="i2_s", backend="vulkan", force=True).notes
    assert note.startswith("on vulkan bitnet.cpp has nothing for i2_s, and the CPU computes it")
    assert bitconv.convert(llama.path, out, type="q2_0", backend="cuda", force=True).notes == ()


def test_on_an_arm_machine_convert_says_which_builds_an_i2_s_file_is_for(
    llama: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "aarch64")
    out = tmp_path / "out.gguf"
    (note,) = bitconv.convert(llama.path, out).notes
    assert "on arm64 before November 2025" in note and "bitnet.cpp-arm64" in note
    result = bitconv.convert(llama.path, out, runner="bitnet.cpp-arm64", force=True)
    assert result.notes == () and result.machines == "arm64, from November 2025 on"
    on(monkeypatch, "x86_64")
    assert bitconv.convert(llama.path, out, force=True).notes == ()


def test_the_machine_changes_no_byte(llama: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for machine in ("x86_64", "aarch64", ""):
        on(monkeypatch, machine)
        for type_name in ("i2_s", "auto"):
            bitconv.convert(llama.path, tmp_path / "out.gguf", type=type_name, force=True)
            files.append((tmp_path / "out.gguf").read_bytes())
    assert files[:2] == files[2:4] == files[4:]


def test_the_summary_says_which_machines_a_file_is_for(llama: Synthetic, tmp_path: Path) -> None:
    arguments = ["convert", str(llama.path), str(tmp_path / "out.gguf"), "--dry-run"]
    text = CliRunner().invoke(app, arguments).stdout
    assert ", for bitnet.cpp\nruns on x86, and on arm64 before November 2025\n" in text
    text = CliRunner().invoke(app, [*arguments, "--runner", "bitnet.cpp-arm64"]).stdout
    assert ", for bitnet.cpp-arm64\nruns on arm64, from November 2025 on\n" in text


def test_an_attestation_of_what_a_backend_chose_is_made_again(llama: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    bitconv.convert(llama.path, out, type="auto", backend="sycl", attest=True)
    attestation = tmp_path / "out.gguf.intoto.json"
    assert bitconv.verify(out, against=llama.path, attestation=attestation).right
    stated = json.loads(attestation.read_text())["predicate"]["buildDefinition"]["externalParameters"]
    assert (stated["type"], stated["runner"]) == ("q2_0", "llama.cpp")


@pytest.mark.parametrize("file", ["convert", "repack"])
def test_tl1_comes_with_the_line_that_crashes(llama: Synthetic, tmp_path: Path, file: str) -> None:
    line = "ggml_bitnet_mul_mat_get_wsize of src/ggml-bitnet-lut.cpp"
    bitconv.convert(llama.path, tmp_path / "i2_s.gguf")
    if file == "convert":
        notes = bitconv.convert(llama.path, tmp_path / "out.gguf", type="tl1").notes
        assert bitconv.convert(llama.path, tmp_path / "tl2.gguf", type="tl2", backend="x86").notes == ()
    else:
        notes = bitconv.repack(tmp_path / "i2_s.gguf", tmp_path / "out.gguf", type="tl1").notes
    assert line in notes[0] and "15" in notes[0]
    result = bitconv.kernel_config(llama.path, tmp_path / "k.ini", type="tl1")
    assert line in result.notes[0]
    assert bitconv.kernel_config(llama.path, tmp_path / "k.ini", type="tl2", force=True).notes == ()
    arguments = ["kernel-config", str(llama.path), "--type", "tl1", "-o", str(tmp_path / "x.ini")]
    assert line in CliRunner().invoke(app, arguments).stdout
    assert line in CliRunner().invoke(app, ["runners"]).stdout
    assert runner("bitnet.cpp").type_notes.keys() == {"tl1"}


def test_the_summary_has_the_sizes_of_the_parts(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=256, ffn=512, layers=2)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", embed_type="q8_0", head_type="f16")
    by_name = {part.name: part for part in result.parts}
    assert list(by_name) == ["projections", "embedding", "head", "norms"]
    weights = sum(trits.size for trits in model.trits.values())
    projections = by_name["projections"]
    assert (projections.tensors, projections.types) == (len(model.trits), ("q2_0",))
    assert projections.stored_nbytes == weights // 4  # packed, four a byte
    assert (projections.nbytes, projections.bits) == (weights // 64 * 18, 2.25)
    vocabulary = next(t.shape[0] for t in result.tensors if t.name == "token_embd.weight")
    embedding = by_name["embedding"]
    assert (embedding.types, embedding.nbytes, embedding.bits) == (("q8_0",), vocabulary * 256 // 32 * 34, 8.5)
    assert (by_name["head"].types, by_name["head"].nbytes) == (("f16",), vocabulary * 256 * 2)
    assert (by_name["norms"].bits, by_name["norms"].nbytes) == (32, 4 * 256 * 5)
    assert sum(part.nbytes for part in result.parts) == sum(tensor.nbytes for tensor in result.tensors)
    arguments = ["convert", str(model.path), str(tmp_path / "no.gguf"), "--type", "q2_0", "--dry-run"]
    rows = [line.split() for line in CliRunner().invoke(app, arguments).stdout.splitlines()]
    row = next(row for row in rows if row[:1] == ["projections"])
    assert row[1:] == [str(len(model.trits)), f"{weights // 4:,}", f"{weights // 64 * 18:,}", "2.25", "q2_0"]


def test_two_bits_go_before_base_three_where_nothing_was_measured() -> None:
    ranks = {name: backends.rank("llama.cpp", name, "vulkan") for name in ("tq1_0", "tq2_0", "q2_0")}
    assert ranks["tq2_0"] == ranks["q2_0"] < ranks["tq1_0"]
    assert backends.rank("llama.cpp", "tq1_0", "cuda") is None
    assert CELLS["llama.cpp"]["tq1_0"]["cuda"].speed is Speed.NONE
