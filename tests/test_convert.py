"""What convert writes: every byte of every tensor, derived again by the tests' own code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import bitconv
import gguf
import numpy as np
import pytest

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import FIXTURES, Synthetic, make_checkpoint, rope_factors, round_to_bf16

SOURCES = [
    ("1bitllm", {"dtype": "f32", "shards": 2}),
    ("1bitllm", {"dtype": "bf16"}),
    ("1bitllm", {"dtype": "f16", "heads": 8, "kv_heads": 8}),
    ("microsoft", {"packed": True}),
    ("microsoft", {"packed": True, "dtype": "f32", "scalar_scale": True, "shards": 3}),
    ("microsoft", {"packed": False}),
    ("microsoft", {"packed": False, "dtype": "f16", "hidden": 512, "layers": 3, "shards": 2}),
    ("llama", {}),
    ("llama", {"dtype": "f32", "scalar_scale": True}),
    ("llama", {"dtype": "f16", "head_dim": 128, "kv_heads": 1, "shards": 2}),
]


def expected_i2_s(model: Synthetic, name: str) -> bytes:
    return i2_s_codes(model.trits[name]) + np.float32(model.scales[name]).tobytes() + bytes(28)


def i2_s_codes(trits: np.ndarray) -> bytes:
    return ROW_LAYOUTS["i2_s"].pack(trits, 0).tobytes()


@pytest.mark.parametrize(("family", "options"), SOURCES)
def test_every_tensor_is_what_the_formats_define(tmp_path: Path, family: str, options: dict) -> None:
    model = make_checkpoint(tmp_path / "model", family, **options)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    file = File(tmp_path / "out.gguf")
    assert file.tensors.keys() == model.trits.keys() | model.dense.keys()
    for name, trits in model.trits.items():
        assert file.tensors[name].type_id == 36
        assert file.tensors[name].ne == trits.shape[::-1]
        assert file.bytes(name, trits.size // 4 + 32) == expected_i2_s(model, name), name
    for name, values in model.dense.items():
        dtype, type_id = (np.float16, 1) if values.ndim == 2 else (np.float32, 0)
        assert file.tensors[name].type_id == type_id
        assert file.tensors[name].ne == values.shape[::-1]
        assert file.bytes(name, values.size * np.dtype(dtype).itemsize) == values.astype(dtype).tobytes(), name


@pytest.mark.parametrize(("family", "options"), SOURCES)
def test_tensors_follow_each_other_aligned_and_end_the_file(tmp_path: Path, family: str, options: dict) -> None:
    model = make_checkpoint(tmp_path / "model", family, **options)
    result = bitconv.convert(model.path, tmp_path / "out.gguf")
    file = File(tmp_path / "out.gguf")
    end = min(tensor.start for tensor in file.tensors.values())
    for tensor in result.tensors:
        assert file.tensors[tensor.name].start == tensor.offset == end
        end = (tensor.offset + tensor.nbytes + 31) // 32 * 32
    assert len(file.data) == result.size == end


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("family", ["1bitllm", "microsoft", "llama"])
def test_float_types_hold_the_unpacked_ternary_model(tmp_path: Path, family: str, type_name: str) -> None:
    model = make_checkpoint(tmp_path / "model", family)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="bf16")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name, trits in model.trits.items():
        wanted = trits.astype(np.float32) * model.scales[name]
        wanted = round_to_bf16(wanted) if type_name == "bf16" else wanted.astype(type_name.replace("f", "float"))
        assert tensors[name].tensor_type.name == type_name.upper()
        assert np.array_equal(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), wanted.astype(np.float32))
    for name, values in model.dense.items():
        wanted = round_to_bf16(values) if values.ndim == 2 else values
        assert np.array_equal(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), wanted), name


def test_ties_round_to_even_with_the_inverse_of_the_mean(tmp_path: Path) -> None:
    """A weight of exactly half the mean is 0, and the product with 1/mean decides, not the quotient by mean."""
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model.path / "model.safetensors")
    weights = np.full((256, 256), 0.75, np.float32)
    weights[:, ::2] = 0.25  # the mean is exactly 0.5: these are exactly half of it
    weights[0, 1] = -0.75
    tensors[name] = weights
    save_file(tensors, model.path / "model.safetensors")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    file = File(tmp_path / "out.gguf")
    trits = np.ones((256, 256), np.int8)
    trits[:, ::2] = 0
    trits[0, 1] = -1
    assert file.bytes("blk.0.attn_q.weight", trits.size // 4) == i2_s_codes(trits)


def test_dead_weights_and_rows_of_zeros_convert(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)
    tensors = load_file(model.path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][:5] = 1e-34
    tensors["model.layers.0.mlp.gate_proj.weight"][:] = 0
    save_file(tensors, model.path / "model.safetensors")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    file = File(tmp_path / "out.gguf")
    assert file.bytes("blk.0.ffn_up.weight", 5 * 256 // 4) == b"\x55" * (5 * 256 // 4)
    gate = file.bytes("blk.0.ffn_gate.weight", 384 * 256 // 4 + 4)
    assert gate == b"\x55" * (384 * 256 // 4) + np.float32(1e-5).tobytes()


def test_the_bytes_do_not_depend_on_threads_or_run(tmp_path: Path, checkpoint: Path) -> None:
    files = []
    for run, threads in enumerate([1, 8, 1, 8]):
        bitconv.convert(checkpoint, tmp_path / f"{run}.gguf", threads=threads)
        files.append((tmp_path / f"{run}.gguf").read_bytes())
    assert files.count(files[0]) == 4


def test_one_file_and_shards_give_the_same_tensors(tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one" / "model", "llama", shards=1)
    many = make_checkpoint(tmp_path / "many" / "model", "llama", shards=5)
    bitconv.convert(one.path, tmp_path / "one.gguf")
    bitconv.convert(many.path, tmp_path / "many.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_the_architecture_keys_say_the_sizes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", head_dim=128, heads=4, kv_heads=2)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    metadata = File(tmp_path / "out.gguf").metadata
    assert metadata["general.architecture"] == "llama"
    assert {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")} == {
        "vocab_size": 1280,
        "context_length": 512,
        "embedding_length": 256,
        "block_count": 2,
        "feed_forward_length": 384,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": np.float32(1e-6),
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 128,
        "rope.freq_base": 50000.0,
    }


def test_a_head_dimension_of_hidden_over_heads_is_left_to_the_runner(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert "llama.attention.key_length" not in File(tmp_path / "out.gguf").metadata


def test_general_keys_come_from_the_directory_and_the_model_card(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "Ternary-Toy-0.5M-Chat", "microsoft")
    (model.path / "README.md").write_text(
        "---\nlicense: mit\nlicense_link: https://example.com/LICENSE\nbase_model: someone/toy-base\n"
        "repo_url: https://example.com/toy\ntags:\n- ternary\nlanguage: en\n---\n# Toy\n"
    )
    bitconv.convert(model.path, tmp_path / "out.gguf")
    metadata = File(tmp_path / "out.gguf").metadata
    parameters = sum(t.size for t in model.trits.values()) + sum(d.size for d in model.dense.values())
    assert metadata["general.name"] == "Ternary Toy 0.5M Chat"
    assert metadata["general.basename"] == "Ternary-Toy"
    assert metadata["general.size_label"] == gguf.size_label(parameters, 0, 0, 0) == "1.3M"
    assert metadata["general.license"] == "mit"
    assert metadata["general.source.repo_url"] == "https://example.com/toy"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/someone/toy-base"
    assert metadata["general.tags"] == ["ternary"]
    assert metadata["general.quantization_version"] == 2


def test_a_name_at_which_runners_do_otherwise_is_refused_or_noted(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "Phi3-like", "llama").path
    with pytest.raises(bitconv.BitconvError, match=r"phi3, .* token </s>.*model_name in the front matter of README.md"):
        bitconv.convert(model, tmp_path / "out.gguf")
    names = ("start_header_id", "end_header_id", "reserved_special_token_0", "reserved_special_token_1")
    for file in (model / "tokenizer.json", model / "tokenizer_config.json"):
        for name, text in zip(names, ("</s>", "<unk>", "<s>", "<|endoftext|>"), strict=True):
            file.write_text(file.read_text().replace(f"<|{name}|>", text))
    (note,) = bitconv.convert(model, tmp_path / "out.gguf").notes
    assert "spaces beside special tokens are lost" in note and "model_name" in note
    (model / "README.md").write_text("---\nmodel_name: Another\n---\n")
    assert bitconv.convert(model, tmp_path / "out.gguf", force=True).notes == ()


CARD_VALUES = [
    ("version: 1.0", "version", "1.0"),
    ("license: 5", "license", "5"),
    ("license: [mit, 2.0]", "license", "mit,2.0"),
    ("license_name: 2024-01-31", "license.name", "2024-01-31"),
    ("tags: [ternary, 2024, 2024-01-31, [a], null]", "tags", ["ternary", "2024", "2024-01-31"]),
    ("tags: [[a]]", "tags", None),
    ("author: {first: a, last: b}", "author", None),
    ("description: [a, b]", "description", None),
    ('description: "a \\uD800"', "description", "a ?"),
    ("base_model: [{name: 5, url: [x]}, 7]", "base_model.0.name", "5"),
]


@pytest.mark.parametrize(("front_matter", "key", "value"), CARD_VALUES)
def test_odd_values_of_a_model_card_are_written_as_text_or_left_out(
    tmp_path: Path, front_matter: str, key: str, value: object
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (model.path / "README.md").write_text(f"---\n{front_matter}\n---\n# Toy\n")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert File(tmp_path / "out.gguf").metadata.get(f"general.{key}") == value


def test_sampling_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    values = {"top_k": "many", "top_p": [0.9], "min_p": 1e300, "penalty_last_n": 10**400, "temperature": 0.5}
    (model.path / "generation_config.json").write_text(json.dumps(values))
    bitconv.convert(model.path, tmp_path / "out.gguf")
    metadata = File(tmp_path / "out.gguf").metadata
    assert {k: v for k, v in metadata.items() if "sampling" in k} == {"general.sampling.temp": 0.5}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_directory_whose_name_is_no_text_gives_a_name_that_is(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / os.fsdecode(b"toy\xff"), "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert File(tmp_path / "out.gguf").metadata["general.name"] == "Toy?"


@pytest.mark.parametrize(("type_name", "file_type"), [("f32", 0), ("f16", 1), ("bf16", 32), ("i2_s", 40)])
def test_the_file_type_is_that_of_the_ternary_tensors(tmp_path: Path, type_name: str, file_type: int) -> None:
    bitconv.convert(FIXTURES / "bitnet_b1_58-tiny", tmp_path / "out.gguf", type=type_name)
    assert File(tmp_path / "out.gguf").metadata["general.file_type"] == file_type


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}])
def test_the_rope_base_is_read_in_the_spelling_of_transformers_5(tmp_path: Path, rope: dict) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft")
    model.rewrite_config(rope_theta=None, rope_parameters=rope)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert File(tmp_path / "out.gguf").metadata["bitnet-b1.58.rope.freq_base"] == 1e6


LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_llama3_rope_scaling_becomes_rope_freqs(tmp_path: Path, spelling: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    model.rewrite_config(rope_scaling={**LLAMA3_ROPE, spelling: "llama3"})
    bitconv.convert(model.path, tmp_path / "out.gguf")
    file = File(tmp_path / "out.gguf")
    factors = np.frombuffer(file.bytes("rope_freqs.weight", 32 * 4), np.float32)
    wanted = rope_factors(8.0, 1.0, 4.0, 128, 50000.0, 64)
    assert file.tensors["rope_freqs.weight"].ne == (32,)
    assert wanted[0] == 1 and wanted[-1] == 8 and len(set(wanted)) > 3
    np.testing.assert_allclose(factors, wanted, rtol=1e-6)


def test_linear_rope_scaling_is_stated(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    model.rewrite_config(rope_scaling={"type": "linear", "factor": 4.0})
    bitconv.convert(model.path, tmp_path / "out.gguf")
    metadata = File(tmp_path / "out.gguf").metadata
    assert metadata["llama.rope.scaling.type"] == "linear"
    assert metadata["llama.rope.scaling.factor"] == 4.0


def test_a_tied_llama_has_no_output_tensor(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", tied=True)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert "output.weight" not in File(tmp_path / "out.gguf").tensors


@pytest.mark.parametrize("embed_type", ["f16", "f32", "bf16"])
def test_the_embedding_and_an_untied_head_take_the_embedding_type(tmp_path: Path, embed_type: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32")
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type=embed_type, type="f32")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name in ("token_embd.weight", "output.weight"):
        values = model.dense[name]
        wanted = round_to_bf16(values) if embed_type == "bf16" else values.astype(embed_type.replace("f", "float"))
        assert tensors[name].tensor_type.name == embed_type.upper()
        assert np.array_equal(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), wanted)


@pytest.mark.parametrize(("convention", "stored"), [("multiply", 0.05), ("divide", 20.0)])
def test_the_scale_convention_can_be_overruled(tmp_path: Path, convention: str, stored: float) -> None:
    family = "llama" if convention == "multiply" else "microsoft"
    model = make_checkpoint(tmp_path / "model", family, packed=True, convention=convention)
    with pytest.raises(bitconv.BitconvError, match=f"scale_convention={convention!r}"):
        bitconv.convert(model.path, tmp_path / "out.gguf")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", scale_convention=convention)
    scales = {tensor.name: tensor.scale for tensor in result.tensors if tensor.scale}
    assert scales == {name: float(scale) for name, scale in model.scales.items()}


@pytest.mark.parametrize("family", ["llama", "microsoft"])
def test_the_convention_stated_by_hand_passes_the_sanity_check(tmp_path: Path, family: str) -> None:
    """Scales that look inverted are taken as they are when the user says so."""
    wrong = {"llama": "multiply", "microsoft": "divide"}[family]
    right = {"llama": "divide", "microsoft": "multiply"}[family]
    model = make_checkpoint(tmp_path / "model", family, packed=True, convention=wrong)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", scale_convention=right)
    assert all(tensor.scale > 10 for tensor in result.tensors if tensor.scale)


def test_the_packed_and_the_master_checkpoint_of_one_model_give_the_same_trits(tmp_path: Path) -> None:
    packed = make_checkpoint(tmp_path / "packed" / "model", "microsoft", packed=True, seed=5)
    master = make_checkpoint(tmp_path / "master" / "model", "microsoft", packed=False, seed=5)
    bitconv.convert(packed.path, tmp_path / "packed.gguf")
    bitconv.convert(master.path, tmp_path / "master.gguf")
    one, other = File(tmp_path / "packed.gguf"), File(tmp_path / "master.gguf")
    for name, trits in packed.trits.items():
        assert one.bytes(name, trits.size // 4) == other.bytes(name, trits.size // 4)


def test_buffers_of_older_transformers_and_the_alias_of_a_tied_head_are_left_out(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32")
    bitconv.convert(model.path, tmp_path / "without.gguf")
    tensors = load_file(model.path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, model.path / "model.safetensors")
    bitconv.convert(model.path, tmp_path / "with.gguf")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


def test_a_dry_run_states_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    planned = bitconv.convert(model.path, tmp_path / "out.gguf", dry_run=True)
    assert not (tmp_path / "out.gguf").exists()
    written = bitconv.convert(model.path, tmp_path / "out.gguf")
    assert planned.size == written.size == (tmp_path / "out.gguf").stat().st_size
    assert [(t.name, t.type, t.offset, t.nbytes) for t in planned.tensors] == [
        (t.name, t.type, t.offset, t.nbytes) for t in written.tensors
    ]


def test_the_index_of_shards_may_hold_more_than_the_map(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", shards=2)
    index = json.loads((model.path / "model.safetensors.index.json").read_text())
    index["metadata"] = {"total_size": 1}
    (model.path / "model.safetensors.index.json").write_text(json.dumps(index))
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").exists()
