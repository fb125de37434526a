"""What bad input gets: one line that names file, tensor and cause, and a directory left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitconv.cli import app
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from synthetic import Synthetic, make_checkpoint

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
Q_SCALE = "model.layers.1.self_attn.q_proj.weight_scale"


def refused(model: Path, output: Path, *words: str, options: tuple[str, ...] = ()) -> None:
    """convert exits with 2 and one line on stderr that holds the words, and leaves nothing behind."""
    before = sorted(output.parent.iterdir()) if output.parent.is_dir() else None
    result = CliRunner().invoke(app, ["convert", str(model), str(output), *options])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("bitconv: error: ")
    for word in words:
        assert word in result.stderr
    assert before == (sorted(output.parent.iterdir()) if output.parent.is_dir() else None)


def edit_tensors(model: Synthetic, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors of a one-file float32 checkpoint."""
    tensors = load_file(model.path / "model.safetensors")
    edit(tensors)
    save_file(tensors, model.path / "model.safetensors")


@pytest.fixture
def llama(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "llama", dtype="f32")


@pytest.fixture
def onebit(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.gguf"


def test_no_such_directory(tmp_path: Path, out: Path) -> None:
    refused(tmp_path / "nowhere", out, "nowhere", "no such model directory", "OWNER/NAME")


def test_a_directory_of_models_in_place_of_one(llama: Synthetic, out: Path) -> None:
    refused(llama.path.parent, out, "config.json: missing", f"such as {llama.path}")


def test_a_file_of_the_model_in_place_of_its_directory(llama: Synthetic, out: Path) -> None:
    refused(llama.path / "model.safetensors", out, f"is a file; name the model directory, {llama.path}")


def test_missing_config(llama: Synthetic, out: Path) -> None:
    (llama.path / "config.json").unlink()
    refused(llama.path, out, "config.json: missing")


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"a": NaN]'])
def test_invalid_config(llama: Synthetic, out: Path, text: str) -> None:
    (llama.path / "config.json").write_text(text, encoding="latin-1")
    refused(llama.path, out, "config.json")


def test_an_unsupported_architecture_gets_the_list_of_supported_ones(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(architectures=["GPT2LMHeadModel"])
    refused(llama.path, out, "GPT2LMHeadModel", "BitnetForCausalLM", "BitNetForCausalLM", "LlamaForCausalLM")


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "rms_norm_eps"])
@pytest.mark.parametrize("value", [None, 0, -4, "many", True])
def test_a_size_that_is_none(llama: Synthetic, out: Path, key: str, value: object) -> None:
    llama.rewrite_config(**{key: value})
    refused(llama.path, out, "config.json", key)


def test_more_layers_or_experts_than_tensors_are_not_looked_for(llama: Synthetic, tmp_path: Path, out: Path) -> None:
    llama.rewrite_config(num_hidden_layers=2**31 - 1)
    refused(llama.path, out, "num_hidden_layers is 2147483647, more than there are tensors")
    mixtral = make_checkpoint(tmp_path / "mixtral", "mixtral")
    mixtral.rewrite_config(num_local_experts=2**31 - 1)
    refused(mixtral.path, out, "num_hidden_layers is 2 of 2147483647 experts, more than there are tensors")


@pytest.mark.parametrize("convention", ["multiply", "divide"])
def test_a_scale_convention_without_stored_scales(onebit: Synthetic, out: Path, convention: str) -> None:
    options = ("--scale-convention", convention)
    refused(onebit.path, out, "the weights are floats", "--scale-convention", options=options)
    assert CliRunner().invoke(app, ["convert", str(onebit.path), str(out)]).exit_code == 0
    result = CliRunner().invoke(app, ["verify", str(out), "--against", str(onebit.path), *options])
    assert result.exit_code == 2 and "--scale-convention" in result.stderr


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("digits", [400, 40])
def test_a_number_that_no_float32_holds(llama: Synthetic, out: Path, key: str, digits: int) -> None:
    llama.rewrite_config(**{key: 10 ** (digits - 1)})
    refused(llama.path, out, "config.json", f"{key} is 1000000")


