"""The .pt files of bitnet.cpp's GPU pipeline: q, k, v and gate, up fused, rows interleaved, packed its own way."""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
import torch
from bitconv.system.errors import BitconvError
from safetensors.torch import load_file

from gguf_file import File
from synthetic import GGUF_PROJECTIONS, Synthetic, interleave, make_checkpoint, round_to_bf16
from test_convert import expected_i2_s

pytestmark = pytest.mark.torch

HF_MODULES = {slot: module for module, slot in GGUF_PROJECTIONS.items()}
MODULES = {
    "wqkv": ("attn_q", "attn_k", "attn_v"),
    "wo": ("attn_output",),
    "w13": ("ffn_gate", "ffn_up"),
    "w2": ("ffn_down",),
}


def pack_int2(trits: np.ndarray) -> np.ndarray:
    """One trit of every tile of 16x32 at a time: which word of the tile, which byte of it, which bits."""
    rows, columns = trits.shape
    packed = np.zeros((rows // 16, columns // 32, 32, 4), np.uint8)
    for word in range(32):
        for i in range(16):
            codes = trits[word // 16 * 8 + word % 8 :: 16, word % 16 // 8 * 16 + i :: 32] + 2
            packed[:, :, word, i % 4] |= codes.astype(np.uint8) << (i // 4 * 2)
    return packed.reshape(rows, columns // 4).view(np.int8)


def make_pipeline_checkpoint(path: Path, form: str, **options: int) -> Synthetic:
    """What the pipeline makes of a checkpoint of master weights, beside that one's config and tokenizer.

    form: "int2", "fp16" (which is bfloat16, and ternary already) or "master". The scales of the former are bfloat16.
    """
    model = make_checkpoint(path, "microsoft", packed=False, **options)
    heads, kv_heads = model.config["num_attention_heads"], model.config["num_key_value_heads"]
    source = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    tensors = {"tok_embeddings.weight": source["model.embed_tokens.weight"], "norm.weight": source["model.norm.weight"]}
    tensors["output.weight"] = tensors["tok_embeddings.weight"]
    for layer in range(model.config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}", f"layers.{layer}"
        for before, after in (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.attn_sub_norm", "attention.attn_sub_norm"),
            ("mlp.ffn_sub_norm", "feed_forward.ffn_sub_norm"),
        ):
            tensors[f"{new}.{after}.weight"] = source[f"{old}.{before}.weight"]
        for module, slots in MODULES.items():
            name = f"{new}.{'attention' if module in ('wqkv', 'wo') else 'feed_forward'}.{module}.weight"
            rotary = {"attn_q": heads, "attn_k": kv_heads}
            if form == "master":
                parts = [source[f"{old}.{HF_MODULES[slot]}.weight"].float().numpy() for slot in slots]
            else:
                parts = [model.trits[f"blk.{layer}.{slot}.weight"] for slot in slots]
            parts = [interleave(p, rotary[s]) if s in rotary else p for s, p in zip(slots, parts, strict=True)]
            if form != "master":
                rounded = round_to_bf16(np.array([model.scales[f"blk.{layer}.{slot}.weight"] for slot in slots]))
                model.scales |= {f"blk.{layer}.{slot}.weight": s for slot, s in zip(slots, rounded, strict=True)}
            if form == "int2":
                tensors[name] = torch.from_numpy(pack_int2(np.concatenate(parts)))
                tensors[name + "_scale"] = torch.from_numpy(np.resize([*rounded, 0, 0, 0], 4)).bfloat16()
            elif form == "fp16":
                scaled = [part * scale for part, scale in zip(parts, rounded, strict=True)]
                tensors[name] = torch.from_numpy(np.concatenate(scaled)).bfloat16()
            else:
                tensors[name] = torch.from_numpy(np.concatenate(parts)).bfloat16()
    torch.save(tensors, path / ("model_state.pt" if form == "master" else f"model_state_{form}.pt"))
    return model


def edit(model: Synthetic, file: str, name: str, value: torch.Tensor) -> None:
    tensors = torch.load(model.path / file)
    assert name in tensors
    torch.save(tensors | {name: value}, model.path / file)


@pytest.mark.parametrize("form", ["int2", "fp16", "master"])
@pytest.mark.parametrize("options", [{}, {"heads": 2, "kv_heads": 1, "hidden": 384, "ffn": 1024}])
def test_every_tensor_is_what_the_source_checkpoint_has(tmp_path: Path, form: str, options: dict[str, int]) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", form, **options)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", runner="bitnet.cpp")
    assert result.architecture == "bitnet-b1.58" and "GPU pipeline" in result.family
    file = File(tmp_path / "out.gguf")
    assert file.tensors.keys() == model.trits.keys() | model.dense.keys()
    for name, trits in model.trits.items():
        assert file.bytes(name, trits.size // 4 + 32) == expected_i2_s(model, name), name
    for name, values in model.dense.items():
        dtype = np.float16 if values.ndim == 2 else np.float32
        assert file.bytes(name, values.size * np.dtype(dtype).itemsize) == values.astype(dtype).tobytes(), name
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


@pytest.mark.parametrize("form", ["int2", "fp16", "master"])
def test_verify_finds_rows_of_a_head_in_the_wrong_order(tmp_path: Path, form: str) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", form)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    start = File(tmp_path / "out.gguf").tensors["blk.0.attn_k.weight"].start
    data = bytearray((tmp_path / "out.gguf").read_bytes())
    row = 256 // 4
    data[start : start + row], data[start + row : start + 2 * row] = (
        data[start + row : start + 2 * row],
        data[start : start + row],
    )
    (tmp_path / "out.gguf").write_bytes(data)
    faulty = {t.name for t in bitconv.verify(tmp_path / "out.gguf", against=model.path).tensors if t.faults}
    assert faulty == {"blk.0.attn_k.weight"}
    assert bitconv.verify(tmp_path / "out.gguf").right


def test_the_packed_file_is_taken_where_both_lie(tmp_path: Path) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", "int2")
    (model.path / "model_state_fp16.pt").write_text("not read")
    assert bitconv.verify(bitconv.convert(model.path, tmp_path / "out.gguf").output, against=model.path).right


def test_a_code_that_is_no_trit_is_refused(tmp_path: Path) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", "int2")
    name = "layers.1.attention.wqkv.weight"
    packed = torch.load(model.path / "model_state_int2.pt")[name]
    # Row 256 + 5 of the fused matrix, column 32 + 16 + 4: word 13 of a tile, byte 0, bits 2 and 3.
    at = ((256 // 16 * 8 + 1) * 32 + 13) * 4
    packed.view(-1)[at] &= ~0b1100
    edit(model, "model_state_int2.pt", name, packed)
    with pytest.raises(BitconvError, match=r"layers\.1\.attention\.wqkv\.weight\[256:384\]: row 5, column 52 holds"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("form", "file", "name", "value", "word"),
    [
        ("int2", "model_state_int2.pt", "layers.0.attention.wqkv.weight", torch.zeros(500, 64).char(), "shape"),
        ("int2", "model_state_int2.pt", "layers.0.attention.wqkv.weight", torch.zeros(512, 64).byte(), "u8"),
        ("int2", "model_state_int2.pt", "layers.0.attention.wqkv.weight_scale", torch.ones(3), "shape"),
        ("int2", "model_state_int2.pt", "layers.0.attention.wqkv.weight_scale", torch.zeros(4), "positive"),
        ("master", "model_state.pt", "layers.0.feed_forward.w13.weight", torch.ones(384, 256), "shape"),
    ],
)
def test_a_fused_tensor_that_does_not_fit_is_refused(
    tmp_path: Path, form: str, file: str, name: str, value: torch.Tensor, word: str
) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", form)
    edit(model, file, name, value)
    with pytest.raises(BitconvError, match=f"{name}.*{word}"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_columns_that_have_no_tiles_are_refused(tmp_path: Path) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", "int2")
    model.rewrite_config(intermediate_size=400)
    edit(model, "model_state_int2.pt", "layers.0.feed_forward.w13.weight", torch.ones(800, 64).char())
    edit(model, "model_state_int2.pt", "layers.0.feed_forward.ffn_sub_norm.weight", torch.ones(400))
    with pytest.raises(BitconvError, match=r"w2\.weight: .*256x400"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_a_part_of_the_model_that_has_no_place_is_refused(tmp_path: Path) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", "int2")
    tensors = torch.load(model.path / "model_state_int2.pt")
    torch.save(tensors | {"lm_head.weight": torch.ones(2)}, model.path / "model_state_int2.pt")
    with pytest.raises(BitconvError, match=r"lm_head\.weight: is no part"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_without_config_json_what_is_missing_is_said(tmp_path: Path) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", "int2")
    (model.path / "config.json").unlink()
    with pytest.raises(BitconvError, match=r"config\.json: missing; .* weights alone.*tokenizer"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


@pytest.mark.parametrize("stored", ["int2", "fp16", "master"])
def test_compare_runs_it_with_its_interleaved_rows(tmp_path: Path, stored: str) -> None:
    model = make_pipeline_checkpoint(tmp_path / "model", stored)
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    assert bitconv.compare(tmp_path / "out.gguf", model.path).divergence < 0.01
