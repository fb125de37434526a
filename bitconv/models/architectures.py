"""GGUF architectures of BitNet models: which tensors a runner's graph loads, and of what shape.

Sources: the tensor tables of llama.cpp and of bitnet.cpp's fork of it. A runner refuses a file that lacks one of
these tensors or holds any other ("wrong number of tensors").
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum

from bitconv.models.hyperparameters import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, Hyperparameters


class Role(Enum):
    """What a tensor is to the model, which decides the types that it may have."""

    TERNARY = "ternary"
    NORM = "norm"
    BIAS = "bias"
    EMBEDDING = "embedding"  # the token embedding and an untied output head
    ROUTER = "router of experts"
    SCALE = "scale"
    ROPE_FACTORS = "rope factors"


@dataclass(frozen=True)
class Slot:
    """A tensor that an architecture loads. Shape row-major: (experts, rows, columns), (rows, columns) or (length,)."""

    name: str
    shape: tuple[int, ...]
    role: Role
    optional: bool = False


@dataclass(frozen=True)
class Architecture:
    """activation: the `hidden_act` that the graph applies, whatever the file says.

    untied_head: an output.weight is loaded and used. bitnet has none, and the bitnet-b1.58 graph multiplies by the
    embedding even where one is present.
    idle_head: an output.weight is loaded and not used.
    rope_scaling: kinds that the graph applies; for llama3 it loads a rope_freqs.weight, and so for longrope with one
    list. For longrope with two it loads both in some runners.
    interleaved_rope: the graph rotates neighbouring pairs of a head's rows; Hugging Face checkpoints rotate row i
    with row i + head_dim/2, so rows of q and k are permuted for it.
    free_head_dim: head_dim may differ from hidden / heads.
    qk_norms: each head of q and of k is normalised before the rotation.
    input_norms: the input of each projection is normalised, by a norm of its own.
    norm_types: that norms may have in a file; bitconv writes f32.
    late_qk_norms: after it, in place of before.
    biases: of which projections, by the names of their slots, a bias is added to the output.
    unscaled: of which projections llama.cpp loads a `.scale` tensor and does not multiply by it.
    multipliers: the embedding, what each half of a layer adds, and the logits are multiplied by numbers that the
    metadata states.
    mixture: where the metadata states experts, the feed-forward network is a mixture of them.
    windows: some layers attend to the last tokens only, and those alone are rotated.
    own_head: an output.weight must be there.
    """

    name: str
    activation: str
    sub_norms: bool
    untied_head: bool
    rope_scaling: tuple[str, ...]
    interleaved_rope: bool
    free_head_dim: bool
    idle_head: bool = False
    qk_norms: bool = False
    late_qk_norms: bool = False
    input_norms: bool = False
    biases: tuple[str, ...] = ()
    unscaled: tuple[str, ...] = ()
    multipliers: bool = False
    norm_types: tuple[str, ...] = ("f32",)
    mixture: bool = False
    windows: bool = False
    own_head: bool = False

    @property
    def graph(self) -> str:
        """Its name, which for two that a file calls the same says more."""
        return f"{self.name} with input norms" if self.input_norms else self.name

    def slots(self, sizes: Hyperparameters) -> list[Slot]:
        """Every tensor of a model of these sizes, in file order."""
        q_rows, kv_rows = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        hidden, ffn = sizes.hidden, sizes.ffn
        left_out = set() if self.sub_norms else {"attn_sub_norm", "ffn_sub_norm"}
        left_out |= set() if self.qk_norms else {"attn_q_norm", "attn_k_norm"}
        slots = [Slot("token_embd.weight", (sizes.vocab, hidden), Role.EMBEDDING)]
        factors = (sizes.head_dim // 2,)
        if sizes.rope_long is not None and "longrope" in self.rope_scaling:
            slots += [Slot(name, factors, Role.ROPE_FACTORS) for name in (ROPE_LONG, ROPE_SHORT)]
        elif "llama3" in self.rope_scaling:
            slots.append(Slot(ROPE_FREQS, factors, Role.ROPE_FACTORS, optional=True))
        for layer in range(sizes.layers):
            block = [
                Slot("attn_norm", (hidden,), Role.NORM),
                Slot("attn_q", (q_rows, hidden), Role.TERNARY),
                Slot("attn_q_norm", (sizes.head_dim,), Role.NORM),
                Slot("attn_k", (kv_rows, hidden), Role.TERNARY),
                Slot("attn_k_norm", (sizes.head_dim,), Role.NORM),
                Slot("attn_v", (kv_rows, hidden), Role.TERNARY),
                Slot("attn_sub_norm", (q_rows,), Role.NORM),
                Slot("attn_output", (hidden, q_rows), Role.TERNARY),
                Slot("ffn_norm", (hidden,), Role.NORM),
            ]
            if sizes.experts and self.mixture:
                block += [
                    Slot("ffn_gate_inp", (sizes.experts, hidden), Role.ROUTER),
                    Slot("ffn_gate_exps", (sizes.experts, ffn, hidden), Role.TERNARY),
                    Slot("ffn_up_exps", (sizes.experts, ffn, hidden), Role.TERNARY),
                    Slot("ffn_down_exps", (sizes.experts, hidden, ffn), Role.TERNARY),
                ]
            else:
                block += [
                    Slot("ffn_gate", (ffn, hidden), Role.TERNARY),
                    Slot("ffn_up", (ffn, hidden), Role.TERNARY),
                    Slot("ffn_sub_norm", (ffn,), Role.NORM),
                    Slot("ffn_down", (hidden, ffn), Role.TERNARY),
                ]
            for slot in block:
                name = f"blk.{layer}.{slot.name}.weight"
                if slot.role is Role.TERNARY and self.input_norms:
                    slots.append(Slot(input_norm_name(name), slot.shape[-1:], Role.NORM))
                if slot.name not in left_out:
                    slots.append(Slot(name, slot.shape, slot.role))
                if slot.name in self.biases:
                    slots.append(Slot(bias_name(name), slot.shape[:1], Role.BIAS))
                if slot.role is Role.TERNARY and slot.name not in self.unscaled:
                    count = slot.shape[0] if len(slot.shape) == 3 else 1
                    slots.append(Slot(scale_name(name), (count,), Role.SCALE, optional=True))
        slots.append(Slot("output_norm.weight", (hidden,), Role.NORM))
        if self.untied_head or self.idle_head:
            optional = not self.own_head
            slots.append(Slot("output.weight", (sizes.vocab, hidden), Role.EMBEDDING, optional=optional))
        return slots

    def scale_slots(self, sizes: Hyperparameters) -> set[str]:
        """The `.scale` tensors that the graph has a place for."""
        return {slot.name for slot in self.slots(sizes) if slot.role is Role.SCALE}


def scale_name(weight_name: str) -> str:
    """The name of the optional float32 tensor that multiplies a weight's output, of shape (1,), or (experts,) for a
    stack of experts (llama.cpp, 2026)."""
    return weight_name.removesuffix("weight") + "scale"


def expert_name(stack: str, number: int) -> str:
    """Of one matrix of a stack of experts, which no file has by itself."""
    return f"{stack}.{number}"


def bias_name(weight_name: str) -> str:
    """The name of what is added to a projection's output."""
    return weight_name.removesuffix("weight") + "bias"


