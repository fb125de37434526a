"""The sizes of a model: read from config.json or from GGUF metadata, written as GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.system.errors import BitconvError, Code, plain

# Tensors of divisors of the rotary frequencies. llama.cpp (2026, the graph of llama) loads the first, or the two others
# where rope.scaling.type is longrope; of them it takes the long one in a context of more than original_context_length.
ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


# The keys of multipliers after `{architecture}.`, the last of which divides (llama.cpp, graphs of Granite and MiniCPM).
MULTIPLIERS = ("embedding_scale", "residual_scale", "logit_scale")


class UnsupportedMetadata(BitconvError):  # noqa: N818 - it is a BitconvError
    """A file asks for what some runner computes and bitconv does not."""


@dataclass(frozen=True)
class Llama3Rope:
    """rope_type "llama3": the frequencies of long wavelengths are divided by `factor`, those between smoothly."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def factors(self, base: float, dims: int) -> npt.NDArray[np.float32]:
        """Divisors of the dims/2 rotary frequencies, float32, as llama.cpp's rope_freqs.weight holds them."""
        frequencies = base ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
        wavelengths = 2 * math.pi / frequencies
        smooth = (self.original_context / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        return (1 / ((1 - smooth) / self.factor + smooth)).astype(np.float32)


@dataclass(frozen=True)
class YarnRope:
    """rope_type "yarn", with what transformers and runners take for its parameters where they are not stated.

    The frequencies that make 32 turns or more in the original context stay, those with one turn or less are divided by
    `factor`, those between smoothly. cos and sin are multiplied by `magnitude`.
    """

    factor: float
    original_context: int

    def factors(self, base: float, dims: int) -> npt.NDArray[np.float64]:
        """Divisors of the dims/2 rotary frequencies."""
        fast, slow = (
            dims * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)
        )
        low, high = max(math.floor(fast), 0), min(math.ceil(slow), dims - 1)
        divided = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return 1 / (divided / self.factor + 1 - divided)

    @property
    def magnitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1


