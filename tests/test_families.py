"""The families and what is refused by name: each public kind of checkpoint, built small, converts or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.commands.families import catalogue, markdown
from bitconv.models import families
from bitconv.models.families import FAMILIES, Family
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from synthetic import Synthetic, make_checkpoint


def add_tensor(end: str, shape: tuple[int, ...]) -> Callable[[Synthetic], None]:
    def add(model: Synthetic) -> None:
        file = model.path / "model.safetensors"
        name = f"model.layers.0.self_attn.q_proj{end}"
        save_file(load_file(file) | {name: np.zeros(shape, np.float32)}, file)

    return add


def pack_head(model: Synthetic) -> None:
    file = model.path / "model.safetensors"
    packed = {"lm_head.weight": np.zeros((320, 256), np.uint8), "lm_head.weight_scale": np.ones(1, np.float32)}
    save_file(load_file(file) | packed, file)


def quant_method(method: object) -> Callable[[Synthetic], None]:
    return lambda model: model.rewrite_config(quantization_config={"quant_method": method, "bits": 4})


def only_gguf(model: Synthetic) -> None:
    (model.path / "model.safetensors").rename(model.path / "model.gguf")


def only(name: str) -> Callable[[Synthetic], None]:
    def rename(model: Synthetic) -> None:
        (model.path / "model.safetensors").rename(model.path / name)

    return rename


def unmarked_masters(model: Synthetic) -> None:
    file = model.path / "model.safetensors"
    tensors = {name: values for name, values in load_file(file).items() if not name.endswith("weight_scale")}
    for name, values in tensors.items():
        if values.dtype == np.uint8:
            tensors[name] = np.random.default_rng(0).standard_normal((len(values) * 4, values.shape[1]), np.float32)
    save_file(tensors, file)
    model.rewrite_config(quantization_config=None)


def with_sub_norm(hf_architecture: str) -> Callable[[Synthetic], None]:
    def change(model: Synthetic) -> None:
        add_tensor(".attn_sub_norm.weight", (256,))(model)
        model.rewrite_config(architectures=[hf_architecture])

    return change


def of_levels(count: int) -> Callable[[Synthetic], None]:
    """Floats of so many levels about zero, with a scale for each 32 columns."""

    def change(model: Synthetic) -> None:
        unmarked_masters(model)
        file, rng = model.path / "model.safetensors", np.random.default_rng(0)
        tensors = load_file(file)
        for name, values in tensors.items():
            if "_proj" in name:
                rows, columns = values.shape
                levels = rng.integers(0, count, values.shape) - (count - 1) / 2
                scales = np.repeat(rng.uniform(0.5, 2, (rows, columns // 32)), 32, axis=1)
                tensors[name] = (levels * scales).astype(np.float32)
        save_file(tensors, file)

    return change


def quantized_by_mlx(model: Synthetic) -> None:
    """As mlx_lm.convert -q saves it: codes in uint32, and a quantization_config of its own that says no method."""
    file = model.path / "model.safetensors"
    codes = {"model.embed_tokens.weight": np.zeros((1280, 32), np.uint32)}
    groups = {f"model.embed_tokens.{name}": np.zeros((1280, 4), np.float32) for name in ("scales", "biases")}
    save_file(load_file(file) | codes | groups, file)
    said = {"group_size": 64, "bits": 4, "mode": "affine"}
    model.rewrite_config(quantization=said, quantization_config=said)


def saved_by_llamas_class(model: Synthetic) -> None:
    """As transformers saves a model of 1bitLLM's: without the norms, with the keys of its own config."""
    unmarked_masters(model)
    model.rewrite_config(weight_bits=1, input_bits=8)


