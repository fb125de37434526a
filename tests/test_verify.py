"""What verify finds, and what it does not mistake for a fault."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.commands.verify import Passed
from bitconv.gguf import TensorEntry, encode_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_file import File
from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "bitnet-b1.58-2B-4T-tiny"
TERNARY = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    bitconv.convert(MODEL, path)
    return path


def flipped(good: Path, tmp_path: Path, byte: int, bit: int = 0) -> Path:
    data = bytearray(good.read_bytes())
    data[byte] ^= 1 << bit
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    return bad


def faults_of(result: bitconv.Verification) -> dict[str | None, tuple[str, ...]]:
    """All faults by tensor name, those of the file under None."""
    found: dict[str | None, tuple[str, ...]] = {t.name: t.faults for t in result.tensors if t.faults}
    return found | ({None: result.faults} if result.faults else {})


@pytest.mark.parametrize("type_name", ["i2_s", "f32", "f16", "bf16"])
def test_what_convert_writes_is_right(tmp_path: Path, checkpoint: Path, type_name: str) -> None:
    bitconv.convert(checkpoint, tmp_path / "out.gguf", type=type_name)
    alone = bitconv.verify(tmp_path / "out.gguf")
    against = bitconv.verify(tmp_path / "out.gguf", against=checkpoint)
    assert faults_of(alone) == faults_of(against) == {}
    assert alone.right and against.right
    assert against.checked["scales equal to the checkpoint's"] == Passed(14, 14)


@pytest.mark.parametrize("family", ["1bitllm", "microsoft", "llama"])
def test_the_report_holds_types_shapes_and_scales(tmp_path: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in bitconv.verify(tmp_path / "out.gguf").tensors}
    assert {name: tensors[name].scale for name in model.trits} == {n: float(s) for n, s in model.scales.items()}
    assert {name: tensors[name].shape for name in model.trits} == {n: t.shape for n, t in model.trits.items()}
    assert {tensors[name].type for name in model.trits} == {"i2_s"}


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_tensor_is_found_against_the_checkpoint(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    file = File(good)
    name = data.draw(st.sampled_from(sorted(file.tensors)))
    tensor = file.tensors[name]
    count = int(np.prod(tensor.ne))
    # I2_S: the codes and the scale; the 28 bytes after the scale mean nothing.
    nbytes = {0: count * 4, 1: count * 2, 36: count // 4 + 4}[tensor.type_id]
    byte = tensor.start + data.draw(st.integers(0, nbytes - 1))
    bad = flipped(good, tmp_path, byte, data.draw(st.integers(0, 7)))
    result = bitconv.verify(bad, against=MODEL)
    assert not result.right
    assert faults_of(result).keys() == {name}


def test_the_bytes_after_the_scale_of_i2_s_mean_nothing(good: Path, tmp_path: Path) -> None:
    """Files of others hold junk there."""
    tensor = File(good).tensors[TERNARY]
    junk = tensor.start + int(np.prod(tensor.ne)) // 4 + 4
    data = bytearray(good.read_bytes())
    data[junk : junk + 28] = b"\xff" * 28
    (tmp_path / "junk.gguf").write_bytes(data)
    assert bitconv.verify(tmp_path / "junk.gguf", against=MODEL).right


@pytest.mark.parametrize("slot", [0, 1, 2, 3])
def test_an_invalid_code_is_found_alone(good: Path, tmp_path: Path, slot: int) -> None:
    tensor = File(good).tensors[TERNARY]
    data = bytearray(good.read_bytes())
    row, column = 5, 128 * 3 + 32 * slot + 17
    data[tensor.start + (row * tensor.ne[0] + 128 * 3) // 4 + 17] |= 3 << (6 - 2 * slot)
    (tmp_path / "bad.gguf").write_bytes(data)
    faults = faults_of(bitconv.verify(tmp_path / "bad.gguf"))
    assert faults == {TERNARY: (f"row {row}, column {column} holds an invalid code",)}


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf])
def test_a_scale_that_is_none_is_found_alone(good: Path, tmp_path: Path, scale: float) -> None:
    tensor = File(good).tensors[TERNARY]
    data = bytearray(good.read_bytes())
    struct.pack_into("<f", data, tensor.start + int(np.prod(tensor.ne)) // 4, scale)
    (tmp_path / "bad.gguf").write_bytes(data)
    (fault,) = faults_of(bitconv.verify(tmp_path / "bad.gguf"))[TERNARY]
    assert "not finite and positive" in fault


@pytest.mark.parametrize("name", ["output_norm.weight", "token_embd.weight"])
def test_a_float_that_is_not_finite_is_found_alone(good: Path, tmp_path: Path, name: str) -> None:
    tensor = File(good).tensors[name]
    data = bytearray(good.read_bytes())
    width = {0: 4, 1: 2}[tensor.type_id]
    data[tensor.start + 6 * width : tensor.start + 7 * width] = b"\xff" * width
    (tmp_path / "bad.gguf").write_bytes(data)
    (fault,) = faults_of(bitconv.verify(tmp_path / "bad.gguf"))[name]
    assert "not finite" in fault


@pytest.mark.parametrize("against", [None, MODEL])
def test_the_result_does_not_depend_on_threads_or_on_how_tensors_are_split(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: Path | None
) -> None:
    name = "token_embd.weight"
    tensor = File(good).tensors[name]
    columns = tensor.ne[0]
    data = bytearray(good.read_bytes())
    for row in (5, 9, 200):
        at = tensor.start + 2 * (row * columns + 3)
        data[at : at + 2] = b"\x00\x7e"  # NaN in float16
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    results = []
    calls: list[tuple[int, int]] = []
    for threads, values in ((1, 1 << 40), (1, 2 * columns), (5, 2 * columns), (16, 1024)):
        monkeypatch.setattr("bitconv.commands.verify._JOB_VALUES", values)
        results.append(bitconv.verify(bad, against=against, threads=threads, progress=lambda *call: calls.append(call)))
        assert calls[-1][0] == calls[-1][1]
    assert faults_of(results[0]) == {name: ("element [5, 3] is nan, not finite",)}
    assert all(result == results[0] for result in results)


def test_a_truncated_file_is_wrong(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for keep in [24, 100, 5000, len(data) // 2, len(data) - 33]:
        (tmp_path / "short.gguf").write_bytes(data[:keep])
        result = bitconv.verify(tmp_path / "short.gguf")
        assert not result.right
        assert any("truncated" in fault for faults in faults_of(result).values() for fault in faults), keep


def test_bytes_after_the_last_tensor_are_wrong(good: Path, tmp_path: Path) -> None:
    (tmp_path / "long.gguf").write_bytes(good.read_bytes() + bytes(64))
    assert faults_of(bitconv.verify(tmp_path / "long.gguf")) == {None: ("64 bytes follow the last tensor",)}
    (tmp_path / "long.gguf").write_bytes(good.read_bytes() + b"1")
    assert faults_of(bitconv.verify(tmp_path / "long.gguf")) == {None: ("1 bytes follow the last tensor",)}


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGML" + bytes(100), b"PK\x03\x04" + bytes(100)])
def test_what_is_not_gguf_cannot_be_judged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(bitconv.BitconvError, match="not a GGUF file"):
        bitconv.verify(tmp_path / "other")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_other_versions_cannot_be_judged(good: Path, tmp_path: Path, version: int) -> None:
    data = bytearray(good.read_bytes())
    struct.pack_into("<I", data, 4, version)
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(bitconv.BitconvError, match="version"):
        bitconv.verify(tmp_path / "other.gguf")


class Rebuilt:
    """A good file taken apart, to be changed in its metadata or tensors and written again."""

    def __init__(self, good: Path) -> None:
        from bitconv.gguf import read_gguf

        file = read_gguf(good)
        data = good.read_bytes()
        self.metadata = dict(file.metadata)
        ends = [t.offset for t in file.tensors[1:]] + [file.size]
        self.tensors = [
            [t.name, t.shape, t.type_id, data[t.offset : end]] for t, end in zip(file.tensors, ends, strict=True)
        ]

    def tensor(self, name: str) -> list:
        return next(tensor for tensor in self.tensors if tensor[0] == name)

    def write(self, path: Path) -> Path:
        entries, body = [], b""
        for name, shape, type_id, data in self.tensors:
            entries.append(TensorEntry(name, shape, type_id, len(body)))
            body += data + bytes(-len(data) % 32)
        path.write_bytes(encode_header(self.metadata, entries) + body)
        return path


@pytest.fixture
def rebuilt(good: Path) -> Rebuilt:
    return Rebuilt(good)


def test_taking_a_file_apart_changes_nothing(rebuilt: Rebuilt, good: Path, tmp_path: Path) -> None:
    assert rebuilt.write(tmp_path / "same.gguf").read_bytes() == good.read_bytes()


def test_a_missing_tensor_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensors.remove(rebuilt.tensor("blk.0.attn_sub_norm.weight"))
    result = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert result.faults == ("tensor blk.0.attn_sub_norm.weight is missing",)


def test_a_tensor_that_the_architecture_does_not_have_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensors.append(["blk.0.attn_q.bias", (512,), 0, bytes(2048)])
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))["blk.0.attn_q.bias"]
    assert "no tensor of the architecture" in fault


def test_a_head_of_its_own_on_the_bitnet_graph_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    """Runners load it and multiply by the embedding all the same: it is right only where it is the embedding."""
    rebuilt.tensors.append(["output.weight", *rebuilt.tensor("token_embd.weight")[1:]])
    assert faults_of(bitconv.verify(rebuilt.write(tmp_path / "good.gguf"), against=MODEL)) == {}
    head = rebuilt.tensors[-1]
    head[3] = head[3][:-2] + bytes([head[3][-2] ^ 1]) + head[3][-1:]
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))["output.weight"]
    assert "differs from token_embd.weight" in fault


def test_a_shape_that_the_metadata_contradicts_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensor("blk.0.ffn_up.weight")[1] = (512, 1024)
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))["blk.0.ffn_up.weight"]
    assert "has shape (512, 1024), the metadata implies (1024, 512)" in fault


def test_a_norm_in_float16_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    norm = rebuilt.tensor("output_norm.weight")
    norm[2:] = [1, np.frombuffer(norm[3][: 512 * 4], np.float32).astype(np.float16).tobytes()]
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))["output_norm.weight"]
    assert "f16" in fault


def test_a_quantized_projection_of_another_kind_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensor(TERNARY)[2:] = [14, bytes(512 * 1024 // 256 * 210)]
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))[TERNARY]
    assert "q6_k" in fault


def test_float_weights_that_are_not_ternary_are_wrong(tmp_path: Path) -> None:
    """What the official converter does: master weights in F16, called I2_S."""
    bitconv.convert(MODEL, tmp_path / "f16.gguf", type="f16")
    rebuilt = Rebuilt(tmp_path / "f16.gguf")
    masters = np.random.default_rng(0).standard_normal(512 * 512).astype(np.float16)
    rebuilt.tensor("blk.0.attn_q.weight")[3] = masters.tobytes()
    rebuilt.metadata["general.file_type"] = np.uint32(40)
    faults = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))
    assert "no ternary weights" in faults["blk.0.attn_q.weight"][0]
    assert faults[None] == ("general.file_type says i2_s, the ternary tensors are f16",)


def test_i2_s_rows_that_are_not_whole_blocks_are_wrong(tmp_path: Path) -> None:
    """The official tools write this and exit with 0."""
    model = make_checkpoint(tmp_path / "model", "microsoft", ffn=320, layers=1)
    bitconv.convert(model.path, tmp_path / "f16.gguf", type="f16")
    rebuilt = Rebuilt(tmp_path / "f16.gguf")
    rebuilt.tensor("blk.0.ffn_down.weight")[2:] = [36, bytes(256 * 320 // 4 + 32)]
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))["blk.0.ffn_down.weight"]
    assert "multiples of 128" in fault


@pytest.mark.parametrize(
    "key",
    [
        "bitnet-b1.58.block_count",
        "bitnet-b1.58.embedding_length",
        "bitnet-b1.58.attention.layer_norm_rms_epsilon",
        "general.architecture",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.pre",
    ],
)
def test_a_missing_key_is_wrong(rebuilt: Rebuilt, tmp_path: Path, key: str) -> None:
    del rebuilt.metadata[key]
    result = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert any(key in fault for fault in result.faults)


def test_a_token_list_of_another_length_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    tokens = rebuilt.metadata["tokenizer.ggml.tokens"]
    rebuilt.metadata["tokenizer.ggml.tokens"] = tokens[:-1]
    result = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert result.faults == ("tokenizer.ggml.tokens has 1279 entries, the vocabulary 1280",)


def test_a_special_token_beyond_the_vocabulary_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["tokenizer.ggml.eos_token_id"] = np.uint32(1280)
    assert not bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).right


def test_a_huge_block_count_is_wrong_at_once(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["bitnet-b1.58.block_count"] = np.uint32(2**31 + 2)
    assert not bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).right


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bitnet-b1.58.rope.freq_base", np.float32(10000)),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", np.float32(1e-6)),
        ("tokenizer.ggml.bos_token_id", np.uint32(3)),
        ("tokenizer.ggml.pre", "gpt-2"),
    ],
)
def test_metadata_that_is_not_the_checkpoint_s_is_found_against_it(
    rebuilt: Rebuilt, tmp_path: Path, key: str, value: object
) -> None:
    rebuilt.metadata[key] = value
    bad = rebuilt.write(tmp_path / "bad.gguf")
    assert bitconv.verify(bad).right
    assert bitconv.verify(bad, against=MODEL).faults == (f"{key} is not what the checkpoint says",)


# What runners take where these are missing is what the checkpoint says.
DEFAULTS = {
    "bitnet-b1.58.vocab_size",
    "bitnet-b1.58.rope.dimension_count",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.eot_token_id",  # <|eot_id|>, which they find by its text
}


def test_a_key_without_which_a_runner_does_otherwise_is_missed_against_the_checkpoint(
    good: Path, rebuilt: Rebuilt, tmp_path: Path
) -> None:
    whole = dict(rebuilt.metadata)
    for key in [key for key in whole if not key.startswith("general.")]:
        rebuilt.metadata = {other: value for other, value in whole.items() if other != key}
        assert bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"), against=MODEL).right == (key in DEFAULTS), key


def places_of_keys(path: Path) -> dict[str, tuple[int, int]]:
    """(start, end) of each metadata key with its type and value, in bytes of the file."""
    file = File.__new__(File)
    file.data, file.at = path.read_bytes(), 16
    places = {}
    for _ in range(file.take("<Q")[0]):
        start, key = file.at, file.string()
        file.value(file.take("<I")[0])
        places[key] = (start, file.at)
    return places


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_size_or_of_the_vocabulary_is_found_against_the_checkpoint(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    places = {key: place for key, place in places_of_keys(good).items() if not key.startswith("general.")}
    key = data.draw(st.sampled_from(sorted(places.keys() - DEFAULTS)))
    start, end = places[key]
    bad = flipped(good, tmp_path, data.draw(st.integers(start, end - 1)), data.draw(st.integers(0, 7)))
    try:
        assert not bitconv.verify(bad, against=MODEL).right
    except bitconv.BitconvError as error:
        assert str(bad) in str(error)  # it cannot be judged


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bitnet-b1.58.rope.scaling.factor", np.float32(8)),
        ("bitnet-b1.58.attention.scale", np.float32(0.5)),
        ("bitnet-b1.58.logit_scale", np.float32(0.5)),
        ("bitnet-b1.58.attention.sliding_window", np.uint32(16)),
    ],
)
def test_a_key_that_the_checkpoint_does_not_ask_for_is_found_against_it(
    rebuilt: Rebuilt, tmp_path: Path, key: str, value: object
) -> None:
    rebuilt.metadata |= {"bitnet-b1.58.rope.scaling.type": "linear"} if "scaling" in key else {}
    rebuilt.metadata[key] = value
    bad = rebuilt.write(tmp_path / "bad.gguf")
    alone = bitconv.verify(bad)
    assert alone.right
    assert any(key in line for line in alone.warnings) == ("scaling" not in key)
    assert bitconv.verify(bad, strict=True).right == (not alone.warnings)
    assert any(key in fault for fault in bitconv.verify(bad, against=MODEL).faults)


def test_a_linear_rope_scaling_of_1_is_none(rebuilt: Rebuilt, tmp_path: Path) -> None:
    """llama.cpp's converter writes it for every BitNet model."""
    scaling = {"bitnet-b1.58.rope.scaling.type": "linear", "bitnet-b1.58.rope.scaling.factor": np.float32(1)}
    rebuilt.metadata |= scaling
    assert faults_of(bitconv.verify(rebuilt.write(tmp_path / "good.gguf"), against=MODEL)) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bitnet-b1.58.block_count", np.float32(2)),
        ("bitnet-b1.58.attention.head_count", np.float32(1e-40)),
        ("bitnet-b1.58.embedding_length", np.int64(512)),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", np.float32(np.nan)),
        ("bitnet-b1.58.attention.layer_norm_rms_epsilon", np.uint32(1)),
        ("bitnet-b1.58.rope.freq_base", np.float64(500000)),
        ("bitnet-b1.58.rope.freq_base", np.float32(np.inf)),
        ("bitnet-b1.58.rope.dimension_count", np.uint32(32)),
        ("bitnet-b1.58.expert_count", np.array([], np.uint32)),
        ("general.file_type", np.uint32(999)),
        ("general.alignment", np.uint32(24)),
        ("tokenizer.ggml.model", ["gpt2"]),
        ("tokenizer.ggml.pre", np.int32(1)),
        ("tokenizer.ggml.tokens", np.uint8(0)),
        ("tokenizer.ggml.merges", np.array([1, 2], np.int32)),
        ("tokenizer.ggml.token_type", np.full(1280, 1, np.uint32)),
        ("tokenizer.ggml.token_type", np.full(1280, 99, np.int32)),
        ("tokenizer.ggml.add_bos_token", np.uint32(1)),
        ("tokenizer.ggml.eos_token_id", np.int32(1)),
    ],
    ids=str,
)
def test_a_value_that_runners_do_not_read_is_found_alone(
    rebuilt: Rebuilt, tmp_path: Path, key: str, value: object
) -> None:
    rebuilt.metadata[key] = value
    result = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert any(key in fault for fault in result.faults)