@dataclass(frozen=True)
class LongRope:
    """rope_type "longrope" with two lists: the frequencies are divided by `short`, and by `long` where there are more
    than `original_context` tokens. The lists are empty in what a file's metadata says: it has them as tensors.
    """

    original_context: int
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True)
class Hyperparameters:
    """rope_factors: divisors of the rotary frequencies, those of longrope whose two lists are one. rope_magnitude: cos
    and sin are multiplied by it, and by what yarn multiplies them by. embedding_scale, residual_scale: what multiplies
    the embedding, and what each half of a layer adds. logit_divisor: what divides the logits. windowed: which layers
    attend to the last `window` tokens only; empty where none does. expert_clamp: the gate of an expert is at most this,
    and what it multiplies no more in either direction.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rms_eps: float
    rope_base: float
    rope_linear_factor: float | None = None
    rope_llama3: Llama3Rope | None = None
    rope_yarn: YarnRope | None = None
    rope_long: LongRope | None = None
    rope_factors: tuple[float, ...] | None = None
    rope_magnitude: float = 1.0
    experts: int = 0
    experts_used: int = 0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    window: int = 0
    windowed: tuple[bool, ...] = ()
    expert_clamp: float | None = None

    @property
    def rope_scaling(self) -> str | None:
        """transformers' rope_type, None for "default"."""
        kinds = {
            "linear": self.rope_linear_factor,
            "llama3": self.rope_llama3,
            "yarn": self.rope_yarn,
            "longrope": self.rope_long or self.rope_factors,
        }
        stated = next((kind for kind, scaling in kinds.items() if scaling is not None), None)
        return "longrope" if stated is None and self.rope_magnitude != 1 else stated

    @property
    def multipliers(self) -> tuple[float, float, float]:
        """In the order of MULTIPLIERS."""
        return self.embedding_scale, self.residual_scale, self.logit_divisor

    def factor_tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Divisors of the rotary frequencies by the names of the tensors that hold them."""
        if self.rope_llama3 is not None:
            return {ROPE_FREQS: self.rope_llama3.factors(self.rope_base, self.head_dim)}
        if self.rope_factors is not None:
            return {ROPE_FREQS: np.array(self.rope_factors, np.float32)}
        if self.rope_long is not None:
            lists = {ROPE_LONG: self.rope_long.long, ROPE_SHORT: self.rope_long.short}
            return {name: np.array(factors, np.float32) for name, factors in lists.items()}
        return {}

    def metadata(self, architecture: str) -> Metadata:
        """The `{architecture}.*` keys that runners read (llama.cpp's names and types)."""
        keys: Metadata = {
            "vocab_size": np.uint32(self.vocab),
            "context_length": np.uint32(self.context),
            "embedding_length": np.uint32(self.hidden),
            "block_count": np.uint32(self.layers),
            "feed_forward_length": np.uint32(self.ffn),
            "attention.head_count": np.uint32(self.heads),
            "attention.head_count_kv": np.uint32(self.kv_heads),
            "attention.layer_norm_rms_epsilon": np.float32(self.rms_eps),
            "rope.dimension_count": np.uint32(self.head_dim),
            "rope.freq_base": np.float32(self.rope_base),
        }
        if self.head_dim * self.heads != self.hidden:
            keys["attention.key_length"] = np.uint32(self.head_dim)
            keys["attention.value_length"] = np.uint32(self.head_dim)
        if self.experts:
            keys["expert_count"] = np.uint32(self.experts)
            keys["expert_used_count"] = np.uint32(self.experts_used)
        if self.expert_clamp is not None:
            keys["swiglu_clamp_exp"] = np.full(self.layers, self.expert_clamp, np.float32)
        if self.windowed:
            keys["expert_feed_forward_length"] = np.uint32(self.ffn)
            keys["attention.sliding_window"] = np.uint32(self.window)
            keys["attention.sliding_window_pattern"] = np.array(self.windowed, np.bool_)
        for name, multiplier in zip(MULTIPLIERS, self.multipliers, strict=True):
            if multiplier != 1:
                keys[name] = np.float32(multiplier)
        if self.rope_linear_factor is not None:
            keys["rope.scaling.type"] = "linear"
            keys["rope.scaling.factor"] = np.float32(self.rope_linear_factor)
        if self.rope_yarn is not None:
            keys["rope.scaling.type"] = "yarn"
            keys["rope.scaling.factor"] = np.float32(self.rope_yarn.factor)
            keys["rope.scaling.original_context_length"] = np.uint32(self.rope_yarn.original_context)
        if self.rope_long is not None:
            # Without rope.scaling.factor: llama.cpp would divide all frequencies by it, whatever the type.
            keys["rope.scaling.type"] = "longrope"
            keys["rope.scaling.original_context_length"] = np.uint32(self.rope_long.original_context)
        if self.rope_magnitude != 1:
            keys["rope.scaling.attn_factor"] = np.float32(self.rope_magnitude)
        return {f"{architecture}.{key}": value for key, value in keys.items()}


_ORIGINAL_CONTEXT = "original_max_position_embeddings"
# rope_scaling's keys that yarn may have, with what follows from the others in transformers: anything else is refused.
_YARN = {
    "attention_factor": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


def _in_float32(value: float) -> bool:
    """Whether a number stays positive and finite in float32, as GGUF stores it. Integers may have any size."""
    return 2.0**-149 <= value < 2.0**128 - 2.0**103


class Config:
    """config.json with checked look-ups."""

    def __init__(self, values: Mapping[str, Any], file: object) -> None:
        self.values = values
        self.file = file

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise BitconvError(f"{key} is {value!r:.80}, expected a positive integer", code=Code.CONFIG, file=self.file)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and _in_float32(value):
            return float(value)
        raise BitconvError(
            f"{key} is {value!r:.80}, expected a positive number that float32 can hold",
            code=Code.CONFIG,
            file=self.file,
        )

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of so many, as float32 holds them."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != count:
            found = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.80}"
            raise BitconvError(
                f"{key} is {found}, expected a list of {count} numbers", code=Code.CONFIG, file=self.file
            )
        items = (Config({key: item}, self.file).number(key) for item in value)
        return tuple(float(np.float32(item)) for item in items)

    def boolean(self, key: str) -> bool:
        """False where it is missing."""
        value = self.values.get(key)
        if not isinstance(value, bool | None):
            raise BitconvError(f"{key} is {value!r}, expected true or false", code=Code.CONFIG, file=self.file)
        return bool(value)

    def group(self, key: str) -> Config:
        value = self.values.get(key)
        if not isinstance(value, Mapping | None):
            raise BitconvError(f"{key} is {value!r}, expected an object", code=Code.CONFIG, file=self.file)
        return Config(value or {}, f"{self.file}: {key}")


def _linear(factor: float) -> float | None:
    """llama.cpp's and bitnet.cpp's converters write a linear scaling of 1 for BitNet models, which is none."""
    return None if factor == 1 else factor


def from_config(values: Mapping[str, Any], file: object) -> Hyperparameters:
    """The sizes that config.json states (the keys of transformers' Llama-like configs)."""
    config = Config(values, file)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden // heads)
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads or head_dim % 2:
        raise BitconvError(
            f"{heads} heads of {head_dim} over {kv_heads} key-value heads cannot be divided",
            code=Code.CONFIG,
            file=file,
        )
    context = config.integer("max_position_embeddings")
    # transformers 5 writes rope_parameters, earlier releases rope_theta beside rope_scaling. Where both are there,
    # transformers 5 takes rope_scaling, and with it another rope_theta than rope_parameters states.
    spellings = [key for key in ("rope_parameters", "rope_scaling") if values.get(key)]
    if len(spellings) == 2 and values["rope_parameters"] != values["rope_scaling"]:
        raise BitconvError(
            "rope_parameters and rope_scaling say different things",
            code=Code.CONFIG,
            file=file,
            way_out="keep the one that holds",
        )
    rope = config.group(spellings[0] if spellings else "rope_scaling")
    for key, value in rope.values.items():
        if isinstance(value, Mapping):
            raise BitconvError(
                f"{key} has parameters of its own; all layers must have the same", code=Code.UNSUPPORTED, file=rope.file
            )
    for holder in (config, rope):
        if holder.values.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise BitconvError("partial_rotary_factor other than 1 is not supported", code=Code.UNSUPPORTED, file=file)
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    linear, llama3, yarn, long, factors, magnitude = None, None, None, None, None, 1.0
    if rope.values.get("rope_theta") is None and config.values.get("rope_theta") is None:
        raise BitconvError(
            "rope_theta is missing; what transformers takes then depends on the class and on its release",
            code=Code.CONFIG,
            file=file,
            way_out="write what the model was trained with (10000 for Llama's class)",
        )
    rope_base = (config if rope.values.get("rope_theta") is None else rope).number("rope_theta")
    if kind == "linear":
        linear = _linear(rope.number("factor"))
    elif kind == "llama3":
        llama3 = Llama3Rope(
            rope.number("factor"),
            rope.number("low_freq_factor"),
            rope.number("high_freq_factor"),
            rope.integer(_ORIGINAL_CONTEXT),
        )
        if llama3.high_freq_factor <= llama3.low_freq_factor:
            raise BitconvError(
                "rope scaling: high_freq_factor must be above low_freq_factor", code=Code.CONFIG, file=file
            )
    elif kind == "yarn":
        for key, usual in _YARN.items():
            if rope.values.get(key) not in (None, usual):
                raise BitconvError(
                    f"rope scaling 'yarn' with {key} {rope.values[key]!r} is not supported",
                    code=Code.UNSUPPORTED,
                    file=file,
                )
        yarn = YarnRope(rope.number("factor"), rope.integer(_ORIGINAL_CONTEXT, context))
        if yarn.factor < 1:
            raise BitconvError("rope scaling: factor must be 1 or more", code=Code.CONFIG, file=file)
        if rope_base <= 1:
            raise BitconvError("rope_theta must be above 1 for rope scaling 'yarn'", code=Code.CONFIG, file=file)
    elif kind == "longrope":
        long, magnitude = _longrope(config, rope, context, head_dim)
        if long.short == long.long:
            factors, long = (None if set(long.short) == {1.0} else long.short), None
    elif kind != "default":
        raise BitconvError(
            f"rope scaling {kind!r} is not supported (default, linear, llama3, yarn and longrope are)",
            code=Code.UNSUPPORTED,
            file=file,
        )
    types = values.get("layer_types")
    windowed = tuple(t == "sliding_attention" for t in types) if isinstance(types, list) else ()
    # Mixtral's keys.
    experts = config.integer("num_local_experts") if "num_local_experts" in values else 0
    experts_used = config.integer("num_experts_per_tok") if experts else 0
    if experts_used > experts:
        raise BitconvError(
            f"num_experts_per_tok is {experts_used}, there are {experts} experts", code=Code.CONFIG, file=file
        )
    return Hyperparameters(
        layers=config.integer("num_hidden_layers"),
        hidden=hidden,
        ffn=config.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config.integer("vocab_size"),
        context=context,
        rms_eps=config.number("rms_norm_eps"),
        rope_base=rope_base,
        rope_linear_factor=linear,
        rope_llama3=llama3,
        rope_yarn=yarn,
        rope_long=long,
        rope_factors=factors,
        rope_magnitude=magnitude,
        experts=experts,
        experts_used=experts_used,
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_divisor=config.number("logits_scaling", 1.0),
        window=config.integer("sliding_window") if any(windowed) and values.get("sliding_window") is not None else 0,
        windowed=windowed if any(windowed) else (),
        expert_clamp=config.number("swiglu_limit") if "swiglu_limit" in values else None,
    )


def _longrope(config: Config, rope: Config, context: int, head_dim: int) -> tuple[LongRope, float]:
    """The lists, and what cos and sin are multiplied by, as transformers 5 reads them.

    Phi-3's configs have original_max_position_embeddings beside rope_scaling, where it wins over one within.
    """
    for key in ("short_mscale", "long_mscale"):
        if rope.values.get(key) not in (None, 1, 1.0):
            raise BitconvError(
                f"{key} is {rope.values[key]!r:.80}; a magnitude for each list is not supported",
                code=Code.UNSUPPORTED,
                file=rope.file,
            )
    holder = rope if config.values.get(_ORIGINAL_CONTEXT) is None else config
    original = holder.integer(_ORIGINAL_CONTEXT, context)
    short, long = (rope.numbers(f"{length}_factor", head_dim // 2) for length in ("short", "long"))
    if rope.values.get("attention_factor") is not None:
        magnitude = rope.number("attention_factor")
    else:
        factor = rope.number("factor", context / original)
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(original, short, long), magnitude


# The keys after `{architecture}.` that from_metadata reads of every architecture, and of one.
_COMMON_KEYS = frozenset(
    {
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "expert_count",
        "expert_used_count",
    }
)
_OWN_KEYS = {
    "minicpm": MULTIPLIERS,
    "maple": (
        "expert_feed_forward_length",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "swiglu_clamp_exp",
    ),
}
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
# That runners know, longrope llama.cpp alone; they stop at others. And the keys of a factor, the older one last.
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_ROPE_FACTORS = ("rope.scaling.factor", "rope.scale_linear")


def metadata_keys(architecture: str) -> set[str]:
    """The keys that from_metadata reads."""
    return {f"{architecture}.{key}" for key in (*_COMMON_KEYS, *_OWN_KEYS.get(architecture, ()))}


def from_metadata(metadata: Metadata, architecture: str, file: object) -> Hyperparameters:
    """The sizes that a GGUF file states, or that runners take where it does not.

    MalformedGGUF where a key that runners require is missing, is no size or not of the type that they read it in
    (llama.cpp refuses others), or contradicts another. BitconvError for a kind of rope scaling that is not known.
    """

    def positive(key: str, kind: type[np.uint32] | type[np.float32], default: float | None) -> float:
        value = metadata.get(f"{architecture}.{key}", None if default is None else kind(default))
        if not isinstance(value, kind) or not 0 < value < math.inf:
            raise MalformedGGUF(
                f"{architecture}.{key} is {plain(value)}, expected a positive {kind.__name__}", file=file
            )
        return float(value)

    def size(key: str, default: int | None = None) -> int:
        return int(positive(key, np.uint32, default))

    def real(key: str, default: float | None = None) -> float:
        return positive(key, np.float32, default)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if size(key, head_dim) != head_dim:
            raise MalformedGGUF(f"{architecture}.{key} is {size(key)}, a head has {head_dim} dimensions", file=file)
    tokens = metadata.get("tokenizer.ggml.tokens")
    # What is missing is linear, by no factor or by that of the older key (llama.cpp and its kin, 2024 to 2026).
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "linear")
    if not isinstance(scaling, str) or scaling not in _ROPE_SCALINGS:
        raise MalformedGGUF(
            f"{architecture}.rope.scaling.type is {plain(scaling)}, expected one of {', '.join(_ROPE_SCALINGS)}",
            file=file,
        )
    factor_key = next((k for k in _ROPE_FACTORS if f"{architecture}.{k}" in metadata), _ROPE_FACTORS[0])
    # Runners take 0 for 1.
    zero = metadata.get(f"{architecture}.{factor_key}")
    factor = 1.0 if isinstance(zero, np.float32) and zero == 0 else real(factor_key, 1.0)
    context = size("context_length")
    original = size("rope.scaling.original_context_length", context)
    rope_base = real("rope.freq_base", 10000.0)
    linear = _linear(factor) if scaling in ("linear", "longrope") else None
    if scaling == "yarn" and rope_base <= 1:
        raise MalformedGGUF(f"{architecture}.rope.freq_base is {rope_base}, expected above 1 for yarn", file=file)
    # Files of models without experts state 0 of them, or nothing.
    stated = metadata.get(f"{architecture}.expert_count")
    experts = 0 if stated is None or (isinstance(stated, np.uint32) and stated == 0) else size("expert_count")
    used = size("expert_used_count") if experts else 0
    idle_use = None if experts else metadata.get(f"{architecture}.expert_used_count")
    if used > experts or not (idle_use is None or (isinstance(idle_use, np.uint32) and idle_use == 0)):
        raise MalformedGGUF(f"{architecture}.expert_used_count is more than the {experts} experts", file=file)
    layers = size("block_count")
    if layers > MAX_LAYERS:
        raise MalformedGGUF(f"{architecture}.block_count is {layers}; runners take {MAX_LAYERS} at most", file=file)
    window, windowed, expert_clamp = 0, tuple[bool, ...](), None
    if architecture == "maple":
        window = size("attention.sliding_window")
        pattern = metadata.get("maple.attention.sliding_window_pattern")
        if not isinstance(pattern, np.ndarray) or pattern.dtype != np.bool_ or len(pattern) != layers:
            key = "maple.attention.sliding_window_pattern"
            raise MalformedGGUF(f"{key} is no array of {layers} booleans, one a layer", file=file)
        windowed = tuple(map(bool, pattern))
        limits = metadata.get("maple.swiglu_clamp_exp")
        if not isinstance(limits, np.ndarray) or limits.dtype != np.float32 or len(limits) != layers:
            raise MalformedGGUF(f"maple.swiglu_clamp_exp is no array of {layers} float32, one a layer", file=file)
        expert_clamp = float(limits[0])
        if not (0 < expert_clamp < math.inf and (limits == limits[0]).all()):
            raise MalformedGGUF("maple.swiglu_clamp_exp is not one positive limit for all layers", file=file)
    # Where llama.cpp finds none of these it takes those of one MiniCPM; such a file is too old to be ternary.
    multipliers = (real(key) if architecture == "minicpm" else 1.0 for key in MULTIPLIERS)
    embedding_scale, residual_scale, logit_divisor = multipliers
    return Hyperparameters(
        layers=layers,
        hidden=hidden,
        ffn=size("expert_feed_forward_length" if architecture == "maple" else "feed_forward_length"),
        heads=heads,
        kv_heads=size("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=size("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        context=context,
        rms_eps=real("attention.layer_norm_rms_epsilon"),
        rope_base=rope_base,
        rope_linear_factor=linear,
        rope_yarn=YarnRope(factor, original) if scaling == "yarn" else None,
        rope_long=LongRope(original) if scaling == "longrope" else None,
        rope_magnitude=real("rope.scaling.attn_factor", 1.0),
        experts=experts,
        experts_used=used,
        embedding_scale=embedding_scale,
        residual_scale=residual_scale,
        logit_divisor=logit_divisor,
        window=window,
        windowed=windowed,
        expert_clamp=expert_clamp,
    )
