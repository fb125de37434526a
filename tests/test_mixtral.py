"""Mixtures of ternary experts: stacked in one tensor, expert after expert, as llama.cpp computes them."""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
import torch
from bitconv.commands.kernel_config import kernel_config
from bitconv.system.errors import BitconvError
from safetensors.torch import load_file, save_file

import real_runners
from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import Synthetic, make_checkpoint, write_safetensors
from test_verify import Rebuilt

pytestmark = pytest.mark.torch

EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
IDS = {"tq1_0": 34, "tq2_0": 35, "q2_0": 42}


@pytest.fixture
def model(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "mixtral", hidden=256, ffn=512, experts=4, shards=2)


@pytest.mark.parametrize("type_name", IDS)
@pytest.mark.parametrize("in_blocks", [False, True])
def test_experts_are_stacked_with_a_scale_each(
    tmp_path: Path, model: Synthetic, type_name: str, in_blocks: bool
) -> None:
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, scale_in_blocks=in_blocks)
    assert (result.architecture, result.runner, result.exact_scales) == ("llama", "llama.cpp", not in_blocks)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    file = File(tmp_path / "out.gguf")
    assert (file.metadata["llama.expert_count"], file.metadata["llama.expert_used_count"]) == (4, 2)
    weights = model.trits.keys() | model.dense.keys()
    scales = {name.replace(".weight", ".scale") for name in model.trits}
    assert file.tensors.keys() == weights | (set() if in_blocks else scales)
    for layer in range(2):
        assert file.tensors[f"blk.{layer}.ffn_gate_inp.weight"].type_id == 0
        for name in (f"blk.{layer}.{expert}.weight" for expert in EXPERTS):
            trits, expert_scales = model.trits[name], model.scales[name]
            assert file.tensors[name].ne == trits.shape[::-1]
            assert file.tensors[name].type_id == IDS[type_name]
            stored = expert_scales if in_blocks else np.ones(4)
            packed = b"".join(
                ROW_LAYOUTS[type_name].pack(matrix, scale).tobytes()
                for matrix, scale in zip(trits, stored, strict=True)
            )
            assert file.bytes(name, len(packed)) == packed
            if not in_blocks:
                name = name.replace(".weight", ".scale")
                assert file.tensors[name].ne == (4,)
                assert file.bytes(name, 16) == expert_scales.tobytes()


POSITIONS = [40, 150, 250]


def divergence_in_llama_cpp(file: Path, expected: np.ndarray) -> float:
    predicted = real_runners.llama_cpp(file, POSITIONS).log_probabilities
    return float((np.exp(expected) * (expected - predicted)).sum(axis=1).mean())


@pytest.fixture(scope="module")
def in_transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, np.ndarray]:
    """A mixture and the log probabilities after POSITIONS, (3, vocabulary), of the same model unpacked to floats:
    transformers' own Mixtral has no ternary experts."""
    pytest.importorskip("xllamacpp")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("mixtral")
    model = make_checkpoint(path / "model", "mixtral", hidden=256, ffn=512, experts=4)
    bitconv.convert(model.path, path / "f16.gguf", type="f16")
    tokens = real_runners.llama_cpp(path / "f16.gguf", [0]).tokens
    reference = transformers.MixtralForCausalLM.from_pretrained(unpacked(model, path / "floats"))
    with torch.no_grad():
        logits = reference(torch.from_numpy(tokens[None, :251].astype(np.int64))).logits[0, POSITIONS]
    return model, torch.log_softmax(logits.double(), -1).numpy()


@pytest.mark.runners
@pytest.mark.parametrize(
    ("type_name", "options"),
    [
        ("f32", {}),
        *((type_name, {}) for type_name in IDS),
        *((type_name, {"scale_in_blocks": True}) for type_name in IDS),
    ],
)
def test_llama_cpp_computes_what_transformers_does(
    tmp_path: Path, in_transformers: tuple[Synthetic, np.ndarray], type_name: str, options: dict
) -> None:
    model, expected = in_transformers
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32", runner="llama.cpp", **options)
    # llama.cpp rounds activations to 8 bits where weights are packed.
    assert abs(divergence_in_llama_cpp(tmp_path / "out.gguf", expected)) < (1e-5 if type_name == "f32" else 1e-3)


