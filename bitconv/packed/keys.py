"""The metadata keys of a GGUF file of a text model: which of them runners compute by, and in which type they read them.

One table. Every key of a file is in KEYS, or in IDLE_KEYS, by which no runner computes, or is not known; then a runner
may compute otherwise by it. Sources: src/llama-arch.cpp, llama-model.cpp, llama-model-loader.cpp and llama-vocab.cpp,
common/common.cpp and common/chat.cpp of llama.cpp (2026-10); the same files of ik_llama.cpp (2026-08) and of
bitnet.cpp's fork of llama.cpp (2024-10).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from bitconv.gguf import Metadata, Value, value_type
from bitconv.system.errors import plain


class Level(Enum):
    """REFUSED: runners do not load the file. FAULT: they load it, as something else. WARNING: it cannot be told."""

    REFUSED = "refused"
    FAULT = "fault"
    WARNING = "warning"


class Finding(NamedTuple):
    """Something about the metadata. key: the one that it is about."""

    key: str
    text: str
    level: Level = Level.FAULT


class Key(NamedTuple):
    """name: ARCH stands for the architecture's, * for any characters. type: as value_type names it, "any" where runners
    read all scalars. usual: what runners take where the key is missing, and what they need for a BitNet model; None
    where that depends on the model. unusual: what is to be said of any other value.
    """

    name: str
    type: str
    usual: Value | None = None
    unusual: Level = Level.WARNING


KEYS = (
    Key("general.architecture", "str"),
    Key("general.type", "str", "model", Level.FAULT),
    Key("general.file_type", "u32"),
    Key("general.quantization_version", "u32", np.uint32(2)),
    Key("general.alignment", "u32"),
    Key("general.sampling.*", "any"),
    Key("split.count", "u16", np.uint16(0), Level.REFUSED),
    Key("split.no", "u16", np.uint16(0)),
    Key("split.tensors.count", "i32"),
    Key("ARCH.vocab_size", "u32"),
    Key("ARCH.context_length", "u32"),
    Key("ARCH.embedding_length", "u32"),
    Key("ARCH.block_count", "u32"),
    Key("ARCH.feed_forward_length", "u32"),
    Key("ARCH.attention.head_count", "u32"),
    Key("ARCH.attention.head_count_kv", "u32"),
    Key("ARCH.attention.key_length", "u32"),
    Key("ARCH.attention.value_length", "u32"),
    Key("ARCH.attention.layer_norm_rms_epsilon", "f32"),
    Key("ARCH.attention.causal", "bool", True),
    Key("ARCH.rope.dimension_count", "u32"),
    Key("ARCH.rope.freq_base", "f32"),
    Key("ARCH.rope.scaling.type", "str"),
    Key("ARCH.rope.scaling.factor", "f32"),
    Key("ARCH.rope.scale_linear", "f32"),
    Key("ARCH.rope.scaling.original_context_length", "u32"),
    Key("ARCH.rope.scaling.attn_factor", "f32"),
    Key("ARCH.rope.scaling.finetuned", "bool"),
    Key("ARCH.expert_count", "u32"),
    Key("ARCH.expert_used_count", "u32"),
    Key("ARCH.expert_group_count", "u32", np.uint32(0), Level.REFUSED),
    Key("ARCH.expert_group_used_count", "u32", np.uint32(0), Level.REFUSED),
    Key("minicpm.embedding_scale", "f32"),
    Key("minicpm.residual_scale", "f32"),
    Key("minicpm.logit_scale", "f32"),
    Key("maple.expert_feed_forward_length", "u32"),
    Key("maple.attention.sliding_window", "u32"),
    Key("maple.attention.sliding_window_pattern", "[bool]"),
    Key("maple.swiglu_clamp_exp", "[f32]"),
    Key("ARCH.pooling_type", "u32"),
    # Of other models, but llama.cpp reads them of all.
    Key("ARCH.embedding_length_out", "u32", np.uint32(0)),
    Key("ARCH.nextn_predict_layers", "u32", np.uint32(0)),
    Key("ARCH.attention.key_length_swa", "u32", np.uint32(0)),
    Key("ARCH.attention.value_length_swa", "u32", np.uint32(0)),
    Key("ARCH.rope.dimension_count_swa", "u32", np.uint32(0)),
    Key("ARCH.rope.scaling.alpha", "f32", np.float32(0)),
    Key("tokenizer.ggml.model", "str"),
    Key("tokenizer.ggml.pre", "str"),
    Key("tokenizer.ggml.tokens", "[str]"),
    Key("tokenizer.ggml.merges", "[str]"),
    Key("tokenizer.ggml.scores", "[f32]"),
    Key("tokenizer.ggml.token_type", "[i32]"),
    Key("tokenizer.ggml.token_type_count", "u32", np.uint32(0)),
    Key("tokenizer.ggml.*_token_id", "u32"),
    Key("tokenizer.ggml.add_bos_token", "bool"),
    Key("tokenizer.ggml.add_eos_token", "bool"),
    Key("tokenizer.ggml.add_sep_token", "bool", False),
    Key("tokenizer.ggml.add_space_prefix", "bool"),
    Key("tokenizer.ggml.suppress_tokens", "[i32]"),
    Key("tokenizer.ggml.remove_extra_whitespaces", "bool", False),
    Key("tokenizer.ggml.normalizer.lowercase", "bool"),
    Key("tokenizer.ggml.normalizer.strip_accents", "bool"),
    Key("tokenizer.chat_template", "str"),
    Key("tokenizer.chat_template.*", "str"),
)
# Names, authors, sources and what the weights were quantized with; what bitconv notes for itself and checks by itself;
# and the list of the names of chat templates, which runners look up one by one. No runner computes by these, with an
# exception that name_findings makes. Runners read general.name as text, and none of the others in any type.
IDLE_KEYS = (
    "general.name",
    "general.author",
    "general.version",
    "general.organization",
    "general.finetune",
    "general.basename",
    "general.description",
    "general.quantized_by",
    "general.size_label",
    "general.license",
    "general.license.name",
    "general.license.link",
    "general.url",
    "general.doi",
    "general.uuid",
    "general.repo_url",
    "general.source.*",
    "general.base_model.*",
    "general.dataset.*",
    "general.datasets",
    "general.tags",
    "general.languages",
    "quantize.imatrix.*",
    "tokenizer.chat_templates",
    "bitconv.floats",
    "bitconv.i2_s_order",
    "bitconv.scales",
    "bitconv.tiles",
)
# What runners look for in general.name, in lower case: at the first two, special tokens swallow the space behind them,
# but for these; a runner that does not find one of them in the vocabulary does not load the file. At the third, in
# llama.cpp alone, [MASK] swallows the space in front.
_PHI = ("phi-3", "phi3")
_PHI_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_MODERN_BERT, _MASK = "modern-bert", "[MASK]"
_PATTERNS = tuple(key for key in KEYS if "*" in key.name)
_BY_NAME = {key.name: key for key in KEYS if "*" not in key.name}
_TOKEN_ID = "tokenizer.ggml.*_token_id"
# llama.cpp's tokens with a meaning; *_token_id of another name is no key of a runner's.
_TOKENS = frozenset(
    (
        *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask"),
        *("prefix", "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
    )
)


def find_key(name: str, architecture: str) -> Key | None:
    """The entry of KEYS for a key of a file of this architecture."""
    own = _BY_NAME.get(name)
    if name.startswith(f"{architecture}."):
        name = f"ARCH{name[len(architecture) :]}"
    found = own or _BY_NAME.get(name) or next((key for key in _PATTERNS if fnmatchcase(name, key.name)), None)
    if found is not None and found.name == _TOKEN_ID and _token(name) not in _TOKENS:
        return None
    return found


def _token(name: str) -> str:
    return name.removeprefix("tokenizer.ggml.").removesuffix("_token_id")


def is_idle(name: str, architecture: str) -> bool:
    """Whether no runner computes by a key."""
    return any(fnmatchcase(name, pattern) for pattern in IDLE_KEYS) or name == f"{architecture}.rope.scaling.finetuned"


def key_findings(metadata: Metadata, architecture: str) -> Iterator[Finding]:
    """Keys that are not known, and values of a type or a meaning that no BitNet model's has."""
    for name, value in metadata.items():
        key = find_key(name, architecture)
        if name == "general.name" and not isinstance(value, str):
            key = Key(name, "str")
        if key is None:
            if not is_idle(name, architecture):
                yield Finding(
                    name, "is a key that bitconv does not know; a runner may compute otherwise by it", Level.WARNING
                )
            continue
        if key.type != value_type(value) and key.type != "any":
            text = f"is of a type that runners do not read it in: {value_type(value)}, expected {key.type}"
            yield Finding(name, text, Level.REFUSED)
        elif key.usual is not None and value != key.usual:
            yield from _unusual(name, value, key)
    yield from name_findings(metadata)


def _unusual(name: str, value: Value, key: Key) -> Iterator[Finding]:
    if name == "split.count":
        if value != 1:
            yield Finding(name, f"is {plain(value)}: the file is one of so many parts", key.unusual)
    elif name != "split.no":  # which counts where there are parts
        assert key.usual is not None
        text = f"is {plain(value)}, where runners take {plain(key.usual)} for a BitNet model"
        yield Finding(name, text, key.unusual)


def name_findings(metadata: Metadata) -> Iterator[Finding]:
    """What runners read out of a model's name."""
    name, tokens = metadata.get("general.name"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(name, str) or not isinstance(tokens, list):
        return
    found = next((part for part in (*_PHI, _MODERN_BERT) if part in name.lower()), None)
    missing = next((token for token in _PHI_TOKENS if token not in tokens), None)
    if found in _PHI and missing is not None:
        text = f"holds {found}, at which runners look for the token {missing}, which is not there, and do not load"
        yield Finding("general.name", text, Level.REFUSED)
    elif found in _PHI or (found is not None and _MASK in tokens):
        text = f"holds {found}, at which runners tokenize otherwise: spaces beside special tokens are lost"
        yield Finding("general.name", text, Level.WARNING)
