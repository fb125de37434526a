"""Qwen3 without norms on the inputs of its projections, as Ternary-Bonsai: a scale for each group of columns, YaRN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file, save_file

import real_runners
from gguf_file import File
from synthetic import Synthetic, make_checkpoint
from test_scales import converts_to
from test_verify import Rebuilt

SIZES: dict[str, Any] = {"hidden": 512, "ffn": 768, "heads": 4, "kv_heads": 2, "head_dim": 128}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
IN_GROUPS = {"dtype": "f16", "ternary_floats": True, "marked": False, "group": 128}


def qwen3(path: Path, **options: Any) -> Synthetic:
    model = make_checkpoint(path, "plain_qwen3", **SIZES | options)
    model.rewrite_config(model_type="qwen3")
    return model


@pytest.fixture
def groups(tmp_path: Path) -> Synthetic:
    return qwen3(tmp_path / "model", **IN_GROUPS)


def test_groups_are_exact_in_q2_0_and_rows_stay_in_order(tmp_path: Path, groups: Synthetic) -> None:
    groups.rewrite_config(rope_scaling=YARN)
    result = converts_to(groups, tmp_path / "out.gguf", "q2_0")
    assert (result.architecture, result.runner, result.exact_scales) == ("qwen3", "llama.cpp", True)
    assert {t.group for t in result.tensors if t.name in groups.trits} == {128}
    file = File(tmp_path / "out.gguf")
    assert file.tensors.keys() == groups.trits.keys() | groups.dense.keys()
    slots = {name.split(".")[2] for name in file.tensors if name.startswith("blk.")}
    assert {slot for slot in slots if "norm" in slot} == {"attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"}
    stated = {key.removeprefix("qwen3.rope."): v for key, v in file.metadata.items() if key.startswith("qwen3.rope.")}
    assert stated == {
        "dimension_count": 128,
        "freq_base": 50000.0,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": 128,
    }
    groups.rewrite_config(rope_scaling=YARN | {"factor": 2.0})
    faults = bitconv.verify(tmp_path / "out.gguf", against=groups.path).faults
    assert faults == ("qwen3.rope.scaling.factor is not what the checkpoint says",)


def test_groups_go_nowhere_that_they_do_not_fit(tmp_path: Path, groups: Synthetic) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(BitconvError, match=r"bitnet\.cpp does not know .* qwen3; .* runner='llama\.cpp'"):
        bitconv.convert(groups.path, out)
    with pytest.raises(BitconvError, match=r"q_proj\.weight: tq1_0 has a scale for each 256 .*; type='q2_0' holds"):
        bitconv.convert(groups.path, out, type="tq1_0")
    with pytest.raises(BitconvError, match=r"iq2_bn has a scale for each 512 columns.*fallback='f16'"):
        bitconv.convert(groups.path, out, type="iq2_bn")
    result = bitconv.convert(groups.path, out, type="auto")
    assert (result.type, result.runner) == ("q2_0", "llama.cpp")
    model = qwen3(tmp_path / "small", **IN_GROUPS | {"group": 32})
    with pytest.raises(BitconvError, match=r"q2_0 has a scale for each 64 .* each 32 columns; fallback='f16' keeps"):
        bitconv.convert(model.path, out, type="q2_0", force=True)
    bitconv.convert(model.path, out, type="q2_0", fallback="f16", force=True)
    assert bitconv.verify(out, against=model.path).right


@pytest.mark.parametrize(
    ("stored", "ternarize"),
    [
        ({}, None),
        ({"packed": False}, None),
        ({"marked": False, "ternary_floats": True}, None),
        ({"marked": False, "packed": False, "dtype": "f32"}, "absmean"),
    ],
)
def test_marked_or_not_as_llama(tmp_path: Path, stored: dict, ternarize: str | None) -> None:
    model = qwen3(tmp_path / "model", **stored)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", ternarize=ternarize)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize=ternarize).right
    if ternarize:
        with pytest.raises(BitconvError, match=r"0 of 14 projections are ternary\): unmarked master weights"):
            bitconv.convert(model.path, tmp_path / "none.gguf", type="tq2_0")


def add_bias(model: Synthetic) -> None:
    model.rewrite_config(attention_bias=True)
    file = model.path / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.q_proj.bias": np.zeros(512, np.float16)}, file)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding window"),
        ({"head_dim": None}, "head_dim is missing"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": YARN | {"attention_factor": 1.0}}, "'yarn' with attention_factor 1.0"),
        ({"rope_scaling": YARN | {"truncate": False}}, "'yarn' with truncate False"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "factor must be 1 or more"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta must be above 1"),
        (
            {"rope_scaling": YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            "rope scaling 'llama3', .* qwen3",
        ),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, r"use_rms_norm.*\*_proj\.rms_norm"),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(
    tmp_path: Path, groups: Synthetic, change: dict, cause: str
) -> None:
    groups.rewrite_config(**change)
    with pytest.raises(BitconvError, match=rf"config\.json: .*{cause}"):
        bitconv.convert(groups.path, tmp_path / "out.gguf", type="q2_0")


def test_biases_are_refused(tmp_path: Path, groups: Synthetic) -> None:
    add_bias(groups)
    with pytest.raises(BitconvError, match=r"q_proj\.bias: is no part of this architecture"):
        bitconv.convert(groups.path, tmp_path / "out.gguf", type="q2_0")


def test_the_two_graphs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """In files of floats, which are the same but for the norms on inputs."""
    plain = qwen3(tmp_path / "plain", layers=1)
    normed = make_checkpoint(tmp_path / "normed", "qwen3", layers=1, **SIZES)
    bitconv.convert(plain.path, tmp_path / "plain.gguf", type="tq2_0")
    bitconv.convert(normed.path, tmp_path / "normed.gguf", type="i2_s")
    for file, other in (("plain", normed), ("normed", plain)):
        faults = bitconv.verify(tmp_path / f"{file}.gguf", against=other.path).faults
        assert len(faults) == 1 and "qwen3 with input norms" in faults[0]
    bitconv.repack(tmp_path / "plain.gguf", tmp_path / "q2_0.gguf", type="q2_0")
    assert bitconv.verify(tmp_path / "q2_0.gguf", against=plain.path).right
    with pytest.raises(BitconvError, match=r"does not know the architecture qwen3 with input norms"):
        bitconv.repack(tmp_path / "normed.gguf", tmp_path / "none.gguf", type="q2_0")
    with pytest.raises(BitconvError, match=r"does not know the architecture qwen3;"):
        bitconv.repack(tmp_path / "plain.gguf", tmp_path / "none.gguf", type="i2_s")


@pytest.mark.torch
@pytest.mark.parametrize(("stored", "form"), [({}, "packed"), (IN_GROUPS, "floats")])
def test_export_and_back(tmp_path: Path, stored: dict, form: str) -> None:
    model = qwen3(tmp_path / "model", **stored)
    model.rewrite_config(rope_scaling=YARN)
    file, again = tmp_path / "out.gguf", tmp_path / "again.gguf"
    bitconv.convert(model.path, file, type="q2_0")
    result = bitconv.export(file, tmp_path / "exported")
    assert (result.architecture, result.scale_convention is None) == ("Qwen3ForCausalLM", form == "floats")
    bitconv.convert(tmp_path / "exported", again, type="q2_0")
    assert bitconv.verify(again).digests == bitconv.verify(file).digests
    assert bitconv.verify(again, against=model.path).right
    assert bitconv.compare(file, tmp_path / "exported").disagreements == ()


@pytest.mark.torch
@pytest.mark.parametrize("stored", [{}, IN_GROUPS])
@pytest.mark.parametrize("scaling", [None, YARN])
def test_compare_agrees(tmp_path: Path, stored: dict, scaling: dict | None) -> None:
    pytest.importorskip("torch")
    model = qwen3(tmp_path / "model", **stored)
    model.rewrite_config(rope_scaling=scaling)
    file = tmp_path / "out.gguf"
    bitconv.convert(model.path, file, type="q2_0", embed_type="f32")
    assert bitconv.compare(file, model.path).disagreements == ()
    rebuilt = Rebuilt(file)
    if scaling is None:
        rebuilt.metadata["qwen3.rope.freq_base"] = np.float32(10000)
    else:
        rebuilt.metadata["qwen3.rope.scaling.type"] = "none"
    assert bitconv.compare(rebuilt.write(tmp_path / "bad.gguf"), model.path).disagreements


POSITIONS = [40, 150, 250]
LINEAR = {"rope_type": "linear", "factor": 2.0}
ONE_SCALE = {"ternary_floats": True, "marked": False}


def in_transformers(model: Synthetic, tokens: np.ndarray) -> np.ndarray:
    """The log probabilities of the next tokens, (n, vocabulary), by the float weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = transformers.Qwen3ForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(torch.from_numpy(tokens[None].astype(np.int64))).logits[0]
    return torch.log_softmax(logits.double(), -1).numpy()


