"""What a verdict says: errors and warnings, what passed, the digests, its JSON; and the table of metadata keys."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.commands.verify import Passed
from bitconv.gguf import TensorEntry, encode_header
from bitconv.models.hyperparameters import from_metadata
from bitconv.packed.keys import IDLE_KEYS, KEYS
from bitconv.system.errors import MAX_FAULTS

from gguf_file import File
from synthetic import FIXTURES, Synthetic, make_checkpoint
from test_verify import Rebuilt, faults_of

DOCS = Path(__file__).parent.parent / "docs"
DOWN = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", "llama", hidden=512, ffn=1024)


@pytest.fixture(scope="module")
def good(model: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    bitconv.convert(model.path, path)
    return path


@pytest.fixture
def rebuilt(good: Path) -> Rebuilt:
    return Rebuilt(good)


def packed_rows(trits: np.ndarray) -> bytes:
    """As docs/verification.md defines them."""
    rows = np.zeros((len(trits), -(-trits.shape[1] // 128) * 128), np.uint8) + 1
    rows[:, : trits.shape[1]] = trits + 1
    quarters = rows.reshape(-1, 4, 32)
    return bytes((quarters[:, 0] << 6 | quarters[:, 1] << 4 | quarters[:, 2] << 2 | quarters[:, 3]).tobytes())


def digests(trits: dict[str, np.ndarray], scales: dict[str, np.ndarray]) -> tuple[str, str]:
    first, second = hashlib.sha256(), hashlib.sha256()
    for name in sorted(trits, key=str.encode):
        head = f"{name} {trits[name].shape[0]}x{trits[name].shape[1]}\n".encode()
        head += hashlib.sha256(packed_rows(trits[name])).digest()
        first.update(head)
        second.update(head + hashlib.sha256(np.asarray(scales[name], "<f4").tobytes()).digest())
    return first.hexdigest(), second.hexdigest()


def of(result: bitconv.Verification) -> tuple[str, str]:
    assert result.digests is not None
    return result.digests.trits, result.digests.trits_and_scales


@pytest.mark.parametrize("type_name", ["i2_s", "tl1", "tl2", "tq2_0", "q2_0", "iq2_bn", "f32", "bf16"])
def test_the_digests_are_of_trits_and_scales_whatever_the_layout(
    model: Synthetic, tmp_path: Path, type_name: str
) -> None:
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    expected = digests(model.trits, model.scales)
    found = of(bitconv.verify(tmp_path / "out.gguf"))
    assert found[0] == expected[0]
    # bfloat16 rounds the scales, tl1 and the others hold them or have them in a tensor beside.
    assert (found[1] == expected[1]) == (type_name != "bf16")


def test_the_digests_of_rows_that_are_not_whole_blocks_and_of_zeros(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=320, layers=1)
    found = []
    for type_name in ("q2_0", "f16"):
        bitconv.convert(model.path, tmp_path / f"{type_name}.gguf", type=type_name)
        found.append(of(bitconv.verify(tmp_path / f"{type_name}.gguf"))[0])
    assert found == [digests(model.trits, model.scales)[0]] * 2


def test_one_trit_changes_the_digest_and_is_counted(model: Synthetic, good: Path, tmp_path: Path) -> None:
    tensor = File(good).tensors[DOWN]
    data = bytearray(good.read_bytes())
    code = data[tensor.start] >> 6
    data[tensor.start] ^= (code ^ (code + 1) % 3) << 6
    (tmp_path / "bad.gguf").write_bytes(data)
    result = bitconv.verify(tmp_path / "bad.gguf", against=model.path)
    assert result.faults == () and faults_of(result).keys() == {DOWN}
    trits = sum(t.size for t in model.trits.values())
    assert result.checked["trits equal to the checkpoint's"] == Passed(trits - model.trits[DOWN].size, trits)
    assert result.checked["scales equal to the checkpoint's"] == Passed(13, 14)
    assert of(result) == of(bitconv.verify(tmp_path / "bad.gguf"))
    assert of(result)[0] != digests(model.trits, model.scales)[0]


def test_another_model_is_said_to_look_like_one(good: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "llama", hidden=512, ffn=1024, seed=5)
    result = bitconv.verify(good, against=other.path)
    assert result.faults[0].startswith("this looks like another model: ")
    assert result.checked["trits equal to the checkpoint's"].passed == 0


@pytest.mark.parametrize("through", ["tq1_0", "iq1_bn", "bf16"])
def test_scales_rounded_on_the_way_are_a_warning_and_wrong_under_strict(
    model: Synthetic, good: Path, tmp_path: Path, through: str
) -> None:
    bitconv.repack(good, tmp_path / "rounded.gguf", type=through, scale_in_blocks=through == "tq1_0")
    bitconv.repack(tmp_path / "rounded.gguf", tmp_path / "back.gguf", type="i2_s")
    result = bitconv.verify(tmp_path / "back.gguf", against=model.path)
    assert result.right
    warned = [t for t in result.tensors if t.warnings]
    assert warned and all("every trit is the checkpoint's" in t.warnings[0] for t in warned)
    assert result.checked["scales equal to the checkpoint's"] == Passed(14 - len(warned), 14)
    assert not bitconv.verify(tmp_path / "back.gguf", against=model.path, strict=True).right


@pytest.mark.parametrize("key", ["somebody.note", "llama.attention.sliding_window", "general.tensor_extra.name"])
def test_a_key_that_is_not_known_is_a_warning_alone_and_a_fault_against_the_checkpoint(
    model: Synthetic, rebuilt: Rebuilt, tmp_path: Path, key: str
) -> None:
    rebuilt.metadata[key] = np.uint32(16)
    file = rebuilt.write(tmp_path / "other.gguf")
    alone = bitconv.verify(file)
    assert alone.right and len(alone.warnings) == 1 and key in alone.warnings[0]
    assert not bitconv.verify(file, strict=True).right
    assert bitconv.verify(file, against=model.path).faults == (f"{key} is a key that the checkpoint does not ask for",)


@pytest.mark.parametrize("pattern", IDLE_KEYS)
def test_keys_by_which_no_runner_computes_are_nothing(
    model: Synthetic, rebuilt: Rebuilt, tmp_path: Path, pattern: str
) -> None:
    if not pattern.startswith("bitconv."):  # which are checked
        rebuilt.metadata[pattern.replace("*", "x")] = "anything"
    result = bitconv.verify(rebuilt.write(tmp_path / "file.gguf"), against=model.path, strict=True)
    assert result.right


@pytest.mark.parametrize("key", [key for key in KEYS if key.type != "any"], ids=lambda key: key.name)
@pytest.mark.parametrize("value", [np.int8(1), np.array([1], np.uint8), np.array([], np.float64)], ids=str)
def test_a_known_key_of_another_type_is_wrong_alone_and_refused(
    rebuilt: Rebuilt, tmp_path: Path, key: Any, value: Any
) -> None:
    name = key.name.replace("ARCH", "llama").replace("*_token_id", "eom_token_id").replace("*", "x")
    rebuilt.metadata[name] = value
    file = rebuilt.write(tmp_path / "bad.gguf")
    assert any(name in fault for fault in bitconv.verify(file).faults)
    for call in (
        lambda: bitconv.repack(file, tmp_path / "out.gguf", type="tq2_0"),
        lambda: bitconv.export(file, tmp_path / "out"),
        lambda: bitconv.evaluate(file, FIXTURES / "eval.txt"),
    ):
        with pytest.raises(bitconv.BitconvError, match=name):
            call()


def test_a_name_at_which_runners_tokenize_otherwise_is_told(model: Synthetic, rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["general.name"] = "My Phi-3 ternary"
    for token_id, text in enumerate(("</s>", "<unk>", "<s>", "<|endoftext|>"), 1276):  # which they look for then
        rebuilt.metadata["tokenizer.ggml.tokens"][token_id] = text
    file = rebuilt.write(tmp_path / "file.gguf")
    assert bitconv.verify(file).right and "general.name" in bitconv.verify(file).warnings[0]
    assert any("general.name" in fault for fault in bitconv.verify(file, against=model.path).faults)


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"scaling.factor": 4}, 4),
        ({"scale_linear": 4}, 4),
        ({"scaling.factor": 2, "scale_linear": 4}, 2),
        ({"scaling.factor": 0}, None),
        ({"scaling.factor": 4, "scaling.type": "none"}, None),
        ({"scaling.factor": 4, "scaling.type": "linear"}, 4),
        ({"scaling.type": "linear"}, None),
    ],
)
def test_rope_factors_are_read_as_runners_read_them(
    model: Synthetic, rebuilt: Rebuilt, tmp_path: Path, keys: dict[str, Any], factor: float | None
) -> None:
    """hparams of llama.cpp, ik_llama.cpp and bitnet.cpp: linear where no type is stated."""
    for key, value in keys.items():
        rebuilt.metadata[f"llama.rope.{key}"] = value if isinstance(value, str) else np.float32(value)
    assert from_metadata(rebuilt.metadata, "llama", "x").rope_linear_factor == factor
    file = rebuilt.write(tmp_path / "file.gguf")
    assert bitconv.verify(file, against=model.path).right == (factor is None)


def test_what_is_wrong_with_a_vocabulary_is_said_when_it_is_carried_over(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["tokenizer.ggml.eos_token_id"] = np.uint32(100_000)
    file = rebuilt.write(tmp_path / "odd.gguf")
    (warning,) = bitconv.repack(file, tmp_path / "out.gguf", type="tq2_0").warnings
    assert warning == bitconv.verify(file).faults[0]


def verify_json(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-c", "from bitconv.cli import main; main()", "verify", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    return result


@pytest.mark.slow
def test_the_json_is_what_its_schema_says(model: Synthetic, good: Path, rebuilt: Rebuilt, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((DOCS / "verification.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    rebuilt.metadata["somebody.note"] = "x"
    rebuilt.metadata["general.file_type"] = np.int32(1)
    rebuilt.tensor(DOWN)[3] = bytes([255]) * len(rebuilt.tensor(DOWN)[3])
    bad = rebuilt.write(tmp_path / "bad.gguf")
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:500])
    for arguments in ((good,), (good, "--against", model.path), (bad, "--strict"), (tmp_path / "cut.gguf",)):
        result = verify_json(*arguments)
        jsonschema.validate(result, schema)
        assert result["right"] == (arguments[0] == good)


def hostile(path: Path, count: int) -> Path:
    """A header that lists tensors of no use."""
    tensors = [TensorEntry(f"t{number}", (1,), 0, 32 * number) for number in range(count)]
    metadata = {"general.architecture": "llama"}
    path.write_bytes(encode_header(metadata, tensors))
    return path


def test_faults_are_bounded(rebuilt: Rebuilt, tmp_path: Path) -> None:
    for number in range(300):
        rebuilt.metadata[f"other.{number}"] = "x"
    rebuilt.metadata["llama.block_count"] = np.uint32(20)
    result = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert len(result.warnings) == MAX_FAULTS + 1 and result.warnings[-1] == "and 250 more"
    assert len(result.faults) == MAX_FAULTS + 1
    assert "lists 70000 tensors" in bitconv.verify(hostile(tmp_path / "hostile.gguf", 70_000)).faults[0]


def test_the_docs_list_every_key() -> None:
    text = (DOCS / "verification.md").read_text()
    for key in KEYS:
        usual = "" if key.usual is None else str(key.usual).lower() if isinstance(key.usual, bool) else str(key.usual)
        assert f"| `{key.name}` | {key.type} | {usual} |" in text, key
    for name in IDLE_KEYS:
        assert f"`{name}`" in text, name


def test_what_an_export_leaves_behind_is_said(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["general.sampling.temp"] = np.float32(0.5)
    (warning,) = bitconv.export(rebuilt.write(tmp_path / "in.gguf"), tmp_path / "out").warnings
    assert warning.startswith("general.sampling.temp is not carried over")