def test_a_llama_that_nothing_marks_as_bitnet(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(quantization_config=None)
    refused(llama.path, out, "nothing marks this as a BitNet checkpoint")


def test_another_quantization_is_refused_by_name(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(quantization_config={"quant_method": "gptq", "bits": 4})
    refused(llama.path, out, "'gptq'")


@pytest.mark.parametrize("change", [{"linear_class": "other"}, {"quantization_mode": "online"}, {"quant_method": 1}])
def test_an_unknown_way_of_quantization(llama: Synthetic, out: Path, change: dict) -> None:
    llama.rewrite_config(quantization_config={"quant_method": "bitnet", **change})
    refused(llama.path, out, "config.json", repr(next(iter(change.values()))))


def test_an_untied_head_on_a_bitnet_graph(onebit: Synthetic, out: Path) -> None:
    onebit.rewrite_config(tie_word_embeddings=False)
    edit_tensors(onebit, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    refused(onebit.path, out, "tie_word_embeddings", "always multiplies by the embedding")


def test_an_activation_that_the_graph_does_not_apply(onebit: Synthetic, out: Path) -> None:
    onebit.rewrite_config(hidden_act="relu2")
    refused(onebit.path, out, "relu2", "silu")


def test_llama3_rope_scaling_on_a_bitnet_graph(onebit: Synthetic, out: Path) -> None:
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    onebit.rewrite_config(rope_scaling={"rope_type": "llama3", **factors})
    refused(onebit.path, out, "rope scaling", "bitnet")


def test_an_unknown_rope_scaling(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(rope_scaling={"rope_type": "yarn", "factor": 4.0})
    refused(llama.path, out, "yarn")


def test_a_rotary_base_that_is_not_stated(llama: Synthetic, out: Path) -> None:
    """transformers' default differs between classes and releases: 10000, 500000 or 1000000."""
    llama.rewrite_config(rope_theta=None)
    refused(llama.path, out, "config.json", "rope_theta is missing")


def test_two_rope_scalings(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    )
    refused(llama.path, out, "rope_parameters and rope_scaling")


def test_rope_parameters_for_each_kind_of_layer(llama: Synthetic, out: Path) -> None:
    kinds = {"full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}}
    llama.rewrite_config(rope_parameters=kinds)
    refused(llama.path, out, "rope_parameters: full_attention")


def test_a_number_that_float32_rounds_to_zero(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(rms_norm_eps=1e-50)
    refused(llama.path, out, "rms_norm_eps", "float32")


def test_a_tied_head_said_in_words(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(tie_word_embeddings="false")
    refused(llama.path, out, "tie_word_embeddings is 'false'")


def test_a_tied_head_that_is_not_the_embedding(llama: Synthetic, out: Path) -> None:
    """transformers 5 leaves them apart, so the model has a head that a tied file would lack."""
    llama.rewrite_config(tie_word_embeddings=True)
    refused(llama.path, out, "lm_head.weight", "differs from model.embed_tokens.weight")


@pytest.mark.parametrize("listed", [["lm_head", "k_proj"], ["lm_head", "model.layers.1"], [r"lm_head|.*\.down_proj"]])
def test_master_weights_of_which_some_stay_floats(tmp_path: Path, out: Path, listed: list[str]) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False)
    model.rewrite_config(quantization_config=model.config["quantization_config"] | {"modules_to_not_convert": listed})
    refused(model.path, out, "modules_to_not_convert lists model.layers")


@pytest.mark.parametrize("listed", [[], ["embed_tokens"]])
def test_master_weights_whose_head_is_ternary_too(tmp_path: Path, out: Path, listed: list[str]) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False)
    model.rewrite_config(quantization_config=model.config["quantization_config"] | {"modules_to_not_convert": listed})
    refused(model.path, out, "ternary output head", "lacks lm_head")


def test_a_head_dimension_that_a_bitnet_graph_does_not_take(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", head_dim=128)
    refused(model.path, out, "head_dim 128")


def test_missing_shard(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", shards=2)
    (model.path / "model-00002-of-00002.safetensors").unlink()
    refused(model.path, out, "model-00002-of-00002.safetensors: missing")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..", "a\\b.safetensors", "", 7])
def test_an_index_that_names_a_file_elsewhere(tmp_path: Path, out: Path, name: object) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", shards=2)
    index = model.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {Q_PROJ: name}}))
    refused(model.path, out, "model.safetensors.index.json", Q_PROJ, "not in the model directory")


def test_an_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", shards=2)
    index = model.path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"extra.weight": "model-00001-of-00002.safetensors"}}))
    refused(model.path, out, "model-00001-of-00002.safetensors", "extra.weight", "missing")


def test_the_same_tensor_in_two_shards(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32", shards=2)
    one, two = (model.path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(one) | load_file(two), two)
    refused(model.path, out, "model-00002-of-00002.safetensors", "second time")


def test_no_weights(llama: Synthetic, out: Path) -> None:
    (llama.path / "model.safetensors").unlink()
    refused(llama.path, out, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_safetensors(llama: Synthetic, out: Path, keep: int) -> None:
    file = llama.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(llama.path, out, "model.safetensors", "truncated")


def test_missing_tensor(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors.pop(Q_PROJ))
    refused(llama.path, out, f"{Q_PROJ}: missing")


def test_missing_scale(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors.pop(Q_SCALE))
    refused(llama.path, out, f"{Q_SCALE}: missing")


def test_extra_tensor(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(256, np.float32)}))
    refused(
        llama.path, out, "model.safetensors", "model.layers.0.self_attn.q_proj.bias", "no part of this architecture"
    )


