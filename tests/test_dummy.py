"""Made-up checkpoints: the sizes of real models, readable by everyone, the same bytes for a seed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.checkpoint import safetensors_files
from bitconv.choices import STORED
from bitconv.cli import app
from bitconv.commands.dummy import SHAPES, checkpoint, dummy, noise, vocabulary
from bitconv.tokenizer import tokenizer_metadata
from bitconv.tokenizer.rebuild import tokenizer_files
from safetensors import safe_open
from typer.testing import CliRunner

SMALL = "2x256x384"
# By a name of SHAPES: a small vocabulary of the same form.
VOCABULARIES = {
    "2b-4t": partial(vocabulary.llama3, 640, 200),
    "llama3-8b": partial(vocabulary.llama3, 640, 200),
    "large": partial(vocabulary.llama2, 640),
    "falcon3-10b": partial(vocabulary.falcon3, 640, 300),
}


def shrink(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """A shape of the same family as a named one, small, with four times fewer key-value heads."""
    shape = SHAPES[name]
    sizes = replace(shape.sizes, layers=1, hidden=256, ffn=512, heads=4, kv_heads=1, head_dim=64, vocab=640)
    monkeypatch.setitem(SHAPES, f"small {name}", replace(shape, sizes=sizes, vocabulary=VOCABULARIES[name]))
    return f"small {name}"


def tensors(directory: Path) -> dict[str, Any]:
    """All tensors by name, as torch reads them."""
    pytest.importorskip("torch")
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found


@pytest.mark.parametrize("stored", STORED.words)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_every_family_stores_converts_and_verifies(
    name: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = shrink(monkeypatch, name)
    if (name, stored) == ("large", "packed"):
        with pytest.raises(bitconv.BitconvError, match=r"no checkpoint of 1bitLLM.*shape='1x256x512x4x1x640'$"):
            dummy(tmp_path / "model", shape=shape, stored=stored)
        return
    result = dummy(tmp_path / "model", shape=shape, stored=stored)
    conversion = bitconv.convert(tmp_path / "model", tmp_path / "out.gguf")
    assert conversion.family == SHAPES[name].family.name
    assert bitconv.verify(tmp_path / "out.gguf", against=tmp_path / "model").right
    scales = [tensor.scale for tensor in conversion.tensors if tensor.scale is not None]
    assert len(scales) == 7 and all(0.0095 < scale < 0.031 for scale in scales)
    assert result.parameters == sum(np.prod(tensor.shape) for tensor in conversion.tensors)


@pytest.mark.parametrize(
    ("name", "parameters", "merges"),
    [
        ("2b-4t", 2_412_820_480, 280_147),
        ("llama3-8b", 8_030_261_248, 280_147),  # as transformers counts meta-llama/Meta-Llama-3-8B
        ("large", 728_840_000, None),
        ("3b", 3_325_200_000, None),
        ("falcon3-10b", 10_305_653_760, 128_810),
        ("100b", 100_200_000_000, None),
    ],
)
def test_named_shapes_have_the_sizes_of_the_published_models(name: str, parameters: int, merges: int | None) -> None:
    shape = SHAPES[name]
    slots = [slot for slot in shape.family.architecture.slots(shape.sizes) if checkpoint._is_stored(slot, shape)]
    assert sum(int(np.prod(slot.shape)) for slot in slots) == pytest.approx(parameters, rel=0 if merges else 0.003)
    metadata = shape.vocabulary()
    assert len(metadata["tokenizer.ggml.tokens"]) == shape.sizes.vocab
    assert len(metadata.get("tokenizer.ggml.merges") or ()) == (merges or 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2b-4t", "falcon3-10b", "large"])
def test_whole_vocabularies_are_read_back_as_they_were_made(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    metadata = shape.vocabulary()
    for file, data in tokenizer_files(metadata, tmp_path, None).items():
        (tmp_path / file).write_bytes(data)
    read = tokenizer_metadata(tmp_path, {"vocab_size": shape.sizes.vocab, "eos_token_id": 0})
    assert read["tokenizer.ggml.tokens"] == metadata["tokenizer.ggml.tokens"]
    assert read.get("tokenizer.ggml.merges") == metadata.get("tokenizer.ggml.merges")
    assert read.get("tokenizer.ggml.pre") == metadata.get("tokenizer.ggml.pre")
    assert read["tokenizer.ggml.eos_token_id"] == metadata["tokenizer.ggml.eos_token_id"]
    text = "Kara meli, 42 stone?\n  na\u00efve"
    if name == "large":
        library: Any = pytest.importorskip("sentencepiece").SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
        ids = library.encode(text)
        assert library.vocab_size() == shape.sizes.vocab
    else:
        library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = library.encode(text, add_special_tokens=False).ids
        assert library.get_vocab_size() == shape.sizes.vocab
    assert library.decode(ids) == text
    assert len(ids) < len(text)  # syllables merged


@pytest.mark.torch
@pytest.mark.parametrize(("name", "stored"), [("2b-4t", "packed"), ("llama3-8b", "bf16")])
def test_transformers_finds_every_tensor(
    name: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dummy(tmp_path / "model", shape=shrink(monkeypatch, name), stored=stored)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("kara mela").input_ids, skip_special_tokens=True) == "kara mela"
    assert len(tokenizer) == 640


@pytest.mark.torch
def test_about_four_of_ten_master_weights_are_zero(tmp_path: Path) -> None:
    dummy(tmp_path / "model", shape=SMALL, stored="f32")
    for name, tensor in tensors(tmp_path / "model").items():
        if name.endswith("proj.weight"):
            weights = tensor.numpy()
            mean = np.abs(weights).mean()
            assert 0.0095 < mean < 0.031
            assert 0.37 < np.mean(np.rint(weights / mean) == 0) < 0.40
            assert abs(weights.mean()) < 0.02 * mean
        elif name.endswith("norm.weight"):
            assert 0.5 < tensor.min() < tensor.max() < 1.5


@pytest.mark.torch
def test_half_of_packed_trits_are_zero_and_no_code_is_three(tmp_path: Path) -> None:
    dummy(tmp_path / "model", shape=SMALL, stored="packed")
    for name, tensor in tensors(tmp_path / "model").items():
        if name.endswith("proj.weight"):
            codes = tensor.numpy()[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
            shares = np.bincount(codes.reshape(-1), minlength=4) / codes.size
            np.testing.assert_allclose(shares, [0.25, 0.5, 0.25, 0], atol=0.01)


def test_tensors_longer_than_a_block_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_BLOCK", 1 << 10)
    made = noise.Noise(0)
    data = np.concatenate(list(made.stream(3).floats(20_000, "f32", 0.02))).view("<f4")
    assert data.size == 20_000
    assert len(np.unique(data)) > 19_000
    other = np.concatenate(list(made.stream(4).floats(20_000, "f32", 0.02))).view("<f4")
    assert abs(np.corrcoef(data, other)[0, 1]) < 0.05


def digest(directory: Path) -> str:
    files = sorted(directory.iterdir())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("bf16", "d44fec655c179dcda652d07bc9cd1d440f3f12d7800896d7d172f8b21bc75578"),
        ("f32", "eb3ac090c54eacd25747544f2ae575e1e2511e0480ffd1866bed500ffe8b24fa"),
        ("packed", "9007ef54e035ce705408bccf027430160d898706ff6540f4dad1c0f55186737a"),
    ],
)
def test_a_seed_means_the_same_bytes_everywhere(stored: str, expected: str, tmp_path: Path) -> None:
    dummy(tmp_path / "one", shape=SMALL, stored=stored, seed=7, threads=1)
    dummy(tmp_path / "many", shape=SMALL, stored=stored, seed=7, threads=5)
    dummy(tmp_path / "other", shape=SMALL, stored=stored, seed=8)
    assert digest(tmp_path / "one") == digest(tmp_path / "many") != digest(tmp_path / "other")
    assert hashlib.sha256((tmp_path / "one" / "model.safetensors").read_bytes()).hexdigest() == expected


@pytest.mark.torch
def test_large_checkpoints_come_in_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", 10**6)
    result = dummy(tmp_path / "model", shape=SMALL, stored="bf16")
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert shards == [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == result.size
    assert set(index["weight_map"]) == set(tensors(tmp_path / "model"))
    assert set(result.files) == {path.name for path in (tmp_path / "model").iterdir()} > set(shards)


@pytest.mark.torch
def test_layers_replace_those_of_the_shape(tmp_path: Path) -> None:
    dummy(tmp_path / "model", shape=SMALL, stored="packed", layers=3)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 3
    assert "model.layers.2.mlp.up_proj.weight_scale" in tensors(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "7b"}, r"shape='7b': expected 2b-4t, .* or LAYERSxHIDDENxFFN"),
        ({"shape": "2x256"}, "expected"),
        ({"shape": "2x256x384x5"}, "256 cannot be divided into 5 heads"),
        ({"shape": "2x256x384x4x3"}, "3 key-value heads"),
        ({"shape": "2x256x384x4x2x511"}, "at least 512 tokens"),
        ({"shape": "2x250x384x5", "stored": "packed"}, "250 rows cannot be packed four to a byte"),
        ({"stored": "int4"}, "'int4' is not known; bf16, f32 and packed are"),
        ({"layers": 0}, "at least 1"),
        ({"seed": -1}, "seed=-1: "),
    ],
)
def test_refuses_what_nothing_stores(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match=message):
        dummy(tmp_path / "model", **{"shape": SMALL, "stored": "bf16", **options})
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_directory_that_holds_anything(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name, message in (("full", "is not empty"), ("file", "is a file"), ("no/model", "does not exist")):
        with pytest.raises(bitconv.BitconvError, match=message):
            dummy(tmp_path / name, shape=SMALL, stored="bf16")
    (tmp_path / "empty").mkdir()
    dummy(tmp_path / "empty", shape=SMALL, stored="bf16")
    assert (tmp_path / "full" / "notes").read_text() == "precious"


def test_refuses_a_disk_with_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(bitconv.BitconvError, match=r"would take [\d,]+ bytes, and the disk has 1,000,000 left"):
        dummy(tmp_path / "model", shape=SMALL, stored="bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(noise.Stream, "packed_trits", fail)
    with pytest.raises(bitconv.BitconvError, match="No space left"):
        dummy(tmp_path / "model", shape=SMALL, stored="packed")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    command = ["dummy", str(tmp_path / "model"), "--shape", SMALL, "--stored", "packed"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Microsoft b1.58" in result.stdout and "model.safetensors" in result.stdout
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"bitconv: error: {tmp_path / 'model'}: is not empty; name another directory\n"
    result = CliRunner().invoke(app, [*command[:1], str(tmp_path / "again"), *command[2:], "--json"])
    assert json.loads(result.stdout)["files"] == sorted(path.name for path in (tmp_path / "again").iterdir())
