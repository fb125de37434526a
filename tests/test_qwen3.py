"""Qwen3 with a norm on the input of each projection: tensors, metadata, what it computes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file, save_file

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import FIXTURES, make_checkpoint
from test_verify import Rebuilt
from tokenizer_support import write_json

QWEN3 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_cache": True,
    "use_sliding_window": False,
}
EIGHT_B = {**QWEN3, "bos_token_id": 1272, "eos_token_id": 1273, "max_position_embeddings": 40960}
# The config.json keys, of heads and sizes in proportion: head_dim is not hidden / heads in the embedding model.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "codys12/Qwen3-8B-BitNet, with a head of floats": (
        "qwen3",
        {"packed": True, "hidden": 512, "ffn": 1536, "heads": 4, "kv_heads": 1, "head_dim": 128, "shards": 2},
        {**EIGHT_B, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
    ),
    "codys12/testquant": (
        "qwen3",
        {"packed": False, "dtype": "f16", "hidden": 512, "ffn": 1536, "heads": 4, "kv_heads": 1, "head_dim": 128},
        {**EIGHT_B, "tie_word_embeddings": False, "torch_dtype": "float16"},
    ),
    "microsoft/BitNet-embedding-0.6B": (
        "embedding",
        {"hidden": 256, "ffn": 768, "heads": 4, "kv_heads": 2, "head_dim": 128},
        {**QWEN3, "max_position_embeddings": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_convert_and_verify(tmp_path: Path, name: str) -> None:
    family, sizes, config = PUBLISHED[name]
    model = make_checkpoint(tmp_path / "model", family, **sizes)
    model.rewrite_config(**config)
    result = bitconv.convert(model.path, tmp_path / "out.gguf")
    assert (result.architecture, result.runner, result.type) == ("qwen3", "bitnet.cpp-2026", "i2_s")
    assert result.run.startswith("llama-embedding" if family == "embedding" else "llama-cli")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right

    file = File(tmp_path / "out.gguf")
    assert file.tensors.keys() == model.trits.keys() | model.dense.keys()
    assert ("output.weight" in file.tensors) == (family == "qwen3")
    for tensor, trits in model.trits.items():
        expected = ROW_LAYOUTS["i2_s"].pack(trits, 0).tobytes() + model.scales[tensor].tobytes()
        assert file.bytes(tensor, len(expected)) == expected, tensor  # q and k are not permuted
    for tensor, values in model.dense.items():
        expected = values.astype(np.float16 if values.ndim == 2 else np.float32).tobytes()
        assert file.bytes(tensor, len(expected)) == expected, tensor
    norms = {tensor.split(".")[2] for tensor in file.tensors if tensor.endswith("_norm_in.weight")}
    projections = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert norms == {f"{projection}_norm_in" for projection in projections}
    assert file.tensors["blk.0.attn_output_norm_in.weight"].ne == (sizes["heads"] * 128,)
    assert file.metadata["qwen3.rope.freq_base"] == 1e6
    assert file.metadata["qwen3.rope.dimension_count"] == 128
    assert file.metadata.get("qwen3.attention.key_length") == (128 if family == "embedding" else None)
    assert file.metadata.get("qwen3.pooling_type") == (3 if family == "embedding" else None)


@pytest.mark.torch
@pytest.mark.parametrize("packed", [True, False])
def test_it_computes_what_transformers_does(tmp_path: Path, packed: bool) -> None:
    pytest.importorskip("torch")
    model = make_checkpoint(tmp_path / "model", "qwen3", packed=packed, head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    result = bitconv.compare(tmp_path / "out.gguf", model.path)
    assert not result.tokenized_differently
    assert result.top1_agreement > 0.9 and result.divergence < 0.05


@pytest.mark.torch
@pytest.mark.parametrize("norm", ["attn_q_norm", "attn_k_norm_in", "attn_output_norm_in", "ffn_down_norm_in"])
def test_a_norm_that_is_not_the_checkpoint_s_is_seen(tmp_path: Path, norm: str) -> None:
    pytest.importorskip("torch")
    model = make_checkpoint(tmp_path / "model", "qwen3", head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    file = Rebuilt(tmp_path / "out.gguf")
    tensor = file.tensor(f"blk.0.{norm}.weight")
    tensor[3] = np.roll(np.frombuffer(tensor[3], np.float32), 1).tobytes()
    file.write(tmp_path / "bad.gguf")
    assert not bitconv.verify(tmp_path / "bad.gguf", against=model.path).right
    assert not bitconv.compare(tmp_path / "bad.gguf", model.path).agrees


def test_norms_may_be_float16_as_bitnet_cpp_s_own_converter_writes_them(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    file = Rebuilt(tmp_path / "out.gguf")
    for tensor in file.tensors:
        if "norm" in tensor[0]:
            tensor[2:] = [1, np.frombuffer(tensor[3], np.float32).astype(np.float16).tobytes()]
    assert bitconv.verify(file.write(tmp_path / "f16.gguf"), against=model.path).right


@pytest.mark.parametrize(
    ("flags", "number"),
    [({"pooling_mode_lasttoken": True}, 3), ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1)],
)
def test_pooling_is_what_sentence_transformers_wrote(tmp_path: Path, flags: dict, number: int) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    write_json(model.path, modules=modules)
    write_json(model.path / "1_Pooling", config={"word_embedding_dimension": 256, **flags})
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert File(tmp_path / "out.gguf").metadata["qwen3.pooling_type"] == number
    write_json(model.path / "1_Pooling", config={"pooling_mode_max_tokens": True})
    with pytest.raises(BitconvError, match=r"1_Pooling/config\.json: pools by .*max_tokens"):
        bitconv.convert(model.path, tmp_path / "none.gguf")
    (model.path / "modules.json").write_text("{}")
    with pytest.raises(BitconvError, match=r"modules\.json: lists no Pooling module"):
        bitconv.convert(model.path, tmp_path / "none.gguf")


def test_eos_is_the_token_that_the_template_appends(tmp_path: Path) -> None:
    """As in Qwen3, where a turn ends with another token: the vector is read at the appended one."""
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128)
    settings = json.loads((model.path / "tokenizer_config.json").read_text())
    write_json(model.path, tokenizer_config={**settings, "eos_token": "<|eot_id|>"})
    bitconv.convert(model.path, tmp_path / "out.gguf")
    metadata = File(tmp_path / "out.gguf").metadata
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.eot_token_id"]) == (1273, 1276)
    assert (metadata["tokenizer.ggml.add_eos_token"], metadata["tokenizer.ggml.add_bos_token"]) == (True, False)
    tokenizer = (FIXTURES / "Llama3-1.58-tiny" / "tokenizer.json").read_text()
    (model.path / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(BitconvError, match=r"tokenizer\.json: nothing is appended to a text"):
        bitconv.convert(model.path, tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "use_rms_norm is not true"),
        ({"head_dim": None}, "head_dim is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope scaling"),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(tmp_path: Path, change: dict, cause: str) -> None:
    model = make_checkpoint(tmp_path / "model", "qwen3", head_dim=128)
    model.rewrite_config(**change)
    with pytest.raises(BitconvError, match=rf"config\.json: .*{cause}"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("family", "norm", "cause"),
    [
        ("qwen3", "rms_norm", "config.json: quantization_config.use_rms_norm: .* without it the model talks nonsense"),
        ("embedding", "norm", "nothing marks this as a BitNet checkpoint"),
    ],
)
def test_without_its_norms_on_inputs_it_is_refused(tmp_path: Path, family: str, norm: str, cause: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, head_dim=128, dtype="f32")
    tensors = load_file(model.path / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if f"proj.{norm}" not in n}, model.path / "model.safetensors")
    with pytest.raises(BitconvError, match=rf"{cause}.*\*_proj\.{norm}\.weight"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_floats_are_written_for_comparisons_though_no_runner_is_known_to_compute_them(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f16")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_a_repacked_embedding_model_runs_as_one(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128, ffn=512)
    bitconv.convert(model.path, tmp_path / "in.gguf")
    result = bitconv.repack(tmp_path / "in.gguf", tmp_path / "out.gguf", type="tq2_0", runner="bitnet.cpp-2026")
    assert result.run.startswith("llama-embedding")


@pytest.mark.parametrize(
    ("options", "nearest"),
    [({"type": "tq2_0"}, "tq2_0"), ({"runner": "bitnet.cpp"}, "i2_s"), ({"type": "iq2_bn"}, "i2_s")],
)
def test_runners_without_the_norms_are_refused(tmp_path: Path, options: dict, nearest: str) -> None:
    model = make_checkpoint(tmp_path / "model", "qwen3", head_dim=128)
    way_out = rf"type='{nearest}' runner='bitnet\.cpp-2026'"
    with pytest.raises(BitconvError, match=rf"does not know .* qwen3 with input norms; .* {way_out}"):
        bitconv.convert(model.path, tmp_path / "out.gguf", **options)


def test_export_and_back(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "qwen3", head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    result = bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    assert (result.architecture, result.scale_convention) == ("Qwen3ForCausalLM", "divide")
    bitconv.convert(tmp_path / "exported", tmp_path / "again.gguf")
    assert bitconv.verify(tmp_path / "again.gguf", against=model.path).right


def test_an_embedding_model_predicts_no_text_and_neither_is_exported(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    with pytest.raises(BitconvError, match=r"out\.gguf: an embedding model"):
        bitconv.evaluate(tmp_path / "out.gguf", FIXTURES / "eval.txt")
    with pytest.raises(BitconvError, match=r"an embedding model cannot be exported, only bitnet, bitnet-b1\.58, "):
        bitconv.export(tmp_path / "out.gguf", tmp_path / "dir")