@pytest.mark.torch
@pytest.mark.runners
@pytest.mark.parametrize(
    ("stored", "type_name", "options", "scaling"),
    [
        (IN_GROUPS, "f32", {"runner": "llama.cpp"}, None),
        (IN_GROUPS, "f32", {"runner": "llama.cpp"}, YARN),
        (IN_GROUPS, "f32", {"runner": "llama.cpp"}, LINEAR),
        (IN_GROUPS, "q2_0", {}, YARN),
        (ONE_SCALE, "tq1_0", {}, YARN),
        (ONE_SCALE, "tq2_0", {"scale_in_blocks": True}, None),
    ],
    ids=["f32", "f32-yarn", "f32-linear", "q2_0-yarn", "tq1_0-yarn", "tq2_0-blocks"],
)
def test_llama_cpp_computes_what_transformers_does(
    tmp_path: Path, stored: dict, type_name: str, options: dict, scaling: dict | None
) -> None:
    pytest.importorskip("xllamacpp")
    model = qwen3(tmp_path / "model", **stored)
    model.rewrite_config(rope_scaling=scaling)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", **options)
    tokens, predicted = real_runners.llama_cpp(tmp_path / "out.gguf", POSITIONS)
    expected = in_transformers(model, tokens[:251])[POSITIONS]
    divergence = (np.exp(expected) * (expected - predicted)).sum(axis=1).mean()
    # llama.cpp rounds activations to 8 bits where weights are packed.
    assert abs(divergence) < (1e-5 if type_name == "f32" else 1e-3)


