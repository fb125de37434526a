"""OLMo-Bitnet: norms of ones, fused layers with one scale, up before gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.system.errors import BitconvError

import real_runners
from gguf_file import File
from synthetic import FIXTURES, Synthetic

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

HIDDEN, HEADS, LAYERS, BOTH, ROWS = 512, 4, 2, 2048, 1280
# OLMo's keys as its own classes write them, with its defaults among them.
CONFIG: dict[str, Any] = {
    "architectures": ["OLMoModelForCausalLM"],
    "model_type": "olmo",
    "activation_type": "swiglu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "sequential",
    "clip_qkv": None,
    "d_model": HIDDEN,
    "embedding_size": ROWS,
    "include_bias": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": False,
    "max_sequence_length": 512,
    "mlp_hidden_size": None,
    "mlp_ratio": 4,
    "multi_query_attention": False,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "rope": True,
    "vocab_size": 1276,
    "weight_tying": True,
}


class Olmo(torch.nn.Module):
    """The forward pass of OLMo's sequential blocks, whose linear layers normalise, round and multiply."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        super().__init__()
        self.tensors = tensors

    @staticmethod
    def norm(x: Any) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)

    def linear(self, name: str, x: Any) -> Any:
        weight, x = self.tensors[f"model.transformer.{name}.weight"].float(), self.norm(x)
        scale = 1 / weight.abs().mean().clamp(min=1e-5)
        divisor = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        rounded = (x * divisor).round().clamp(-128, 127) / divisor
        return rounded @ ((weight * scale).round().clamp(-1, 1) / scale).T

    @staticmethod
    def rotate(x: Any) -> Any:
        size = x.shape[-1]
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies).repeat(1, 2)
        halves = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * angles.cos() + halves * angles.sin()

    def forward(self, tokens: Any) -> Any:
        embedding = self.tensors["model.transformer.wte.weight"].float()
        x = embedding[tokens]
        for layer in range(LAYERS):
            block = f"blocks.{layer}"
            qkv = self.linear(f"{block}.att_proj", self.norm(x)).split(HIDDEN, dim=-1)
            q, k, v = (part.reshape(len(x), HEADS, -1).transpose(0, 1) for part in qkv)
            mixed = torch.nn.functional.scaled_dot_product_attention(
                self.rotate(q)[None], self.rotate(k)[None], v[None], is_causal=True
            )[0]
            x = x + self.linear(f"{block}.attn_out", mixed.transpose(0, 1).reshape(len(x), -1))
            up, gate = self.linear(f"{block}.ff_proj", self.norm(x)).chunk(2, dim=-1)
            x = x + self.linear(f"{block}.ff_out", torch.nn.functional.silu(gate) * up)
        return self.norm(x) @ embedding.T


def make_olmo(path: Path) -> Synthetic:
    path.mkdir()
    random = torch.Generator().manual_seed(3)
    shapes = {"wte": (ROWS, HIDDEN)}
    for layer in range(LAYERS):
        # Parts that differ in size, so that a scale of a part would be seen.
        shapes |= {f"blocks.{layer}.att_proj": (3 * HIDDEN, HIDDEN), f"blocks.{layer}.attn_out": (HIDDEN, HIDDEN)}
        shapes |= {f"blocks.{layer}.ff_proj": (BOTH, HIDDEN), f"blocks.{layer}.ff_out": (HIDDEN, BOTH // 2)}
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=random) * (0.05 if name == "wte" else 0.02)
        if name.endswith(("att_proj", "ff_proj")):
            values *= torch.linspace(0.5, 2.0, shape[0])[:, None]
        tensors[f"model.transformer.{name}.weight"] = torch.nn.Parameter(values)
    torch.save(tensors, path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "Llama3-1.58-tiny" / name, path / name)
    return Synthetic(path, CONFIG)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_olmo(tmp_path / "model").path


def rewrite(model: Path, **changes: Any) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | changes))


def predicted_by_olmo(model: Path, tokens: np.ndarray) -> np.ndarray:
    tensors = torch.load(model / "pytorch_model.bin", weights_only=False)
    with torch.no_grad():
        logits = Olmo(tensors)(torch.from_numpy(tokens.astype(np.int64)))
    return torch.log_softmax(logits.double(), -1).numpy()