def test_eval_computes_what_transformers_does(tmp_path: Path, in_transformers: tuple[Synthetic, np.ndarray]) -> None:
    from bitconv.commands.evaluate import opened_to_run
    from bitconv.inference.forward import ForwardPass

    model, expected = in_transformers
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", embed_type="f32")
    tokens = real_runners.llama_cpp(tmp_path / "out.gguf", [0]).tokens[:251].astype(np.int64)
    forward = ForwardPass(*opened_to_run(tmp_path / "out.gguf", None, None), float_activations=True)
    logits = torch.from_numpy(forward.logits(tokens, forward.new_cache(251))[POSITIONS])
    one_by_one = forward.new_cache(251)
    alone = np.concatenate([forward.logits(tokens[i : i + 1], one_by_one) for i in range(60)])
    together = forward.logits(tokens[:60], forward.new_cache(251))
    predicted = torch.log_softmax(logits.double(), -1).numpy()
    assert abs((np.exp(expected) * (expected - predicted)).sum(axis=1).mean()) < 1e-5
    assert np.abs(alone - together).max() < 1e-3


@pytest.mark.runners
def test_llama_cpp_multiplies_each_expert_by_its_own_scale(
    tmp_path: Path, in_transformers: tuple[Synthetic, np.ndarray]
) -> None:
    model, expected = in_transformers
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", embed_type="f32")
    for name in EXPERTS:
        file = Rebuilt(tmp_path / "out.gguf")
        for layer in range(2):
            scales = np.frombuffer(file.tensor(f"blk.{layer}.{name}.scale")[3], np.float32)[:4]
            file.tensor(f"blk.{layer}.{name}.scale")[3] = scales[::-1].tobytes()
        assert divergence_in_llama_cpp(file.write(tmp_path / f"{name}.gguf"), expected) > 5e-3


def unpacked(model: Synthetic, path: Path) -> Path:
    """The checkpoint with trits times scale in float32 in place of packed weights."""
    from safetensors.torch import load_file

    stored = {}
    for file in model.path.glob("*.safetensors"):
        stored |= load_file(file)
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith("_scale"):
            continue
        values = tensor.float().numpy()
        if f"{name}_scale" in stored:
            codes = tensor.numpy()
            trits = np.concatenate([(codes >> shift & 3).astype(np.float32) - 1 for shift in (0, 2, 4, 6)])
            values = trits * (np.float32(1) / stored[f"{name}_scale"].float().numpy())
        tensors[name] = values
    path.mkdir()
    write_safetensors(path / "model.safetensors", tensors, "f32")
    Synthetic(path, model.config).rewrite_config(quantization_config=None, model_type="mixtral")
    return path


@pytest.mark.parametrize("stored", [{"packed": False}, {"ternary_floats": True}])
def test_experts_in_floats_have_each_a_scale_of_its_own(tmp_path: Path, stored: dict[str, bool]) -> None:
    """Master weights by the rule, and weights that are ternary already by looking."""
    model = make_checkpoint(tmp_path / "model", "mixtral", hidden=256, ffn=512, layers=1, **stored)
    online = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    model.rewrite_config(quantization_config=model.config["quantization_config"] | online)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    for name in (f"blk.0.{expert}" for expert in EXPERTS):
        assert File(tmp_path / "out.gguf").bytes(f"{name}.scale", 16) == model.scales[f"{name}.weight"].tobytes()


def test_an_expert_with_a_scale_a_row_beside_one_with_one_scale(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "mixtral", hidden=256, ffn=512, layers=1, experts=2)
    tensors = load_file(model.path / "model.safetensors")
    for expert in range(2):
        name = f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight_scale"
        # Divided by: powers of two, which float16 holds.
        several = 2.0 ** torch.arange(512).remainder(5)[:, None] if expert else torch.tensor([8.0])
        tensors[name] = several.to(tensors[name].dtype)
    save_file(tensors, model.path / "model.safetensors")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")
    assert {t.name: t.group for t in result.tensors}["blk.0.ffn_gate_exps.weight"] == 256
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    bitconv.repack(tmp_path / "out.gguf", tmp_path / "other.gguf", type="q2_0")
    assert bitconv.verify(tmp_path / "other.gguf", against=model.path).right
    tensors[name] = tensors[name] * 1.3
    save_file(tensors, model.path / "model.safetensors")
    assert not bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    with pytest.raises(BitconvError, match=r"experts\.1\.w1\.weight: tq2_0 would round its scales"):
        bitconv.convert(model.path, tmp_path / "bad.gguf", type="tq2_0")