@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight", Q_SCALE, "model.embed_tokens.weight"])
def test_wrong_shape(llama: Synthetic, out: Path, name: str) -> None:
    edit_tensors(llama, lambda t: t.update({name: np.concatenate([t[name], t[name]])}))
    refused(llama.path, out, "model.safetensors", name, "shape")


def test_floats_where_packed_weights_are_promised(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda t: t.update({Q_PROJ: np.full((256, 256), 0.5, np.float32)}))
    refused(llama.path, out, Q_PROJ, "row 0, column 0 holds 0.5 beside a weight_scale, and is no trit")
    edit_tensors(llama, lambda t: t.pop(Q_SCALE))
    refused(llama.path, out, Q_PROJ, "stored as f32 without a weight_scale", "quantization_config")


def test_integers_where_floats_are_promised(onebit: Synthetic, out: Path) -> None:
    edit_tensors(onebit, lambda t: t.update({"model.norm.weight": np.zeros(256, np.int64)}))
    refused(onebit.path, out, "model.norm.weight", "stored as i64")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [Q_PROJ, "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
def test_weights_that_are_not_finite(onebit: Synthetic, out: Path, name: str, value: float) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].reshape(-1)[-3] = value

    edit_tensors(onebit, spoil)
    refused(onebit.path, out, "model.safetensors", name, "NaN or infinity" if name == Q_PROJ else f"is {value}")


def test_an_embedding_that_overflows_float16(onebit: Synthetic, out: Path) -> None:
    def grow(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.embed_tokens.weight"][3, 7] = 65520  # the smallest float32 that rounds to infinity

    edit_tensors(onebit, grow)
    refused(onebit.path, out, "model.embed_tokens.weight", "[3, 7]", "65520", "f16", "--embed-type f32")
    assert CliRunner().invoke(app, ["convert", str(onebit.path), str(out), "--embed-type", "f32"]).exit_code == 0


def test_a_scale_that_overflows_float16(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda t: t.update({Q_SCALE: np.array([1e-6], np.float32)}))
    refused(llama.path, out, Q_PROJ, "f16 cannot hold its scale", options=("--type", "f16"))


def test_code_three_in_packed_weights(llama: Synthetic, out: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q_PROJ][5, 9] |= 0b00110000

    edit_tensors(llama, spoil)
    refused(llama.path, out, "model.safetensors", Q_PROJ, "[5, 9]", "code 3")


def test_columns_that_i2_s_cannot_take(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", ffn=320)
    refused(model.path, out, "mlp.down_proj.weight", "128", "320", "--fallback f16")
    assert CliRunner().invoke(app, ["convert", str(model.path), str(out), "--fallback", "f16"]).exit_code == 0


@pytest.mark.parametrize("value", [0.0, -1.5, np.nan, np.inf])
def test_a_stored_scale_that_is_none(llama: Synthetic, out: Path, value: float) -> None:
    edit_tensors(llama, lambda t: t.update({Q_SCALE: np.array([value], np.float32)}))
    refused(llama.path, out, "model.safetensors", Q_SCALE, "finite and positive")


def test_a_stored_scale_whose_inverse_overflows(llama: Synthetic, out: Path) -> None:
    edit_tensors(llama, lambda t: t.update({Q_SCALE: np.array([1e-40], np.float32)}))
    refused(llama.path, out, Q_SCALE, "overflows")


def test_more_tokens_than_vocab_size(llama: Synthetic, out: Path) -> None:
    llama.rewrite_config(vocab_size=1279)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        edit_tensors(llama, lambda t, name=name: t.update({name: t[name][:1279]}))
    refused(llama.path, out, "tokenizer.json", "id 1279", "vocab_size is 1279")


def test_an_existing_output_needs_force(llama: Synthetic, out: Path) -> None:
    out.write_text("precious")
    refused(llama.path, out, str(out), "--force")
    assert out.read_text() == "precious"
    assert CliRunner().invoke(app, ["convert", str(llama.path), str(out), "--force"]).exit_code == 0
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_failed_conversion_with_force_keeps_the_old_file(onebit: Synthetic, out: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q_PROJ][0, 0] = np.nan

    edit_tensors(onebit, spoil)
    out.write_text("precious")
    refused(onebit.path, out, Q_PROJ, options=("--force",))
    assert out.read_text() == "precious"


def test_an_output_in_a_missing_directory(llama: Synthetic, tmp_path: Path) -> None:
    refused(llama.path, tmp_path / "no" / "out.gguf", "does not exist")


def test_a_directory_as_output(llama: Synthetic, out: Path) -> None:
    refused(llama.path, out.parent, "is a directory", options=("--force",))


def test_a_file_of_the_checkpoint_as_output(llama: Synthetic) -> None:
    before = (llama.path / "model.safetensors").read_bytes()
    refused(llama.path, llama.path / "model.safetensors", "file of the checkpoint", options=("--force",))
    assert (llama.path / "model.safetensors").read_bytes() == before