def test_the_file_is_the_bitnet_graph_with_norms_of_ones(model: Path, tmp_path: Path) -> None:
    result = bitconv.convert(model, tmp_path / "out.gguf", type="i2_s")
    assert (result.family, result.architecture) == ("OLMo-Bitnet", "bitnet")
    file = File(tmp_path / "out.gguf")
    norms = {name: tensor.ne[0] for name, tensor in file.tensors.items() if "norm" in name}
    assert len(norms) == 4 * LAYERS + 1
    for name, length in norms.items():
        assert (np.frombuffer(file.bytes(name, 4 * length), np.float32) == 1).all()
    assert file.metadata["bitnet.vocab_size"] == len(file.metadata["tokenizer.ggml.tokens"]) == ROWS
    assert bitconv.verify(tmp_path / "out.gguf", against=model).right
    scales = {t.name: t.scale for t in result.tensors if t.scale is not None}
    assert scales["blk.0.attn_q.weight"] == scales["blk.0.attn_k.weight"] == scales["blk.0.attn_v.weight"]
    assert scales["blk.0.ffn_up.weight"] == scales["blk.0.ffn_gate.weight"]


def test_eval_computes_what_its_own_code_does(model: Path, tmp_path: Path) -> None:
    bitconv.convert(model, tmp_path / "out.gguf", type="i2_s", embed_type="f32")
    from bitconv.commands.evaluate import opened_to_run
    from bitconv.inference.forward import ForwardPass

    opened, inspection = opened_to_run(tmp_path / "out.gguf", None, None)
    tokens = np.random.default_rng(0).integers(0, 1270, 64)
    forward = ForwardPass(opened, inspection)
    logits = torch.from_numpy(forward.logits(tokens, forward.new_cache(64)))
    predicted = torch.log_softmax(logits.double(), -1).numpy()
    expected = predicted_by_olmo(model, tokens)
    assert (np.exp(expected) * (expected - predicted)).sum(axis=1).mean() < 1e-3


@pytest.mark.runners
@pytest.mark.parametrize("type_name", ["tq2_0", "q2_0"])
def test_llama_cpp_computes_what_its_own_code_does(type_name: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    bitconv.convert(model, tmp_path / "out.gguf", type=type_name, embed_type="f32")
    positions = [40, 150, 250]
    tokens, predicted = real_runners.llama_cpp(tmp_path / "out.gguf", positions)
    expected = predicted_by_olmo(model, tokens[:251])[positions]
    assert (np.exp(expected) * (expected - predicted)).sum(axis=1).mean() < 0.01


@pytest.mark.runners
@pytest.mark.parametrize("type_name", ["iq2_bn", "iq1_bn"])
def test_ik_llama_cpp_computes_what_its_own_code_does(type_name: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    bitconv.convert(model, tmp_path / "out.gguf", type=type_name, embed_type="f32")
    tokens, losses = real_runners.ik_llama_cpp(tmp_path / "out.gguf")
    window = tokens[: real_runners.WINDOW]
    expected = -predicted_by_olmo(model, window)[np.arange(len(window) - 1), window[1:]]
    assert np.exp(losses[0].mean()) == pytest.approx(np.exp(expected.mean()), rel=0.01)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"layer_norm_type": "default"}, "layer_norm_type 'default': OLMo-Bitnet with LayerNorm.*subtract the mean"),
        ({"layer_norm_type": "low_precision"}, "layer_norm_type 'low_precision'"),
        ({"layer_norm_with_affine": True}, "layer_norm_type 'rms' with layer_norm_with_affine"),
        ({"alibi": True}, "alibi is True"),
        ({"attention_layer_norm": True}, "attention_layer_norm is True"),
        ({"block_type": "parallel"}, "block_type is 'parallel'"),
        ({"clip_qkv": 8.0}, r"clip_qkv is 8\.0"),
        ({"activation_type": "gelu"}, "activation_type is 'gelu'"),
        ({"d_model": "big"}, "d_model is 'big'"),
        ({"weight_tying": False}, "tie_word_embeddings is not true, and no model.transformer.ff_out.weight"),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(
    changes: dict[str, Any], cause: str, model: Path, tmp_path: Path
) -> None:
    rewrite(model, **changes)
    with pytest.raises(BitconvError, match=cause):
        bitconv.convert(model, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_missing_layer_norm_type_is_the_default_one(model: Path, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "layer_norm_type"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(BitconvError, match="layer_norm_type 'default'"):
        bitconv.convert(model, tmp_path / "out.gguf")