@pytest.mark.parametrize("name", ["phi-3", "A Phi3 of mine"])
def test_a_name_at_which_no_runner_loads_the_vocabulary_is_wrong(rebuilt: Rebuilt, tmp_path: Path, name: str) -> None:
    rebuilt.metadata["general.name"] = name
    bad = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))
    assert len(bad.faults) == 1 and "general.name" in bad.faults[0] and "</s>" in bad.faults[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.add_sep_token", True),
        ("tokenizer.ggml.pre", "jina-v2-code"),  # with which llama.cpp adds one by itself
        ("tokenizer.ggml.pre", "roberta-bpe"),
    ],
)
def test_a_separator_that_there_is_not_is_found_alone(
    rebuilt: Rebuilt, tmp_path: Path, key: str, value: object
) -> None:
    rebuilt.metadata[key] = value
    (fault,) = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults
    assert "seperator_token_id is missing" in fault


def test_a_rope_scaling_that_is_not_known_cannot_be_judged(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["bitnet-b1.58.rope.scaling.type"] = "longrope"
    with pytest.raises(bitconv.BitconvError, match="longrope"):
        bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"))


def test_tokens_that_stand_twice_are_found_alone(rebuilt: Rebuilt, tmp_path: Path) -> None:
    """llama.cpp stops at an assertion."""
    tokens = rebuilt.metadata["tokenizer.ggml.tokens"]
    rebuilt.metadata["tokenizer.ggml.tokens"] = [*tokens[:-1], tokens[1272]]
    assert any("a second time" in fault for fault in bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults)


@pytest.mark.parametrize("merge", ["ab", " a", "\u0120 \u4e00", ""])
def test_a_merge_that_makes_no_token_is_found_alone(rebuilt: Rebuilt, tmp_path: Path, merge: str) -> None:
    merges = rebuilt.metadata["tokenizer.ggml.merges"]
    rebuilt.metadata["tokenizer.ggml.merges"] = [*merges[:5], merge, *merges[6:]]
    (fault,) = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults
    assert fault.startswith("tokenizer.ggml.merges holds as merge 5")


def test_an_offset_beyond_the_file_is_wrong(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", layers=1)
    bitconv.convert(model.path, tmp_path / "good.gguf", type="q2_0")
    data = bytearray((tmp_path / "good.gguf").read_bytes())
    name = b"blk.0.ffn_up.scale"
    data[data.index(name) + len(name) + 4 + 8 + 4 + 7] ^= 0x80  # the highest byte of its offset
    (tmp_path / "bad.gguf").write_bytes(data)
    faults = faults_of(bitconv.verify(tmp_path / "bad.gguf"))
    assert {"blk.0.ffn_up.weight", "blk.0.ffn_up.scale"} <= faults.keys()


def test_a_scale_tensor_that_no_runner_reads_is_wrong(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensors.append(["blk.1.ffn_down.scale", (1,), 0, np.float32(1).tobytes()])
    (fault,) = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")))[TERNARY]
    assert "beside a .scale tensor" in fault


def test_the_older_name_of_the_architecture_is_the_same_architecture(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata = {
        key.replace("bitnet-b1.58.", "bitnet-25."): value for key, value in rebuilt.metadata.items()
    } | {"general.architecture": "bitnet-25"}
    older = rebuilt.write(tmp_path / "older.gguf")
    assert faults_of(bitconv.verify(older, against=MODEL)) == {}


def test_another_model_of_the_same_sizes_is_found(good: Path, tmp_path: Path) -> None:
    """A checkpoint with two layers swapped."""
    model = make_checkpoint(tmp_path / "model", "microsoft", packed=True)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    one, two = rebuilt.tensor("blk.0.ffn_up.weight"), rebuilt.tensor("blk.1.ffn_up.weight")
    one[3], two[3] = two[3], one[3]
    swapped = rebuilt.write(tmp_path / "swapped.gguf")
    assert bitconv.verify(swapped).right
    assert faults_of(bitconv.verify(swapped, against=model.path)).keys() == {one[0], two[0]}


def test_unpermuted_rows_of_a_llama_are_found(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    rows = rebuilt.tensor("blk.0.attn_q.weight")
    codes = np.frombuffer(rows[3][: 256 * 64], np.uint8).reshape(4, 32, 2, 64)
    rows[3] = codes.swapaxes(1, 2).tobytes() + rows[3][256 * 64 :]
    faults = faults_of(bitconv.verify(rebuilt.write(tmp_path / "bad.gguf"), against=model.path))
    assert faults.keys() == {"blk.0.attn_q.weight"}
    assert "the trit is not the checkpoint's" in faults["blk.0.attn_q.weight"][0]


def test_an_unknown_architecture_cannot_be_judged(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.metadata["general.architecture"] = "mamba"
    with pytest.raises(bitconv.BitconvError, match="mamba"):
        bitconv.verify(rebuilt.write(tmp_path / "other.gguf"))


def test_an_unknown_tensor_type_cannot_be_judged(rebuilt: Rebuilt, tmp_path: Path) -> None:
    rebuilt.tensor(TERNARY)[2] = 99
    with pytest.raises(bitconv.BitconvError, match=f"{TERNARY}: tensor type 99"):
        bitconv.verify(rebuilt.write(tmp_path / "other.gguf"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_ends_in_anything_but_a_verdict(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(good.read_bytes())
    end = File(good).tensors["token_embd.weight"].start
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged.gguf").write_bytes(content)
    try:
        result = bitconv.verify(tmp_path / "damaged.gguf")
    except bitconv.BitconvError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(result.right, bool)


def test_stop_tokens_that_no_file_can_hold_are_not_covered(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    settings = {"eos_token_id": [1273, 5, 6, 7]}
    (model.path / "generation_config.json").write_text(json.dumps(settings))
    notes = bitconv.convert(model.path, tmp_path / "out.gguf").notes
    assert len(notes) == 1 and "runners will not stop at" in notes[0]
    result = bitconv.verify(tmp_path / "out.gguf", against=model.path)
    assert result.right and notes[0] in result.not_covered
    assert notes[0] not in bitconv.verify(tmp_path / "out.gguf").not_covered


def test_what_newer_runners_stop_at_by_its_text_is_said(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (model.path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}))
    (model.path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6, 1273]}))
    (note,) = bitconv.convert(model.path, tmp_path / "out.gguf").notes
    assert "<|end_of_text|>" in note and "llama.cpp of 2026 does, by their texts, at 1 of them" in note