# What makes a Llama checkpoint one of the kind, its name, and what of the file the line names.
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
NOT_TERNARY = [
    (quant_method("gptq"), "GPTQ", "config.json: quantization_config.quant_method 'gptq'"),
    (add_tensor(".qweight", (8, 8)), "GPTQ", "model.layers.0.self_attn.q_proj.qweight"),
    (quant_method("awq"), "AWQ", "config.json: quantization_config.quant_method 'awq'"),
    (quant_method("hqq"), "HQQ", "config.json: quantization_config.quant_method 'hqq'"),
    (lambda model: (model.path / "qmodel.pt").touch(), "HQQ", "qmodel.pt"),
    (quant_method("bitsandbytes"), "bitsandbytes", "config.json: quantization_config.quant_method 'bitsandbytes'"),
    (quant_method("fp8"), "another quantization", "config.json: quantization_config.quant_method 'fp8'"),
    (quant_method(None), "another quantization", "config.json: quantization_config.quant_method None"),
    (add_tensor(".wbias", (1, 256)), "FBI-LLM", "model.layers.0.self_attn.q_proj.wbias"),
    (lambda model: model.rewrite_config(model_type="bitnet2"), "BitNet v2", "config.json: model_type 'bitnet2'"),
    (lambda model: model.rewrite_config(input_bits=4), "BitNet a4.8", "config.json: input_bits 4"),
    (
        lambda model: model.rewrite_config(quantization_config={"quant_method": "bitnet", "use_rms_norm": True}),
        "use_rms_norm",
        "config.json: quantization_config.use_rms_norm",
    ),
    (
        lambda model: model.rewrite_config(architectures=["Gemma3TextModel"], model_type="gemma3_text"),
        "Gemma 3 (BitNet-embedding-270M)",
        "config.json: model_type 'gemma3_text'",
    ),
    (pack_head, "ternary output head", "model.safetensors: lm_head.weight"),
    (only_gguf, "already a GGUF file", "model.gguf"),
    (
        lambda model: model.rewrite_config(architectures=["OLMoModelForCausalLM"], layer_norm_type="default"),
        "OLMo-Bitnet with LayerNorm",
        "config.json: layer_norm_type 'default'",
    ),
    (
        lambda model: model.rewrite_config(architectures=["LlavaForConditionalGeneration"], vision_config={"depth": 2}),
        "vision-language model (BitVLA, LLaVA)",
        "config.json: vision_config",
    ),
    (
        lambda model: model.rewrite_config(architectures=["LlavaLlamaForCausalLM"], mm_vision_tower="clip"),
        "vision-language model (BitVLA, LLaVA)",
        "config.json: mm_vision_tower",
    ),
    (
        lambda model: model.rewrite_config(architectures=["HGRNBitForCausalLM"], model_type="hgrn_bit"),
        "MMfreeLM",
        "config.json: model_type 'hgrn_bit'",
    ),
    (
        add_tensor(".linear_attn.A_log", (4,)),
        "hybrid attention",
        "model.layers.0.self_attn.q_proj.linear_attn.A_log",
    ),
    (
        lambda model: model.rewrite_config(layer_types=["linear_attention", "full_attention"]),
        "hybrid attention",
        "config.json: layer_types 'linear_attention'",
    ),
    (with_sub_norm("Qwen3ForCausalLM"), "BitDistill", "model.layers.0.self_attn.q_proj.attn_sub_norm.weight"),
    (add_tensor(".weight_clip_val", (8, 1)), "ParetoQ", "model.layers.0.self_attn.q_proj.weight_clip_val"),
    (of_levels(4), "weights of other levels", "model.layers.0.self_attn.q_proj.weight"),
    (only("bitmamba_1b.msgpack"), "BitMamba-2", "bitmamba_1b.msgpack"),
    (only("bitmamba_1b.bin"), "BitMamba-2", "bitmamba_1b.bin"),
    (only("adapter_model.safetensors"), "LoRA adapter", "adapter_model.safetensors"),
    (add_tensor(".lora_A.weight", (8, 8)), "LoRA adapter", "model.layers.0.self_attn.q_proj.lora_A.weight"),
    (only("consolidated.safetensors"), "original Llama layout", "consolidated.safetensors"),
    (only("consolidated.00.pth"), "original Llama layout", "consolidated.00.pth"),
    (quantized_by_mlx, "quantized by MLX", "config.json: quantization"),
    (
        saved_by_llamas_class,
        "lost sub-norms",
        "weight_bits, and no tensor *.attn_sub_norm or *.ffn_layernorm or *.ffn_sub_norm or *.inner_attn_ln",
    ),
    (unmarked_masters, "unmarked master weights", "self_attn.q_proj.weight (0 of 14 projections are ternary)"),
]


