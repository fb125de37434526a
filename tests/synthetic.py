"""Small checkpoints of every supported family with random weights, and the ternary rules written out in numpy.

Nothing here is imported from bitconv: what the tests expect is derived by code of its own.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
GGUF_PROJECTIONS = dict(
    zip(PROJECTIONS, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), strict=True)
)
GGUF_EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
GGUF_EXPERTS |= {"gate_proj": "ffn_gate_exps", "down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps"}
GGUF_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.inner_attn_ln": "attn_sub_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_layernorm": "ffn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
}


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def absmean(weights: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """The absmean rule of BitNet b1.58: trits and scale of float32 master weights."""
    mean = np.float32(np.abs(weights.astype(np.float64)).sum() / weights.size)
    scale = max(mean, np.float32(1e-5))
    products = weights.astype(np.float32) * (np.float32(1) / scale)
    return np.clip(np.rint(products), -1, 1).astype(np.int8), scale


def pack_hf(trits: np.ndarray) -> np.ndarray:
    """Hugging Face's packing of trits, four rows to a byte."""
    quarters = (trits + 1).astype(np.uint8).reshape(4, trits.shape[0] // 4, trits.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def interleave(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection from the half-rotation order to the interleaved one, head by head, row by row."""
    head_dim = matrix.shape[0] // heads
    order = []
    for head in range(heads):
        for pair in range(head_dim // 2):
            order += [head * head_dim + pair, head * head_dim + head_dim // 2 + pair]
    return matrix[order]


@dataclass
class Synthetic:
    """A checkpoint on disk, and what its GGUF file must hold: trits and scale, or dense values, by GGUF name."""

    path: Path
    config: dict[str, Any]
    trits: dict[str, np.ndarray] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)  # of several, (rows, groups); of experts, (experts,)
    dense: dict[str, np.ndarray] = field(default_factory=dict)

    def rewrite_config(self, **changes: Any) -> None:
        """Write config.json again with keys changed; a value of None removes one."""
        self.config = {k: v for k, v in (self.config | changes).items() if v is not None}
        (self.path / "config.json").write_text(json.dumps(self.config))


FAMILIES = {
    "1bitllm": ("BitnetForCausalLM", "silu", "self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
    "microsoft": ("BitNetForCausalLM", "relu2", "self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    "llama": ("LlamaForCausalLM", "silu", None, None),
    "mixtral": ("MixtralForCausalLM", "silu", None, None),
    "qwen3": ("Qwen3ForCausalLM", "silu", None, None),
    "plain_qwen3": ("Qwen3ForCausalLM", "silu", None, None),
    "embedding": ("Qwen3Model", "silu", None, None),
    "qwen2": ("Qwen2ForCausalLM", "silu", None, None),
    "minicpm": ("MiniCPMForCausalLM", "silu", None, None),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", "silu", None, None),
    "maple": ("MapleForCausalLM", "silu", None, None),
}
# Router, and matrices of an expert: gate, up, down.
MIXTURES = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    "maple": ("mlp.gate", "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}
# What config.json says of a family besides.
CONFIGS: dict[str, dict[str, Any]] = {"minicpm": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64}}
HEAD_NORMS = {
    "qwen3": ("q_norm", "k_norm"),
    "plain_qwen3": ("q_norm", "k_norm"),
    "embedding": ("q_norm", "k_norm"),
    "hunyuan": ("query_layernorm", "key_layernorm"),
    "maple": ("q_norm", "k_norm"),
}


def make_checkpoint(
    path: Path,
    family: str,
    *,
    dtype: str = "bf16",
    packed: bool | None = None,
    convention: str | None = None,
    hidden: int = 256,
    ffn: int = 384,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 2,
    shards: int = 1,
    scalar_scale: bool = False,
    head_dim: int | None = None,
    experts: int = 4,
    vocab: int | None = None,
    seed: int = 0,
    marked: bool = True,
    ternary_floats: bool = False,
    row_scales: bool = False,
    group: int | None = None,
    tied: bool | None = None,
) -> Synthetic:
    """Write a checkpoint of a family. dtype: of all floats. packed, convention and tied default to the family's usual.

    marked: says with a quantization_config that it is BitNet (a Llama or plain Qwen3; others need none).
    ternary_floats: stores trit * scale, as SpectraSuite's unpacked TriLMs do, in place of master weights. row_scales: a
    scale a row; group: one for so many columns. scalar_scale: stored in shape (), or (rows,), in place of (1,) and
    (rows, 1).
    """
    rng = np.random.default_rng(seed)
    input_norms = family in ("qwen3", "embedding")
    llama = family in ("llama", "mixtral", "minicpm")
    untied = llama or family in ("qwen3", "plain_qwen3", "qwen2", "hunyuan", "maple")
    ternary_floats = ternary_floats or family == "maple"
    packed = untied and not ternary_floats if packed is None else packed
    convention = convention or ("divide" if untied else "multiply")
    tied = not untied if tied is None else tied
    hf_name, activation, attn_sub_norm, ffn_sub_norm = FAMILIES[family]
    size = head_dim or hidden // heads
    tokenizer = "bitnet_b1_58-tiny" if family == "1bitllm" else "Llama3-1.58-tiny"
    vocab = vocab or (1024 if family == "1bitllm" else 1280)
    config: dict[str, Any] = {
        "architectures": [hf_name],
        "hidden_act": activation,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
        **CONFIGS.get(family, {}),
    }
    if head_dim:
        config["head_dim"] = head_dim
    maybe_marked = family in ("llama", "plain_qwen3", "qwen2", "minicpm", "hunyuan")
    if maybe_marked and marked and packed:
        config["quantization_config"] = {"quant_method": "bitnet"}
    elif family == "mixtral":
        config |= {"num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": None}
        config["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", "gate"]}
    elif family == "maple":
        kinds = ["full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(layers)]
        config |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": ffn, "layer_types": kinds}
        config |= {"sliding_window": 32, "num_shared_experts": 0, "norm_topk_prob": True, "head_dim": size}
        config["nope_on_global_attention"] = True
    elif family == "qwen3":
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "bitlinear" if packed else "autobitlinear",
            "quantization_mode": "offline" if packed else "online",
            "use_rms_norm": True,
        }
    elif family == "microsoft" or (maybe_marked and marked):
        mode = "offline" if packed else "online"
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": mode,
        }
    result = Synthetic(path, config)
    tensors: dict[str, np.ndarray] = {}
    u8: set[str] = set()

    def rounded(values: np.ndarray) -> np.ndarray:
        if dtype == "bf16":
            return round_to_bf16(values)
        return values.astype(np.float16 if dtype == "f16" else np.float32).astype(np.float32)

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rounded(rng.standard_normal(shape) * scale)

    def dense(name: str, gguf_name: str, *shape: int, scale: float = 1.0) -> None:
        tensors[name] = result.dense[gguf_name] = floats(*shape, scale=scale)

    root = "" if family == "embedding" else "model."
    dense(f"{root}embed_tokens.weight", "token_embd.weight", vocab, hidden)
    dense(f"{root}norm.weight", "output_norm.weight", hidden)
    if not tied:
        # Small where runners are compared by it, so that no token has all the probability.
        small = family in ("plain_qwen3", "qwen2", "hunyuan", "maple")
        dense("lm_head.weight", "output.weight", vocab, hidden, scale=1 / 16 if small else 1.0)
    shapes = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_heads * size, hidden),
        "self_attn.v_proj": (kv_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    if family in MIXTURES:
        router, stack, names_of = MIXTURES[family]
        shapes = {name: shape for name, shape in shapes.items() if "mlp" not in name}
        for expert in range(experts):
            for name, shape in zip(names_of, ((ffn, hidden), (ffn, hidden), (hidden, ffn)), strict=True):
                shapes[f"{stack}.{expert}.{name}"] = shape
    for layer in range(layers):
        prefix = f"{root}layers.{layer}"
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if attn_sub_norm and ffn_sub_norm:
            norms |= {attn_sub_norm: heads * size, ffn_sub_norm: ffn}
        norms |= {f"self_attn.{norm}": size for norm in HEAD_NORMS.get(family, ())}
        if input_norms:
            module = "rms_norm" if family == "qwen3" else "norm"
            for projection, (_, columns) in shapes.items():
                name = f"blk.{layer}.{GGUF_PROJECTIONS[projection]}_norm_in.weight"
                dense(f"{prefix}.{projection}.{module}.weight", name, columns)
        if family in MIXTURES:
            dense(f"{prefix}.{router}.weight", f"blk.{layer}.ffn_gate_inp.weight", experts, hidden)
        for norm, length in norms.items():
            dense(f"{prefix}.{norm}.weight", f"blk.{layer}.{GGUF_NORMS[norm]}.weight", length)
        for projection, shape in shapes.items():
            name = f"{prefix}.{projection}.weight"
            # Experts have scales that differ, so that one for all would be seen.
            expert = int(projection.split(".")[-2]) if "experts" in projection else 0
            masters = floats(*shape, scale=0.05 / (1 + expert))
            trits, scale = absmean(masters)
            if family == "qwen2" and projection.endswith(("q_proj", "k_proj", "v_proj")):
                bias = f"blk.{layer}.{GGUF_PROJECTIONS[projection]}.bias"
                dense(f"{prefix}.{projection}.bias", bias, shape[0], scale=0.5)
            several = row_scales or group is not None
            if several:
                scale = rounded(scale * rng.uniform(0.5, 2, (shape[0], shape[1] // (group or shape[1]))))
            if packed:
                stored = rounded(np.array(1 / scale if convention == "divide" else scale, np.float32))
                form = () if scalar_scale else (1,)
                tensors[name.replace(".weight", ".weight_scale")] = stored.reshape((-1, *form) if several else form)
                scale = np.float32(1) / stored if convention == "divide" else stored
                tensors[name] = pack_hf(trits)
                u8.add(name)
            elif ternary_floats or several:
                scale = scale if several else rounded(np.array([[scale]], np.float32))
                tensors[name] = (trits * np.repeat(scale, shape[1] // scale.shape[1], axis=1)).astype(np.float32)
            else:
                tensors[name] = masters
            if llama and projection.endswith(("q_proj", "k_proj")):
                rows_of = heads if projection.endswith("q_proj") else kv_heads
                trits = interleave(trits, rows_of)
                scale = interleave(scale, rows_of) if several else scale
            scale = np.float32(scale) if several else np.float32(np.reshape(scale, ()))
            if projection in GGUF_PROJECTIONS:
                gguf_name = f"blk.{layer}.{GGUF_PROJECTIONS[projection]}.weight"
                result.trits[gguf_name], result.scales[gguf_name] = trits, scale
            else:  # an expert's: stacked
                gguf_name = f"blk.{layer}.{GGUF_EXPERTS[projection.rpartition('.')[2]]}.weight"
                stack = [*result.trits.get(gguf_name, ()), trits]
                result.trits[gguf_name] = np.stack(stack)
                scales = [*result.scales.get(gguf_name, ()), scale]
                result.scales[gguf_name] = np.array(scales, np.float32)

    path.mkdir(parents=True)
    result.rewrite_config()
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        if (FIXTURES / tokenizer / name).exists():
            shutil.copy(FIXTURES / tokenizer / name, path / name)
    if family == "embedding":
        append_eos(path / "tokenizer.json")
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors, dtype, u8)
        return result
    weight_map = {}
    for shard in range(shards):
        part = names[shard::shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(path / file, {name: tensors[name] for name in part}, dtype, u8)
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return result


def append_eos(tokenizer: Path) -> None:
    """Make a tokenizer.json append <|end_of_text|> to a text, and put nothing in front."""
    value = json.loads(tokenizer.read_text())
    token = "<|end_of_text|>"
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [1273], "tokens": [token]}},
    }
    tokenizer.write_text(json.dumps(value))


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], dtype: str, u8: set[str] = frozenset()) -> None:
    """Store float tensors as dtype (bf16, f16, f32), those in u8 as they are. numpy has no bf16: patch the header."""
    if dtype != "bf16":
        to = {"f16": np.float16, "f32": np.float32}[dtype]
        save_file({n: t if n in u8 else np.ascontiguousarray(t, to).reshape(t.shape) for n, t in tensors.items()}, file)
        return
    halves = {
        n: t if n in u8 else (np.ascontiguousarray(t).view(np.uint32) >> 16).astype(np.uint16).reshape(t.shape)
        for n, t in tensors.items()
    }
    save_file(halves, file)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"dtype":"U16"', b'"dtype":"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def rope_factors(factor: float, low: float, high: float, original: int, base: float, dims: int) -> np.ndarray:
    """llama3 rope scaling, one frequency at a time, as the Llama 3.1 reference states it."""
    result = []
    for i in range(0, dims, 2):
        wavelength = 2 * math.pi * base ** (i / dims)
        if wavelength < original / high:
            result.append(1.0)
        elif wavelength > original / low:
            result.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result, np.float32)
