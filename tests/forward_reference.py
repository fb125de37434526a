"""The forward pass in numpy, written from its definition: the kernels must compute the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bitconv.gguf import read_gguf
from bitconv.inference.forward import FloatProjection, ForwardPass, Projection
from bitconv.layouts.dense import decode
from bitconv.models.architectures import expert_name
from bitconv.packed.inspection import inspect_file

Floats = npt.NDArray[np.float32]
one = np.float32(1)


def total(terms: Floats) -> Floats:
    """The sums over the last axis: 16 partial sums, number l adding the terms i with i % 16 = l in ascending order;
    then number l takes l + 8, for l < 8, and so on down to 1."""
    padded = np.zeros((*terms.shape[:-1], -(-terms.shape[-1] // 16) * 16), np.float32)
    padded[..., : terms.shape[-1]] = terms
    lanes = np.zeros((*terms.shape[:-1], 16), np.float32)
    for at in range(0, padded.shape[-1], 16):
        lanes = lanes + padded[..., at : at + 16]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(x: Floats) -> Floats:
    """2^n e^r, with e^r as its series to the seventh power: 0 below -87 and infinite above 88."""
    shift = np.float32(1.5 * 2**23)
    n = x * np.float32(1.4426950408889634) + shift - shift
    with np.errstate(invalid="ignore"):
        r = x - n * np.float32(0.693145751953125) - n * np.float32(1.42860682030941723212e-6)
    series = np.ones_like(x)
    for k in range(7, 0, -1):
        series = series * r * (one / np.float32(k)) + one
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ldexp(series, n.astype(np.int32))
    return np.where(x < -87, np.float32(0), np.where(x > 88, np.float32(np.inf), result))


class Reference:
    """As ForwardPass, of one text at a time. A model with a fault overrides what it computes otherwise."""

    def __init__(self, file: Path) -> None:
        gguf = read_gguf(file)
        model = ForwardPass(gguf, inspect_file(gguf), threads=1)
        self.sizes, self.architecture = model.sizes, model.architecture
        self._model: Any = model
        self._weights = {name: self._unpacked(p) for name, p in model.projections.items()}

    def new_cache(self, capacity: int) -> int:
        return capacity

    def logits(self, tokens: npt.NDArray[np.int64], capacity: int) -> Floats:
        sizes, model = self.sizes, self._model
        x = model._embedding.of(tokens) * np.float32(sizes.embedding_scale)
        cos, sin = model._rotation(np.arange(len(tokens)), capacity)
        residual = np.float32(sizes.residual_scale)
        for layer in range(sizes.layers):
            block = f"blk.{layer}"
            x = x + self.attention(block, self.norm(x, f"{block}.attn_norm"), cos, sin) * residual
            x = x + self.feed_forward(block, self.norm(x, f"{block}.ffn_norm")) * residual
        normed = self.norm(x, "output_norm") / np.float32(sizes.logit_divisor)
        head = model._head
        rows, _ = decode(head.rows.reshape(-1), head.dtype)
        return np.stack([total(rows.reshape(head.tokens, -1) * row) for row in normed])

    def attention(self, block: str, x: Floats, cos: Floats, sin: Floats) -> Floats:
        sizes, count, layer = self.sizes, len(x), int(block.removeprefix("blk."))
        windowed = bool(sizes.windowed) and sizes.windowed[layer]
        q, k, v = (
            self.project(x, f"{block}.attn_{name}").reshape(count, -1, sizes.head_dim).swapaxes(0, 1) for name in "qkv"
        )
        if self.architecture.qk_norms and not self.architecture.late_qk_norms:
            q, k = self.norm(q, f"{block}.attn_q_norm"), self.norm(k, f"{block}.attn_k_norm")
        if windowed or not sizes.windowed:
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        if self.architecture.qk_norms and self.architecture.late_qk_norms:
            q, k = self.norm(q, f"{block}.attn_q_norm"), self.norm(k, f"{block}.attn_k_norm")
        mixed = np.empty_like(q)
        for head in range(sizes.heads):
            kv = head * sizes.kv_heads // sizes.heads
            for t in range(count):
                scores = total(k[kv, : t + 1] * q[head, t]) * np.float32(sizes.head_dim**-0.5)
                if windowed:
                    scores[: max(0, t + 1 - sizes.window)] = -np.inf
                weights = exponential(scores - scores.max())
                mixed[head, t] = total(v[kv, : t + 1].T * weights) / total(weights)
        joined = mixed.swapaxes(0, 1).reshape(count, -1)
        if self.architecture.sub_norms:
            joined = self.norm(joined, f"{block}.attn_sub_norm")
        return self.project(joined, f"{block}.attn_output")

    def feed_forward(self, block: str, x: Floats) -> Floats:
        router = self.vector(f"{block}.ffn_gate_inp.weight")
        if router is None:
            return self.network(block, x, f"{block}.ffn_gate", f"{block}.ffn_up", f"{block}.ffn_down")
        logits = np.stack([total(router * row) for row in x])
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : self.sizes.experts_used]
        shares = np.take_along_axis(logits, chosen, axis=1)
        shares = exponential(shares - shares.max(axis=1, keepdims=True))
        shares = shares / total(shares)[:, None]
        mixed = np.zeros_like(x)
        for expert in range(self.sizes.experts):
            tokens, place = np.nonzero(chosen == expert)
            names = (expert_name(f"{block}.ffn_{slot}_exps", expert) for slot in ("gate", "up", "down"))
            if tokens.size:
                mixed[tokens] += self.network(block, x[tokens], *names) * shares[tokens, place][:, None]
        return mixed

    def network(self, block: str, x: Floats, gate_name: str, up_name: str, down_name: str) -> Floats:
        gate, up = self.project(x, gate_name), self.project(x, up_name)
        if self.sizes.expert_clamp is not None:
            limit = np.float32(self.sizes.expert_clamp)
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        gated = self.activation(gate) * up
        if self.architecture.sub_norms:
            gated = self.norm(gated, f"{block}.ffn_sub_norm")
        return self.project(gated, down_name)

    def activation(self, x: Floats) -> Floats:
        return x / (one + exponential(-x)) if self.architecture.activation == "silu" else np.square(np.maximum(x, 0))

    def norm(self, x: Floats, name: str) -> Floats:
        mean = total(x * x) / np.float32(x.shape[-1])
        return x * (one / np.sqrt(mean + np.float32(self.sizes.rms_eps)))[..., None] * self.vector(f"{name}.weight")

    def rotate(self, x: Floats, cos: Floats, sin: Floats) -> Floats:
        """(heads, n, head_dim)"""
        result = np.empty_like(x)
        half = x.shape[-1] // 2
        first, second = slice(0, half), slice(half, None)
        if self.architecture.interleaved_rope:
            first, second = slice(0, None, 2), slice(1, None, 2)
        a, b = x[..., first], x[..., second]
        result[..., first], result[..., second] = a * cos - b * sin, b * cos + a * sin
        return result

    def project(self, x: Floats, name: str) -> Floats:
        if self.architecture.input_norms:
            x = self.norm(x, f"{name}_norm_in")
        weights, scale = self._weights[f"{name}.weight"]
        magnitude = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
        divisor = one / magnitude * np.float32(127)
        rounded = np.rint(x * divisor).astype(np.int64)
        if np.ndim(scale) == 0 or scale.shape[1] == 1:
            product = (rounded @ weights.T).astype(np.float32) * (np.reshape(scale, (1, -1)) / divisor)
        else:
            groups = weights.reshape(len(weights), scale.shape[1], -1)
            sums = np.einsum("ngk,rgk->grn", rounded.reshape(len(x), scale.shape[1], -1), groups)
            added = np.zeros((len(weights), len(x)))
            for group, part in enumerate(sums):
                added = added + part * scale[:, group, None].astype(np.float64)
            product = added.T.astype(np.float32) / divisor
        bias = self.vector(f"{name}.bias")
        return product if bias is None else product + bias

    def vector(self, name: str) -> Any:
        return self._model._vectors.get(name)

    def _unpacked(self, projection: Projection | FloatProjection) -> tuple[npt.NDArray[np.int64], Any]:
        assert isinstance(projection, Projection)
        trits, _ = projection.layout.unpack_rows(projection.packed, projection.shape[1])
        return trits.astype(np.int64), np.asarray(projection.scale)
