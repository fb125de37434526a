"""Maple: a mixture whose experts have a scale a row, with layers that attend to a window and layers that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.system.errors import BitconvError

import real_runners
from gguf_file import File
from synthetic import Synthetic, make_checkpoint
from test_verify import Rebuilt

SIZES: dict[str, Any] = {
    "hidden": 256,
    "ffn": 512,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "layers": 5,
    "experts": 4,
}
POSITIONS = [20, 40, 150, 250]


@pytest.fixture
def model(tmp_path: Path) -> Synthetic:
    """Rounded to float16, as blocks hold scales."""
    return make_checkpoint(
        tmp_path / "model", "maple", dtype="f16", ternary_floats=True, marked=False, row_scales=True, **SIZES
    )


def reference(model: Synthetic, tokens: np.ndarray, *, float_activations: bool) -> np.ndarray:
    """The log probabilities of the next tokens, written out from llama.cpp's graph, in PyTorch and float32."""
    torch = pytest.importorskip("torch")
    dense = {name: torch.from_numpy(values) for name, values in model.dense.items()}

    def linear(name: str, x: Any, expert: int | None = None) -> Any:
        trits, scales = model.trits[name], model.scales[name]
        if expert is not None:
            trits, scales = trits[expert], scales[expert]
        weight = torch.from_numpy(trits * np.repeat(scales, trits.shape[1] // scales.shape[1], axis=1)).float()
        if not float_activations:
            divisor = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            x = (x * divisor).round().clamp(-128, 127) / divisor
        return x @ weight.T

    def norm(name: str, x: Any) -> Any:
        return dense[name] * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    def rotate(x: Any) -> Any:
        size = x.shape[-1]
        angles = torch.outer(
            torch.arange(x.shape[1]).float(), 1.0 / 50000.0 ** (torch.arange(0, size, 2).float() / size)
        ).repeat(1, 2)
        return x * angles.cos() + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * angles.sin()

    x = dense["token_embd.weight"][torch.from_numpy(tokens.astype(np.int64))]
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    for layer, kind in enumerate(model.config["layer_types"]):
        block = f"blk.{layer}"
        h = norm(f"{block}.attn_norm.weight", x)
        q, k, v = (linear(f"{block}.attn_{p}.weight", h).reshape(len(x), -1, 64).transpose(0, 1) for p in "qkv")
        q, k = norm(f"{block}.attn_q_norm.weight", q), norm(f"{block}.attn_k_norm.weight", k)
        seen = distance >= 0
        if kind == "sliding_attention":
            q, k = rotate(q), rotate(k)
            seen = seen & (distance < model.config["sliding_window"])
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, enable_gqa=True
        )[0]
        x = x + linear(f"{block}.attn_output.weight", mixed.transpose(0, 1).reshape(len(x), -1))
        h = norm(f"{block}.ffn_norm.weight", x)
        chances, chosen = torch.softmax(h @ dense[f"{block}.ffn_gate_inp.weight"].T, -1).topk(2)
        chances = chances / chances.sum(-1, keepdim=True)
        added = torch.zeros_like(x)
        for expert in range(4):
            gate = linear(f"{block}.ffn_gate_exps.weight", h, expert).clamp(max=7)
            up = linear(f"{block}.ffn_up_exps.weight", h, expert).clamp(-7, 7)
            out = linear(f"{block}.ffn_down_exps.weight", torch.nn.functional.silu(gate) * up, expert)
            added += out * (chances * (chosen == expert)).sum(-1, keepdim=True)
        x = x + added
    logits = norm("output_norm.weight", x) @ dense["output.weight"].T
    return torch.log_softmax(logits.double(), -1).numpy()


@pytest.mark.parametrize("type_name", ["tq1_0", "tq2_0", "q2_0"])
def test_rows_of_experts_keep_their_scales_in_blocks(type_name: str, model: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    result = bitconv.convert(model.path, out, type=type_name)
    assert (result.architecture, result.runner, result.exact_scales) == ("maple", "llama.cpp", True)
    verdict = bitconv.verify(out, against=model.path)
    assert verdict.right and verdict.warnings == ()
    metadata = File(out).metadata
    assert metadata["maple.attention.sliding_window_pattern"] == [True, True, True, False, True]
    assert (metadata["maple.attention.sliding_window"], metadata["maple.expert_feed_forward_length"]) == (32, 512)
    assert not [name for name in File(out).tensors if name.endswith("_exps.scale")]


def test_a_scale_of_one_row_of_one_expert_that_is_not_its_own_is_found(model: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(model.path, tmp_path / "good.gguf", type="tq2_0")
    rebuilt = Rebuilt(tmp_path / "good.gguf")
    tensor = rebuilt.tensor("blk.2.ffn_up_exps.weight")
    changed = bytearray(tensor[3])
    row = (3 * 512 + 7) * 66  # the only block of row 7 of expert 3, whose scale stands at its end
    changed[row + 65] ^= 1
    tensor[3] = bytes(changed)
    bad = rebuilt.write(tmp_path / "bad.gguf")
    (found,) = [t for t in bitconv.verify(bad, against=model.path).tensors if t.faults]
    assert found.name == "blk.2.ffn_up_exps.weight" and "expert 3: row 7" in found.faults[0]


@pytest.mark.torch
def test_eval_computes_the_graph(model: Synthetic, tmp_path: Path) -> None:
    from bitconv.commands.evaluate import opened_to_run
    from bitconv.inference.forward import ForwardPass

    torch = pytest.importorskip("torch")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", embed_type="f32")
    opened, inspection = opened_to_run(tmp_path / "out.gguf", None, None)
    tokens = np.random.default_rng(0).integers(0, 1270, 80)
    for float_activations in (True, False):
        forward = ForwardPass(opened, inspection, float_activations=float_activations)
        logits = torch.from_numpy(forward.logits(tokens, forward.new_cache(80)))
        expected = reference(model, tokens, float_activations=float_activations)
        predicted = torch.log_softmax(logits.double(), -1).numpy()
        assert (np.exp(expected) * (expected - predicted)).sum(axis=1).mean() < (1e-6 if float_activations else 1e-3)


@pytest.mark.torch
@pytest.mark.runners
@pytest.mark.parametrize("type_name", ["f32", "tq2_0", "q2_0"])
def test_llama_cpp_computes_the_graph(type_name: str, model: Synthetic, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", runner="llama.cpp")
    tokens, predicted = real_runners.llama_cpp(tmp_path / "out.gguf", POSITIONS)
    expected = reference(model, tokens[:251], float_activations=True)[POSITIONS]
    divergence = (np.exp(expected) * (expected - predicted)).sum(axis=1).mean()
    assert abs(divergence) < (1e-4 if type_name == "f32" else 0.01)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"nope_on_global_attention": False}, "nope_on_global_attention is False"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False"),
        ({"num_shared_experts": 1}, "num_shared_experts is 1"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types does not say of every layer"),
        ({"layer_types": None}, "layer_types does not say of every layer"),
        ({"sliding_window": None}, "sliding_window is None"),
        ({"num_experts": None}, "num_experts is None"),
        ({"tie_word_embeddings": True}, "lm_head.weight: differs|loads one of its own"),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(
    change: dict[str, Any], cause: str, model: Synthetic, tmp_path: Path
) -> None:
    model.rewrite_config(**change)
    with pytest.raises(BitconvError, match=cause):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")


@pytest.mark.parametrize("value", [None, np.array([True, False]), np.ones(5, np.float32)])
def test_a_file_that_does_not_say_which_layers_have_a_window_is_a_fault(
    value: object, model: Synthetic, tmp_path: Path
) -> None:
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    del rebuilt.metadata["maple.attention.sliding_window_pattern"]
    if value is not None:
        rebuilt.metadata["maple.attention.sliding_window_pattern"] = value
    assert "no array of 5 booleans" in bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults[0]