@pytest.mark.parametrize(("change", "name", "where"), NOT_TERNARY, ids=[f"{n}-{w}" for _, n, w in NOT_TERNARY])
def test_what_is_no_b158_checkpoint_is_refused_by_name(
    tmp_path: Path, change: Callable[[Synthetic], None], name: str, where: str
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32")
    change(model)
    refusal = next(refusal for refusal in catalogue().refusals if refusal.name == name)
    with pytest.raises(bitconv.BitconvError) as error:
        bitconv.convert(model.path, tmp_path / "out.gguf")
    message = str(error.value)
    assert message.startswith(str(model.path))
    assert message.endswith(f"{where}: {name}: {refusal.reason}; {refusal.way_out}")
    assert not (tmp_path / "out.gguf").exists()


def test_every_refusal_is_tested() -> None:
    assert {name for _, name, _ in NOT_TERNARY} == {refusal.name for refusal in catalogue().refusals}


def test_a_gguf_file_as_model_is_told_what_to_do_with_it(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "model.gguf")
    with pytest.raises(bitconv.BitconvError, match=r"model\.gguf: already a GGUF file.*bitconv verify.*repack"):
        bitconv.convert(tmp_path / "model.gguf", tmp_path / "out.gguf")


def test_a_gguf_beside_a_checkpoint_and_the_usual_input_bits_disturb_nothing(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm")
    model.rewrite_config(input_bits=8, weight_bits=1)
    (model.path / "ggml-model-i2_s.gguf").write_bytes(b"GGUF")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_the_families_are_printed_with_the_types_that_their_runners_compute() -> None:
    listed = json.loads(CliRunner().invoke(app, ["families", "--json"]).stdout)
    assert [entry["name"] for entry in listed["families"]] == [family.name for family in FAMILIES]
    assert [entry["name"] for entry in listed["refusals"]] == [refusal.name for refusal in catalogue().refusals]
    by_name = {entry["name"]: entry for entry in listed["families"]}
    # Squared ReLU: not llama.cpp, not bitnet.cpp from July 2026.
    assert by_name["Microsoft b1.58"]["types"] == {
        "bitnet.cpp": ["i2_s", "tl1", "tl2", "tq1_0", "tq2_0"],
        "ik_llama.cpp": ["iq2_bn", "iq1_bn"],
        "bitnet.cpp-arm64": ["i2_s"],
    }
    assert by_name["Mixtral 1.58-bit"]["types"] == {"llama.cpp": ["tq1_0", "tq2_0", "q2_0"]}
    assert set(by_name["Llama 1.58-bit"]["types"]) == {
        "bitnet.cpp",
        "bitnet.cpp-2026",
        "llama.cpp",
        "ik_llama.cpp",
        "bitnet.cpp-arm64",
    }
    assert by_name["Llama 1.58-bit"]["recognised"] == "LlamaForCausalLM, hidden_act silu, quant_method bitnet or none"
    text = CliRunner().invoke(app, ["families"]).stdout
    for entry in (*listed["families"], *listed["refusals"]):
        assert entry["name"] in text
        assert entry["recognised"] in text


@pytest.mark.torch
def test_every_family_and_type_that_is_listed_converts(tmp_path: Path) -> None:
    """For each entry, a small checkpoint of it takes each type in each runner as listed, tl1 and tl2 included."""
    from test_gpu_pipeline import make_pipeline_checkpoint
    from test_olmo import make_olmo

    kinds = {"BitnetForCausalLM": "1bitllm", "BitNetForCausalLM": "microsoft", "LlamaForCausalLM": "llama"}
    kinds |= {"MixtralForCausalLM": "mixtral", "Qwen3ForCausalLM": "plain_qwen3", "Qwen3Model": "embedding"}
    kinds |= {"MapleForCausalLM": "maple", "MistralForCausalLM": "llama"}
    kinds |= {"Qwen2ForCausalLM": "qwen2", "MiniCPMForCausalLM": "minicpm", "HunYuanDenseV1ForCausalLM": "hunyuan"}
    for number, entry in enumerate(catalogue().families):
        hf_architecture, activation = entry.recognised.split(", ")[:2]
        kind = "qwen3" if "rms_norm" in entry.recognised else kinds.get(hf_architecture)
        if hf_architecture == "OLMoModelForCausalLM":
            model = make_olmo(tmp_path / str(number))
        elif "a tensor tok_embeddings.weight" in entry.recognised:
            model = make_pipeline_checkpoint(tmp_path / str(number), "int2", hidden=512, ffn=1024, layers=1)
        else:
            norms = {"inner_attn_ln": "1bitllm", "attn_sub_norm": "microsoft"}
            with_norms = next((norms[norm] for norm in norms if norm in entry.recognised), None)
            layers = 4 if kind == "maple" else 1  # of which the last has no window
            model = make_checkpoint(
                tmp_path / str(number), with_norms or str(kind), hidden=512, ffn=1024, layers=layers, head_dim=128
            )
            if with_norms:
                model.rewrite_config(architectures=[hf_architecture], quantization_config=ONLINE)
            elif kind == "llama":
                model.rewrite_config(architectures=[hf_architecture])
        model.rewrite_config(hidden_act=activation.removeprefix("hidden_act "))
        for runner, types in entry.types.items():
            for type_name in types:
                result = bitconv.convert(model.path, tmp_path / "x.gguf", type=type_name, runner=runner, dry_run=True)
                assert (result.family, result.architecture) == (entry.name, entry.architecture)


@pytest.mark.parametrize("kind", ["1bitllm", "microsoft"])
def test_a_llama_with_sub_norms_among_its_tensors_is_the_graph_that_has_them(tmp_path: Path, kind: str) -> None:
    """The same tensors as from the class that declares the norms. Unmarked, so the rule must be named."""
    model = make_checkpoint(tmp_path / "model", kind)
    model.rewrite_config(hidden_act="silu", quantization_config=None)
    bitconv.convert(model.path, tmp_path / "own.gguf")
    model.rewrite_config(architectures=["LlamaForCausalLM"])
    with pytest.raises(BitconvError, match="unmarked master weights"):
        bitconv.convert(model.path, tmp_path / "llama.gguf")
    result = bitconv.convert(model.path, tmp_path / "llama.gguf", ternarize="absmean")
    assert result.architecture == "bitnet"
    assert (tmp_path / "llama.gguf").read_bytes() == (tmp_path / "own.gguf").read_bytes()


def test_the_page_of_families_has_the_tables_of_the_catalogue() -> None:
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    section = page.split("<!-- bitconv families -->\n")[1].split("\n<!-- /bitconv families -->")[0]
    assert section == markdown(), "run python tests/tables.py"


@pytest.mark.parametrize(
    "order", [list(FAMILIES), FAMILIES[::-1], FAMILIES[5:] + FAMILIES[:5]], ids=["listed", "reversed", "turned"]
)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_found_by_its_signs_in_whatever_order_families_are_listed(
    family: Family, order: Sequence[Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", tuple(order))
    config = {"architectures": [family.hf_architecture], "hidden_act": family.architecture.activation}
    names = [f"model{family.tensor}" if family.tensor.startswith("_") else family.tensor or "model.norm.weight"]
    assert families.detect(config, "config.json", names) is family


def test_no_two_families_of_a_class_have_the_same_signs() -> None:
    told_by = [(family.hf_architecture, family.signs) for family in FAMILIES]
    assert len(set(told_by)) == len(told_by)


def test_tensors_of_two_families_are_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32")
    file = model.path / "model.safetensors"
    norms = {
        f"model.layers.0.{name}.weight": np.ones(256, np.float32)
        for name in ("self_attn.inner_attn_ln", "self_attn.attn_sub_norm")
    }
    save_file(load_file(file) | norms, file)
    with pytest.raises(BitconvError, match=r"two families, Llama with 1bitLLM's .* and Llama with Microsoft's"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_no_two_families_are_what_an_architecture_is_exported_as() -> None:
    exported = [(family.architecture, family.experts) for family in FAMILIES if family.exported]
    assert len(set(exported)) == len(exported) == 8


@pytest.mark.parametrize("count", [5, 8])
def test_floats_of_few_levels_are_no_master_weights(count: int, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32")
    of_levels(count)(model)
    with pytest.raises(BitconvError, match="weights of other levels"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_a_sub_norm_is_a_fault_of_the_classes_alone_whose_graphs_lack_it(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft")
    bitconv.convert(model.path, tmp_path / "out.gguf")


def unknown_class(path: Path, kind: str, **config: object) -> str:
    """What is said of a checkpoint of a kind under a class that is not known."""
    model = make_checkpoint(path, kind, dtype="f32")
    model.rewrite_config(architectures=["SomethingForCausalLM"], **config)
    with pytest.raises(BitconvError) as error:
        bitconv.convert(model.path, path.parent / "out.gguf")
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "near"),
    [
        ("llama", "LlamaForCausalLM or MistralForCausalLM or MiniCPMForCausalLM"),
        ("plain_qwen3", "Qwen3ForCausalLM"),
        ("hunyuan", "HunYuanDenseV1ForCausalLM"),
        ("maple", "MapleForCausalLM"),
        ("microsoft", "BitNetForCausalLM or LlamaForCausalLM"),
    ],
)
def test_an_unknown_class_is_told_the_classes_that_have_its_tensors(kind: str, near: str, tmp_path: Path) -> None:
    said = unknown_class(tmp_path / "model", kind)
    assert "architectures ['SomethingForCausalLM'] is not supported" in said
    assert f"; its layers have the tensors of {near}: if its own code computes the same of them" in said


def test_an_unknown_class_with_other_tensors_is_told_which(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32")
    add_tensor(".extra.weight", (8,))(model)
    model.rewrite_config(architectures=["SomethingForCausalLM"])
    with pytest.raises(
        BitconvError, match=r"nearest by its tensors is LlamaForCausalLM, .*q_proj\.extra\.weight: llama"
    ):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_an_unknown_class_that_is_near_to_nothing_is_told_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"encoder.0.weight": np.zeros((4, 4), np.float32)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["SomethingForCausalLM"]}')
    with pytest.raises(BitconvError) as error:
        bitconv.convert(tmp_path / "model", tmp_path / "out.gguf")
    assert error.value.way_out is None


def test_a_type_of_rotated_weights_is_named(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf")
    content = bytearray((tmp_path / "out.gguf").read_bytes())
    at = content.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 2 * 8
    assert content[at : at + 4] == (36).to_bytes(4, "little")
    content[at : at + 4] = (142).to_bytes(4, "little")
    (tmp_path / "out.gguf").write_bytes(content)
    with pytest.raises(BitconvError, match=r"attn_q\.weight: tensor type 142 is not supported: .*Bonsai 2.*rotated"):
        bitconv.verify(tmp_path / "out.gguf")


@pytest.mark.torch
@pytest.mark.parametrize("window", [None, 512, 256])
def test_mistral_without_a_window_that_matters_is_llama(window: int | None, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = make_checkpoint(tmp_path / "model", "llama")
    model.rewrite_config(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=window)
    if window is not None and window < model.config["max_position_embeddings"]:
        with pytest.raises(BitconvError, match="sliding window"):
            bitconv.convert(model.path, tmp_path / "out.gguf")
        return
    result = bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    assert (result.family, result.architecture) == ("Mistral 1.58-bit", "llama")
    compared = bitconv.compare(tmp_path / "out.gguf", model.path)
    assert compared.divergence < 0.01 and compared.metadata == ()
