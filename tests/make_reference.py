"""Makes fixtures/next_token_reference.npz: what the bundled checkpoints predict, computed by PyTorch.

Run by hand (it needs torch, which the tests do not): python tests/make_reference.py

For every 16th position of eval.txt, as indices into its tokens: the natural logarithm of the probability of every next
token, given the position's window of 256 tokens up to it. The model is written here anew, and is checked against the
loss in reference.json first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

FIXTURES = Path(__file__).parent.parent / "fixtures"
MODELS = ("Llama3-1.58-tiny", "bitnet_b1_58-tiny")
WINDOW = 256
STRIDE = 16


class BitNet:
    """The forward pass of one sequence in float32, activations rounded to int8 a token before every projection."""

    def __init__(self, directory: Path) -> None:
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.tensors: dict[str, Tensor] = {}
        for shard in sorted(directory.glob("*.safetensors")):
            self.tensors.update(load_file(shard))
        self.heads = self.config["num_attention_heads"]
        self.head_dim = self.config["hidden_size"] // self.heads
        self.ternary = {name: self.ternary_weight(name) for name in self.tensors if name.endswith("_proj.weight")}

    def ternary_weight(self, name: str) -> Tensor:
        stored = self.tensors[name]
        if stored.dtype != torch.uint8:  # master weights: the absmean rule
            scale = stored.float().abs().double().mean().float()
            return (stored.float() * (1 / scale)).round().clamp(-1, 1) * scale
        trits = torch.cat([(stored >> shift) & 3 for shift in (0, 2, 4, 6)]).float() - 1
        weight_scale = self.tensors[f"{name}_scale"].float()
        multiplies = self.config["quantization_config"].get("linear_class") == "autobitlinear"
        return trits * weight_scale if multiplies else trits / weight_scale

    def project(self, name: str, x: Tensor) -> Tensor:
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return functional.linear((x * scale).round().clamp(-128, 127) / scale, self.ternary[f"{name}.weight"])

    def norm(self, x: Tensor, *names: str) -> Tensor:
        """RMS norm by the one of these weights that the checkpoint has, if it has one."""
        for name in names:
            if f"{name}.weight" in self.tensors:
                weight = self.tensors[f"{name}.weight"].float()
                return functional.rms_norm(x, weight.shape, weight, self.config["rms_norm_eps"])
        return x

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary embedding, row i of a head with row i + head_dim / 2. x: (heads, tokens, head_dim)."""
        half = self.head_dim // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(x.shape[1]), frequency)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def attention(self, layer: str, x: Tensor) -> Tensor:
        q, k, v = (
            self.project(f"{layer}.self_attn.{p}_proj", x).view(len(x), -1, self.head_dim).transpose(0, 1)
            for p in "qkv"
        )
        attended = functional.scaled_dot_product_attention(
            self.rotate(q)[None], self.rotate(k)[None], v[None], is_causal=True, enable_gqa=True
        )
        joined = attended[0].transpose(0, 1).flatten(1)
        names = (f"{layer}.self_attn.inner_attn_ln", f"{layer}.self_attn.attn_sub_norm")
        return self.project(f"{layer}.self_attn.o_proj", self.norm(joined, *names))

    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        gate = self.project(f"{layer}.mlp.gate_proj", x)
        gate = functional.silu(gate) if self.config["hidden_act"] == "silu" else functional.relu(gate).square()
        product = gate * self.project(f"{layer}.mlp.up_proj", x)
        names = (f"{layer}.mlp.ffn_layernorm", f"{layer}.mlp.ffn_sub_norm")
        return self.project(f"{layer}.mlp.down_proj", self.norm(product, *names))

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """(tokens, vocabulary): row i is for the token after tokens[i]."""
        embedding = self.tensors["model.embed_tokens.weight"].float()
        x = embedding[tokens]
        for index in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            x = x + self.attention(layer, self.norm(x, f"{layer}.input_layernorm"))
            x = x + self.feed_forward(layer, self.norm(x, f"{layer}.post_attention_layernorm"))
        head = embedding if self.config["tie_word_embeddings"] else self.tensors["lm_head.weight"].float()
        return functional.log_softmax(functional.linear(self.norm(x, "model.norm"), head), -1)


def tokenize(directory: Path, text: str) -> Tensor:
    if (directory / "tokenizer.json").exists():
        encoded = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    else:
        encoded = SentencePieceProcessor(model_file=str(directory / "tokenizer.model")).encode(text)
    return torch.tensor(encoded)


@torch.inference_mode()
def main() -> None:
    text = (FIXTURES / "eval.txt").read_text()
    reference = json.loads((FIXTURES / "reference.json").read_text())
    arrays: dict[str, Any] = {}
    for name in MODELS:
        model, tokens = BitNet(FIXTURES / name), tokenize(FIXTURES / name, text)
        windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
        predicted = torch.stack([model.log_probabilities(window) for window in windows])
        loss = -predicted[:, :-1].gather(2, windows[:, 1:, None]).mean().item()
        if abs(loss - reference[name]["nll"]) > 1e-3:
            raise SystemExit(f"{name}: loss {loss}, but reference.json says {reference[name]['nll']}")
        positions = torch.arange(STRIDE - 1, windows.numel(), STRIDE)
        arrays[f"{name}/positions"] = positions.numpy().astype(np.int32)
        arrays[f"{name}/log_probabilities"] = predicted.flatten(0, 1)[positions].numpy()
    np.savez_compressed(FIXTURES / "next_token_reference.npz", **arrays)


if __name__ == "__main__":
    main()