@pytest.mark.parametrize("expert", [0, 3])
def test_any_change_of_an_expert_is_found(tmp_path: Path, model: Synthetic, expert: int) -> None:
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")
    name = "blk.1.ffn_down_exps"
    for tensor, at in ((f"{name}.weight", expert * 256 * 2 * 66 + 5), (f"{name}.scale", 4 * expert)):
        file = Rebuilt(tmp_path / "out.gguf")
        data = bytearray(file.tensor(tensor)[3])
        data[at] ^= 1
        file.tensor(tensor)[3] = bytes(data)
        result = bitconv.verify(file.write(tmp_path / "bad.gguf"), against=model.path)
        faults = {t.name: t.faults for t in result.tensors if t.faults}
        assert list(faults) == [f"{name}.weight"]
        assert faults[f"{name}.weight"][0].startswith(f"expert {expert}: ")


@pytest.mark.parametrize("kept", [None, 5, "gate", ["lm_head"]])
def test_the_router_must_be_of_floats_as_llama_cpp_s_is(tmp_path: Path, model: Synthetic, kept: object) -> None:
    model.rewrite_config(quantization_config={"quant_method": "bitnet", "modules_to_not_convert": kept})
    with pytest.raises(BitconvError, match=r"config\.json: .*modules_to_not_convert does not list gate"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")


@pytest.mark.parametrize("change", [{"num_experts_per_tok": 5}, {"sliding_window": 4096}, {"num_local_experts": None}])
def test_a_mixture_that_makes_no_sense_is_refused(tmp_path: Path, model: Synthetic, change: dict) -> None:
    model.rewrite_config(**change)
    with pytest.raises(BitconvError, match=str(model.path)):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0")


@pytest.mark.parametrize("type_name", ["i2_s", "tl1", "iq2_bn"])
def test_layouts_in_which_no_runner_computes_stacked_experts_are_refused(tmp_path: Path, type_name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "mixtral", hidden=512, ffn=512, layers=1)
    with pytest.raises(BitconvError, match=r"experts\.0\.w1.*stacked experts.*type='tq1_0' runner='llama\.cpp'"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="auto")
    assert (result.type, result.runner) == ("tq1_0", "llama.cpp")


@pytest.mark.parametrize("in_blocks", [False, True])
def test_repack_takes_experts_along(tmp_path: Path, model: Synthetic, in_blocks: bool) -> None:
    bitconv.convert(model.path, tmp_path / "a.gguf", type="tq2_0", scale_in_blocks=in_blocks)
    bitconv.convert(model.path, tmp_path / "b.gguf", type="q2_0", scale_in_blocks=in_blocks)
    result = bitconv.repack(tmp_path / "a.gguf", tmp_path / "c.gguf", type="q2_0", scale_in_blocks=in_blocks)
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert {t.shape for t in result.tensors if "exps" in t.name} == {(4, 512, 256), (4, 256, 512)}
    with pytest.raises(BitconvError, match=r"ffn_gate_exps\.weight: ik_llama.cpp does not compute stacked experts"):
        bitconv.repack(tmp_path / "a.gguf", tmp_path / "d.gguf", type="f32", runner="ik_llama.cpp")


@pytest.mark.parametrize("in_blocks", [False, True])
def test_export_makes_floats_of_experts_that_transformers_runs(
    tmp_path: Path, model: Synthetic, in_blocks: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    options: dict[str, object] = {"type": "tq2_0", "scale_in_blocks": in_blocks}
    bitconv.convert(model.path, tmp_path / "out.gguf", **options)
    result = bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    assert (result.architecture, result.scale_convention, result.exact_scales) == ("MixtralForCausalLM", None, True)
    bitconv.convert(tmp_path / "exported", tmp_path / "again.gguf", **options)
    ours, again = (bitconv.verify(tmp_path / name).digests for name in ("out.gguf", "again.gguf"))
    assert ours is not None and ours == again
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    expert = loaded.state_dict()["model.layers.1.mlp.experts.down_proj"][2]
    assert (expert == stored["model.layers.1.block_sparse_moe.experts.2.w2.weight"]).all()


def test_what_does_not_take_mixtures_says_so(tmp_path: Path, model: Synthetic) -> None:
    file = tmp_path / "out.gguf"
    bitconv.convert(model.path, file, type="tq2_0")
    with pytest.raises(BitconvError, match=r"model: a mixture of experts"):
        kernel_config(model.path, tmp_path / "kernel_config.ini", type="tl2")


def test_a_type_can_be_given_to_stacked_experts_by_pattern(tmp_path: Path, model: Synthetic) -> None:
    overrides = [(r"ffn_(gate|up)_exps\.weight$", "q2_0"), (r"ffn_down_exps", "f16")]
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq1_0", tensor_types=overrides)
    ids = {name.split(".")[2]: t.type_id for name, t in File(tmp_path / "out.gguf").tensors.items() if "exps.w" in name}
    assert ids == {"ffn_gate_exps": 42, "ffn_up_exps": 42, "ffn_down_exps": 1}
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