def input_norm_name(weight_name: str) -> str:
    """The name of the norm on a projection's input (bitnet.cpp, July 2026)."""
    return weight_name.removesuffix(".weight") + "_norm_in.weight"


LLAMA = Architecture(
    "llama",
    activation="silu",
    sub_norms=False,
    untied_head=True,
    rope_scaling=("linear", "llama3", "longrope"),
    interleaved_rope=True,
    free_head_dim=True,
    mixture=True,
)
BITNET = Architecture(
    "bitnet",
    activation="silu",
    sub_norms=True,
    untied_head=False,
    rope_scaling=(),
    interleaved_rope=False,
    free_head_dim=False,
)
# bitnet.cpp from April 2025 on; the first release of it called the same graph bitnet-25.
BITNET_B158 = Architecture(
    "bitnet-b1.58",
    activation="relu2",
    sub_norms=True,
    untied_head=False,
    rope_scaling=(),
    interleaved_rope=False,
    free_head_dim=False,
    idle_head=True,
)
# The graph of llama.cpp and of ik_llama.cpp.
QWEN3 = Architecture(
    "qwen3",
    activation="silu",
    sub_norms=False,
    untied_head=True,
    rope_scaling=("linear", "yarn"),
    interleaved_rope=False,
    free_head_dim=True,
    qk_norms=True,
)
# Measured of these three in llama.cpp b11549.
_UNSCALED = ("ffn_gate", "ffn_up", "ffn_down")
QWEN2 = replace(QWEN3, name="qwen2", qk_norms=False, biases=("attn_q", "attn_k", "attn_v"), unscaled=_UNSCALED)
# transformers' hunyuan_v1_dense and llama.cpp (2026): the heads of q and k are normalised after the rotation.
HUNYUAN_DENSE = replace(QWEN3, name="hunyuan-dense", rope_scaling=(), late_qk_norms=True, unscaled=_UNSCALED)
# llama.cpp (2026): src/models/minicpm.cpp, and conversion/minicpm.py for the numbers.
MINICPM = replace(
    LLAMA,
    name="minicpm",
    rope_scaling=("linear", "longrope"),
    multipliers=True,
    mixture=False,
    unscaled=_UNSCALED,
)
# llama.cpp (August 2026): src/models/maple.cpp, and conversion/maple.py for keys. Its experts have no `.scale` tensors.
MAPLE = replace(
    QWEN3,
    name="maple",
    rope_scaling=(),
    mixture=True,
    unscaled=("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    windows=True,
    own_head=True,
)
# The graph of bitnet.cpp from July 2026: Qwen3's with norms on the inputs of projections, and under the same name. Its
# own converter writes norms in float16, and its graph multiplies by either. Sources: bitnet.cpp's
# utils/convert-bitnet-embedding-to-gguf.py for names and metadata; what it says of its graph in
# docs/bitnet-embeddings-gguf-conversion.md (May 2026) and docs/bitnet-embeddings-i2s-guide.md (July 2026).
QWEN3_INPUT_NORMS = replace(QWEN3, rope_scaling=(), input_norms=True, norm_types=("f32", "f16"))

_BY_NAME = {
    "llama": LLAMA,
    "bitnet": BITNET,
    "bitnet-b1.58": BITNET_B158,
    "bitnet-25": BITNET_B158,
    "qwen3": QWEN3,
    "qwen2": QWEN2,
    "hunyuan-dense": HUNYUAN_DENSE,
    "minicpm": MINICPM,
    "maple": MAPLE,
}


def architecture(name: str, tensors: Collection[str]) -> Architecture | None:
    """The architecture of a file with this name and these tensors, which tell the two apart that are called qwen3."""
    if name == QWEN3.name and any(tensor.endswith(input_norm_name("")) for tensor in tensors):
        return QWEN3_INPUT_NORMS
    return _BY_NAME.get(name)


def architecture_names() -> list[str]:
    return list(_BY_NAME)
