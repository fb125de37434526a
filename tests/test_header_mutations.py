"""Mutated headers through verify and through llama.cpp's own loader: what that refuses to load, or loads as something
else, verify must not call right.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.gguf import read_gguf

from gguf_file import File
from synthetic import FIXTURES
from test_verify import Rebuilt, places_of_keys

pytestmark = [pytest.mark.runners, pytest.mark.slow]

MODEL = FIXTURES / "Llama3-1.58-tiny"
# More of them for a longer search.
COUNT = int(os.environ.get("BITCONV_HEADER_MUTATIONS", "80"))
SEED = int(os.environ.get("BITCONV_HEADER_SEED", "1"))

# Keys that llama.cpp of 2026 reads of one model or another, beside those that the file has.
OTHER_KEYS = """
    ARCH.attention.causal ARCH.attention.clamp_kqv ARCH.attention.key_length ARCH.attention.key_length_mla
    ARCH.attention.key_length_swa ARCH.attention.layer_norm_epsilon ARCH.attention.max_alibi_bias
    ARCH.attention.output_scale ARCH.attention.scale ARCH.attention.sliding_window
    ARCH.attention.sliding_window_pattern ARCH.attention.temperature_length ARCH.attention.temperature_scale
    ARCH.attention.value_length ARCH.attention.value_length_swa ARCH.attention.value_scale
    ARCH.attn_logit_softcapping ARCH.classifier.output_labels ARCH.decoder_block_count ARCH.embedding_length_out
    ARCH.embedding_scale ARCH.expert_count ARCH.expert_feed_forward_length ARCH.expert_gating_func
    ARCH.expert_group_count ARCH.expert_group_used_count ARCH.expert_shared_count
    ARCH.expert_shared_feed_forward_length ARCH.expert_used_count ARCH.expert_weights_norm ARCH.expert_weights_scale
    ARCH.final_logit_softcapping ARCH.hidden_activation ARCH.leading_dense_block_count ARCH.logit_scale
    ARCH.nextn_predict_layers ARCH.pooling_type ARCH.residual_scale ARCH.rope.dimension_count_swa
    ARCH.rope.dimension_sections ARCH.rope.freq_base_swa ARCH.rope.scale_linear ARCH.rope.scaling.alpha
    ARCH.rope.scaling.attn_factor ARCH.rope.scaling.factor ARCH.rope.scaling.finetuned
    ARCH.rope.scaling.original_context_length ARCH.rope.scaling.type ARCH.rope.scaling.yarn_attn_factor
    ARCH.rope.scaling.yarn_beta_fast ARCH.rope.scaling.yarn_ext_factor ARCH.rope.scaling.yarn_log_multiplier
    ARCH.swin_norm ARCH.tensor_data_layout ARCH.use_parallel_residual adapter.lora.alpha adapter.type
    general.alignment general.author general.description general.license general.quantization_version
    general.sampling.min_p general.sampling.mirostat general.sampling.penalty_last_n general.sampling.penalty_repeat
    general.sampling.sequence general.sampling.temp general.sampling.top_k general.sampling.top_p general.tags
    general.url split.count split.no split.tensors.count tokenizer.chat_template.tool_use
    tokenizer.ggml.add_sep_token tokenizer.ggml.add_space_prefix tokenizer.ggml.cls_token_id
    tokenizer.ggml.eom_token_id tokenizer.ggml.fim_mid_token_id tokenizer.ggml.fim_pre_token_id
    tokenizer.ggml.mask_token_id tokenizer.ggml.normalizer.lowercase tokenizer.ggml.normalizer.strip_accents
    tokenizer.ggml.padding_token_id tokenizer.ggml.precompiled_charsmap tokenizer.ggml.prefix_token_id
    tokenizer.ggml.remove_extra_whitespaces tokenizer.ggml.scores tokenizer.ggml.seperator_token_id
    tokenizer.ggml.suppress_tokens tokenizer.ggml.token_type_count tokenizer.ggml.unknown_token_id
    tokenizer.huggingface.json tokenizer.rwkv.world
