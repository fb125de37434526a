"""convert --attest and verify --attestation: where a file comes from, and that it can be made again."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bitconv
import pytest
from bitconv.cli import app
from bitconv.commands import attest
from typer.testing import CliRunner

from synthetic import FIXTURES

MODEL = FIXTURES / "Llama3-1.58-tiny"
READ = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def attested(directory: Path, **options: Any) -> tuple[Path, Path]:
    """A file and its statement."""
    bitconv.convert(MODEL, directory / "out.gguf", attest=True, **options)
    return directory / "out.gguf", directory / "out.gguf.intoto.json"


def edited(statement: Path, change: Any) -> Path:
    content = json.loads(statement.read_text())
    change(content)
    statement.write_text(json.dumps(content))
    return statement


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_statement_names_the_file_its_sources_and_the_digest_that_verify_prints(tmp_path: Path) -> None:
    file, statement = attested(tmp_path, type="q2_0")
    content = json.loads(statement.read_text())
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["subject"] == [{"name": "out.gguf", "digest": {"sha256": sha256(file)}}]
    definition = content["predicate"]["buildDefinition"]
    sources = {source["name"]: source["digest"]["sha256"] for source in definition["resolvedDependencies"]}
    assert sources == {name: sha256(MODEL / name) for name in READ}
    assert definition["externalParameters"]["type"] == "q2_0"
    digests = bitconv.verify(file).digests
    assert digests is not None
    assert definition["internalParameters"]["trits_and_scales"] == digests.trits_and_scales
    assert content["predicate"]["runDetails"]["builder"]["version"]["bitconv"] == bitconv.__version__


def test_the_manifest_is_what_sha256sum_checks(tmp_path: Path) -> None:
    file, _ = attested(tmp_path)
    checked = subprocess.run(["sha256sum", "-c", "out.gguf.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "out.gguf: OK\n")
    with file.open("r+b") as stream:
        stream.write(b"X")
    assert subprocess.run(["sha256sum", "-c", "out.gguf.sha256"], cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"type": "tl2", "head_type": "q8_0"},
        {"preset": "small"},
        {"type": "tq1_0", "scale_in_blocks": True},
        {"tensor_types": [("attn_v", "f16")]},
    ],
    ids=str,
)
def test_anybody_who_has_the_model_makes_the_same_bytes_again(tmp_path: Path, options: dict[str, Any]) -> None:
    file, statement = attested(tmp_path, **options)
    verdict = bitconv.verify(file, against=MODEL, attestation=statement)
    assert verdict.right and verdict.checked["attestations: made again to the same bytes"].passed == 1


def test_the_tiles_of_a_kernel_configuration_travel_with_the_statement(tmp_path: Path) -> None:
    ini = tmp_path / "kernel_config.ini"
    CliRunner().invoke(app, ["kernel-config", str(MODEL), "--type", "tl2", "-o", str(ini)], catch_exceptions=False)
    ini.write_text(re.sub("bm = [0-9]+", "bm = 32", ini.read_text()))
    file, statement = attested(tmp_path, type="tl2", kernel_config=ini)
    ini.unlink()
    assert bitconv.verify(file, against=MODEL, attestation=statement).right


def test_another_file_is_not_the_attested_one(tmp_path: Path) -> None:
    _, statement = attested(tmp_path)
    bitconv.convert(MODEL, tmp_path / "other.gguf", embed_type="bf16")
    verdict = bitconv.verify(tmp_path / "other.gguf", against=MODEL, attestation=statement)
    assert not verdict.right
    assert any("the attestation is of another file" in fault for fault in verdict.faults)


def test_a_model_of_other_files_is_told(tmp_path: Path) -> None:
    file, statement = attested(tmp_path)
    model = tmp_path / MODEL.name
    shutil.copytree(MODEL, model)
    (model / "generation_config.json").write_text("{}")
    verdict = bitconv.verify(file, against=model, attestation=statement)
    assert any("1 of the 6 files" in fault and "generation_config.json" in fault for fault in verdict.faults)


def test_options_that_were_not_those_make_other_bytes(tmp_path: Path) -> None:
    file, statement = attested(tmp_path)
    edited(statement, lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(embed_type="bf16"))
    verdict = bitconv.verify(file, against=MODEL, attestation=statement)
    assert any("other bytes" in fault for fault in verdict.faults)


def test_a_directory_of_another_name_is_told_as_the_reason(tmp_path: Path) -> None:
    file, statement = attested(tmp_path)
    shutil.copytree(MODEL, tmp_path / "renamed")
    verdict = bitconv.verify(file, against=tmp_path / "renamed", attestation=statement)
    assert any("was Llama3-1.58-tiny and is renamed here" in fault for fault in verdict.faults)


def test_every_option_that_decides_the_bytes_is_stated() -> None:
    of_no_byte = {"model", "output", "revision", "token", "threads", "force", "dry_run", "attest", "progress"}
    chooses = {"backend", "preset"}  # a type, a runner, a type of the embedding, which are stated
    assert inspect.signature(bitconv.convert).parameters.keys() - of_no_byte - chooses == attest.OPTIONS


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.clear(),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(subject=[]),
        lambda s: s["predicate"].update(buildDefinition=3),
        lambda s: s["predicate"]["buildDefinition"].update(buildType="urn:other"),
        lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(output="/etc/passwd"),
        lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(tensor_types=7),
        lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"][0].update(name="../secret"),
        lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"][0].update(name="/etc/passwd"),
    ],
)
def test_what_is_no_statement_of_a_conversion_is_one_line(tmp_path: Path, change: Any) -> None:
    file, statement = attested(tmp_path)
    edited(statement, change)
    with pytest.raises(bitconv.BitconvError, match="is no statement of a conversion"):
        bitconv.verify(file, against=MODEL, attestation=statement)


def test_a_statement_is_not_overwritten_unasked_and_the_conversion_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "out.gguf.sha256").write_text("mine")
    with pytest.raises(bitconv.BitconvError, match="exists"):
        attested(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf.sha256"]
    attested(tmp_path, force=True)
    assert (tmp_path / "out.gguf.sha256").read_text() != "mine"


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match="dry_run"):
        attested(tmp_path, dry_run=True)
    file, statement = attested(tmp_path)
    with pytest.raises(bitconv.BitconvError, match="against"):
        bitconv.verify(file, attestation=statement)


def test_of_shards_all_and_their_index_are_sources_and_weights_that_are_not_read_are_none(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(FIXTURES / "bitnet_b1_58-tiny", model)
    (model / "pytorch_model.bin").write_bytes(b"not read")
    bitconv.convert(model, tmp_path / "out.gguf", attest=True)
    definition = json.loads((tmp_path / "out.gguf.intoto.json").read_text())["predicate"]["buildDefinition"]
    names = {source["name"] for source in definition["resolvedDependencies"]}
    assert {name for name in names if "model" in name and not name.startswith("tokenizer")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