@pytest.mark.torch
@pytest.mark.runners
@pytest.mark.parametrize(("type_name", "scaling"), [("f32", YARN), ("iq2_bn", YARN), ("iq1_bn", None)])
def test_ik_llama_cpp_computes_what_transformers_does(tmp_path: Path, type_name: str, scaling: dict | None) -> None:
    pytest.importorskip("ik_llama_cpp")
    model = qwen3(tmp_path / "model", **ONE_SCALE)
    model.rewrite_config(rope_scaling=scaling)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", runner="ik_llama.cpp")
    tokens, losses = real_runners.ik_llama_cpp(tmp_path / "out.gguf")
    window = tokens[: real_runners.WINDOW]
    expected = -in_transformers(model, window)[np.arange(len(window) - 1), window[1:]]
    difference = np.abs(losses[0] - expected).mean()
    assert difference < (1e-3 if type_name == "f32" else 0.03)


def test_a_file_with_yarn_and_a_base_of_one_is_refused(tmp_path: Path, groups: Synthetic) -> None:
    """The logarithm of the base divides."""
    groups.rewrite_config(rope_scaling=YARN)
    bitconv.convert(groups.path, tmp_path / "out.gguf", type="q2_0")
    file = Rebuilt(tmp_path / "out.gguf")
    file.metadata["qwen3.rope.freq_base"] = np.float32(1)
    (tmp_path / "text.txt").write_text("many words " * 200)
    with pytest.raises(BitconvError, match=r"rope\.freq_base is 1\.0, expected above 1"):
        bitconv.evaluate(file.write(tmp_path / "bad.gguf"), tmp_path / "text.txt", window=16)


def test_groups_compute_the_same_over_packed_bytes_as_unpacked(tmp_path: Path, groups: Synthetic) -> None:
    """To the last bit: the file of floats is unpacked to trits, that of q2_0 is not."""
    found = []
    for type_name in ("q2_0", "f32"):
        file = tmp_path / f"{type_name}.gguf"
        bitconv.convert(groups.path, file, type=type_name, runner="llama.cpp", embed_type="f32")
        found.append(bitconv.evaluate(file, real_runners.TEXT, max_tokens=100, window=100).nll)
    assert found[0] == found[1]


@pytest.mark.torch
def test_binary_weights_are_ternary_ones_without_zeros(tmp_path: Path, groups: Synthetic) -> None:
    """As of binary Bonsai: -scale and +scale, a scale for each 128 columns."""
    file = groups.path / "model.safetensors"
    tensors, rng = load_file(file), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        scales = np.repeat(rng.uniform(0.02, 0.06, (rows, columns // 128)), 128, axis=1).astype(np.float16)
        tensors[name] = scales * rng.choice(np.array([-1, 1], np.float16), (rows, columns))
    save_file(tensors, file)
    result = bitconv.convert(groups.path, tmp_path / "out.gguf", type="q2_0", embed_type="f32")
    assert result.exact_scales
    assert {kind.zero for kind in bitconv.inspect(tmp_path / "out.gguf").kinds} == {0.0}
    assert bitconv.verify(tmp_path / "out.gguf", against=groups.path).right
    assert bitconv.compare(tmp_path / "out.gguf", groups.path).disagreements == ()