"""
VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda r: np.uint32(r.choice([0, 1, 2, 64, 268, 1272, 2**31])),
    lambda r: np.float32(r.choice([0, 0.5, 1, 4, 1e4])),
    lambda r: r.random() < 0.5,
    lambda r: r.choice(["", "linear", "yarn", "gpt-2", "{{ messages }}", "0.5", "phi-3", "jina-v2-code", "glm4"]),
    lambda r: np.int32(r.choice([-1, 0, 1, 268])),
    lambda r: np.uint16(r.choice([0, 1, 2])),
    lambda r: np.uint64(r.choice([0, 512])),
    lambda r: np.array([1, 2], r.choice([np.uint8, np.int32, np.uint32, np.float32])),
    lambda r: ["a", "b"],
)


def as_type(value: Any, r: random.Random) -> Any:
    """The same number in another type, or something else."""
    if isinstance(value, np.ndarray):
        return value.astype(r.choice([np.int8, np.uint32, np.int64, np.float64]))
    if isinstance(value, list):
        return r.choice([value[:-1], np.arange(len(value), dtype=np.int32), "".join(value[:9])])
    if isinstance(value, np.generic):
        with np.errstate(all="ignore"):
            return value.astype(r.choice([np.uint8, np.int16, np.int32, np.uint32, np.uint64, np.float32, np.float64]))
    return r.choice(VALUES)(r)


def mutated(good: Path, out: Path, r: random.Random) -> str:
    """Write a file whose header differs from that of a good one; returns what was done."""
    kind = r.choice(["flip", "flip", "add", "add", "type", "value", "rename", "remove"])
    if kind == "flip":
        data = bytearray(good.read_bytes())
        key = r.choice(sorted(places_of_keys(good)))
        start, end = places_of_keys(good)[key]
        # Vocabularies fill the header: most of their flips are of one kind.
        at, bit = r.randrange(start, min(end, start + 80)), r.randrange(8)
        data[at] ^= 1 << bit
        out.write_bytes(data)
        return f"{key}: byte {at}, bit {bit}"
    file = Rebuilt(good)
    key = r.choice(sorted(file.metadata))
    said: object = ""
    if kind == "add":
        key = r.choice(OTHER_KEYS.split()).replace("ARCH", "llama")
        said = file.metadata[key] = r.choice(VALUES)(r)
    elif kind == "type":
        said = file.metadata[key] = as_type(file.metadata[key], r)
    elif kind == "value":
        said = file.metadata[key] = r.choice(VALUES)(r)
    elif kind == "rename":
        at = r.randrange(len(key))
        said = f"{key[:at]}{r.choice('aexz._')}{key[at + 1 :]}"
        file.metadata[str(said)] = file.metadata.pop(key)
    else:
        del file.metadata[key]
    file.write(out)
    return f"{kind} {key} {type(said).__name__} {said!r:.60}"


def is_right(file: Path, against: Path | None) -> bool:
    try:
        return bitconv.verify(file, against=against).right
    except bitconv.BitconvError:
        return False


def test_what_llama_cpp_refuses_or_reads_otherwise_is_never_called_right(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    good = tmp_path / "good.gguf"
    bitconv.convert(MODEL, good, type="tq2_0")
    assert read_gguf(good).metadata.keys() == File(good).metadata.keys()
    r = random.Random(SEED)
    made = {tmp_path / f"{number}.gguf": "" for number in range(COUNT)}
    for file in made:
        made[file] = mutated(good, file, r)
    script = Path(__file__).with_name("load_llama_cpp.py")
    out = tmp_path / "out.json"
    subprocess.run([sys.executable, script, out, good, *made], check=True, capture_output=True, timeout=60 + COUNT)
    loaded = {Path(file): what for file, what in json.loads(out.read_text()).items()}
    assert loaded[good] is not None and is_right(good, MODEL)
    wrong = [f"loaded as another: {made[f]}" for f in made if loaded[f] != loaded[good] and is_right(f, MODEL)]
    # Alone, whether a runner can make sense of these is not covered.
    uncovered = ("chat_template", "general.sampling")
    refused = [f for f in made if loaded[f] is None and not any(key in made[f] for key in uncovered)]
    wrong += [f"refused: {made[file]}" for file in refused if is_right(file, None)]
    assert not wrong, "\n".join(wrong)
    # The search is of both kinds, and of files that are right as well.
    assert any(loaded[f] is None for f in made) and any(loaded[f] == loaded[good] for f in made)
