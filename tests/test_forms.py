"""The forms that a checkpoint arrives in: sharded, renamed, tied, untied, half-downloaded. Right, or told why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bitconv
import pytest
import torch
from bitconv.cli import app
from bitconv.system.errors import BitconvError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gguf_file import File
from synthetic import Synthetic, interleave, make_checkpoint

pytestmark = pytest.mark.torch

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0f" * 32 + "\nsize 3809956\n"
PAGE = '\n<!DOCTYPE html>\n<html class="">\n<head><title>model.safetensors</title></head></html>\n'
RESTRICTED = "Access to model someone/something is restricted. You must have access to it and be authenticated."
MULTIPLY = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = MULTIPLY | {"quantization_mode": "online"}
FLOATS = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
Tensors = dict[str, torch.Tensor]


def edit_tensors(directory: Path, edit: Callable[[Tensors], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def write_shards(directory: Path, tensors: Tensors, count: int, kind: str = "safetensors") -> list[Path]:
    """In place of model.safetensors, without an index."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    files = [directory / f"{stem}-{number:05}-of-{count:05}.{kind}" for number in range(1, count + 1)]
    for number, file in enumerate(files):
        part = {name: tensors[name] for name in sorted(tensors)[number::count]}
        save_file(part, file) if kind == "safetensors" else torch.save(part, file)
    return files


def converted(directory: Path, output: Path, **options: object) -> bytes:
    """The bytes of a file that verify finds right."""
    bitconv.convert(directory, output, force=True, **options)
    assert bitconv.verify(output, against=directory).right
    return output.read_bytes()


def refused(directory: Path, output: Path, cause: str, **options: object) -> None:
    with pytest.raises(BitconvError, match=cause):
        bitconv.convert(directory, output, **options)
    assert not output.exists()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


@pytest.fixture
def microsoft(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "microsoft")


@pytest.fixture
def llama(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "llama")


# --- which files ---


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("count", [1, 3])
def test_all_shards_without_their_index(llama: Synthetic, out: Path, kind: str, count: int) -> None:
    wanted = converted(llama.path, out)
    write_shards(llama.path, load_file(llama.path / "model.safetensors"), count, kind)
    assert converted(llama.path, out) == wanted


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_shard_that_is_missing_is_named(llama: Synthetic, out: Path, kind: str) -> None:
    shards = write_shards(llama.path, load_file(llama.path / "model.safetensors"), 3, kind)
    shards[1].unlink()
    refused(llama.path, out, rf"{shards[1].name}: missing; 2 of 3 shards are there")


def test_shards_of_two_sets(llama: Synthetic, out: Path) -> None:
    tensors = load_file(llama.path / "model.safetensors")
    write_shards(llama.path, tensors, 2)
    write_shards(llama.path, tensors, 3)
    refused(llama.path, out, r"sets of 2 and of 3, and no model\.safetensors\.index\.json")


@pytest.mark.parametrize("name", ["model.safetensors.part", "model-00001-of-00002.safetensors.incomplete"])
def test_an_unfinished_download(llama: Synthetic, out: Path, name: str) -> None:
    (llama.path / "model.safetensors").rename(llama.path / name)
    refused(llama.path, out, f"the download {name} was broken off; start it again")


def test_a_download_that_hf_broke_off(llama: Synthetic, out: Path) -> None:
    folder = llama.path / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True)
    (llama.path / "model.safetensors").rename(folder / "c2hvcnQ=.0f0f.incomplete")
    refused(llama.path, out, "a download was broken off; start it again")


def test_a_file_of_full_size_whose_download_is_unfinished(llama: Synthetic, out: Path) -> None:
    """aria2c takes the space first, so that zeros lie where bytes are to come."""
    (llama.path / "model.safetensors.aria2").touch()
    refused(llama.path, out, r"model\.safetensors: is an unfinished download; .*remove model\.safetensors\.aria2")


@pytest.mark.parametrize(
    ("name", "wanted"), [("weights.safetensors", "model.safetensors"), ("weights.bin", "pytorch_model.bin")]
)
def test_weights_by_another_name(llama: Synthetic, out: Path, name: str, wanted: str) -> None:
    (llama.path / "training_args.bin").touch()
    (llama.path / "model.safetensors").rename(llama.path / name)
    refused(llama.path, out, f"if {name} holds them, and all of them, rename it to {wanted}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (POINTER, "is a Git LFS pointer .*git lfs pull"),
        (POINTER.replace("git-lfs.github.com", "hawser.github.com"), "is a Git LFS pointer"),
        (PAGE, "is a web page .*/resolve/"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (RESTRICTED, "is a server's answer .*Access to model someone/something is restricted.*hf auth login"),
        ('{"error":"Invalid credentials in Authorization header"}', "is a server's answer .*Invalid credentials"),
        ("Entry not found", "is a server's answer .*Entry not found"),
        ("Invalid username or password.", "is a server's answer .*Invalid username"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ],
)
def test_what_came_in_place_of_a_file(llama: Synthetic, out: Path, name: str, text: str, cause: str) -> None:
    (llama.path / name).write_text(text)
    refused(llama.path, out, rf"{name}: {cause}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "tokenizer.model"])
def test_a_pointer_in_place_of_other_files(tmp_path: Path, out: Path, name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm")
    if name != "tokenizer.model":
        (model.path / "model.safetensors").unlink()
    (model.path / name).write_text(POINTER)
    refused(model.path, out, rf"{name}: is a Git LFS pointer")


def test_any_text_in_place_of_weights(llama: Synthetic, out: Path) -> None:
    (llama.path / "model.safetensors").write_text("quota exceeded, try again tomorrow\n")
    refused(llama.path, out, r"model\.safetensors: is a text .*'quota exceeded, try again tomorrow'")


def test_a_pointer_that_is_not_read_disturbs_nothing(llama: Synthetic, out: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tf_model.h5"):
        (llama.path / name).write_text(POINTER)
    converted(llama.path, out)


def test_an_adapter_beside_the_weights_is_said(llama: Synthetic, out: Path) -> None:
    (llama.path / "adapter_model.safetensors").touch()
    result = CliRunner().invoke(app, ["convert", str(llama.path), str(out)])
    assert result.exit_code == 0
    assert "note: adapter_model.safetensors: a LoRA adapter beside the weights, which is not merged" in result.stdout


def test_an_adapter_without_a_config_is_told_as_one(llama: Synthetic, out: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (llama.path / name).unlink()
    (llama.path / "adapter_config.json").write_text("{}")
    refused(llama.path, out, r"adapter_config\.json: LoRA adapter: .*merge_and_unload")


# --- which names ---


@pytest.mark.parametrize(
    ("rename", "cause"),
    [
        (
            lambda name: f"_orig_mod.{name}",
            r"21 of 21 .*'_orig_mod\.', which torch\.compile adds.*remove '_orig_mod\.'",
        ),
        (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), r"9 of 21 .*'_orig_mod\.'"),
        (lambda name: f"module.{name}", r"'module\.', which DataParallel"),
        (lambda name: f"base_model.model.{name}", r"'base_model\.model\.', which peft adds.*merge_and_unload"),
        (lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"), r"'base_layer\.', which peft adds"),
        (lambda name: f"model.{name}", r"model\.model\.embed_tokens\.weight: .* have 'model\.' before"),
        (lambda name: f"language_model.{name}", r"have 'language_model\.' before"),
        (lambda name: name.removeprefix("model."), r"embed_tokens\.weight: .* lack 'model\.'.*save the whole model"),
    ],
)
def test_names_that_a_wrapper_has_changed(tmp_path: Path, out: Path, rename: Callable[[str], str], cause: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False)
    tensors = load_file(model.path / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, model.path / "model.safetensors")
    refused(model.path, out, cause)


@pytest.mark.parametrize("family", ["1bitllm", "microsoft"])
def test_a_model_that_a_class_without_its_norms_saved_again(tmp_path: Path, out: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family)
    norms = ("attn_sub_norm.weight", "ffn_sub_norm.weight", "inner_attn_ln.weight", "ffn_layernorm.weight")
    edit_tensors(model.path, lambda t: [t.pop(name) for name in list(t) if name.endswith(norms)])
    refused(model.path, out, r"config\.json: Bit.etForCausalLM, and no tensor .*: lost sub-norms: .*as it was before")
    model.rewrite_config(architectures=["LlamaForCausalLM"], hidden_act="silu", weight_bits=1, quantization_config=None)
    refused(model.path, out, r"weight_bits, and no tensor .*: lost sub-norms", ternarize="absmean")
    model.rewrite_config(weight_bits=None)
    refused(model.path, out, "unmarked master weights")


# --- embedding and head ---


@pytest.mark.parametrize("family", ["1bitllm", "microsoft"])
@pytest.mark.parametrize("tied", [None, False, True])
def test_a_head_that_is_the_embedding(tmp_path: Path, out: Path, family: str, tied: bool | None) -> None:
    model = make_checkpoint(tmp_path / "model", family)
    wanted = converted(model.path, out)
    edit_tensors(model.path, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    model.rewrite_config(tie_word_embeddings=tied)
    assert converted(model.path, out) == wanted


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("head", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tied_head_stored_again_in_another_type(tmp_path: Path, out: Path, dtype: str, head: torch.dtype) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype=dtype)
    wanted = converted(model.path, out)
    edit_tensors(model.path, lambda t: t.update({HEAD: t[EMBEDDING].to(head).clone()}))
    assert converted(model.path, out) == wanted


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_tied_head_that_is_another_in_one_value(tmp_path: Path, out: Path, dtype: str) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype=dtype)

    def change(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDING].to(torch.float32, copy=True)
        tensors[HEAD][-1, -1] *= 1.01

    edit_tensors(model.path, change)
    refused(model.path, out, r"lm_head\.weight: differs from model\.embed_tokens\.weight")


def test_an_untied_head_that_only_rounds_to_the_embedding_is_another(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", dtype="f32")
    edit_tensors(model.path, lambda t: t.update({HEAD: t[EMBEDDING].bfloat16()}))
    converted(model.path, out)
    out.unlink()
    model.rewrite_config(tie_word_embeddings=False)
    refused(model.path, out, "always multiplies by the embedding")


@pytest.mark.parametrize("family", ["microsoft", "llama"])
def test_no_head_and_nothing_that_ties_it(tmp_path: Path, out: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, tied=True)
    for said in (None, False):
        model.rewrite_config(tie_word_embeddings=said)
        refused(model.path, out, r'config\.json: .*no lm_head\.weight is stored; .*"tie_word_embeddings": true')


@pytest.mark.parametrize("family", ["microsoft", "llama"])
def test_an_embedding_stored_under_the_heads_name(tmp_path: Path, out: Path, family: str) -> None:
    model = make_checkpoint(tmp_path / "model", family, tied=True)
    wanted = converted(model.path, out)
    edit_tensors(model.path, lambda t: t.update({HEAD: t.pop(EMBEDDING)}))
    assert converted(model.path, out) == wanted
    out.unlink()
    model.rewrite_config(tie_word_embeddings=False)
    refused(model.path, out, r'embed_tokens\.weight: missing; lm_head\.weight alone.*"tie_word_embeddings": true')


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors"])
def test_an_index_that_names_a_tied_head_which_no_shard_has(tmp_path: Path, out: Path, file: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", tied=True, shards=2)
    wanted = converted(model.path, out)
    index = model.path / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"] |= {HEAD: file, "model.layers.0.self_attn.rotary_emb.inv_freq": file}
    index.write_text(json.dumps(value))
    assert converted(model.path, out) == wanted
    out.unlink()
    model.rewrite_config(tie_word_embeddings=False)
    refused(model.path, out, r"no lm_head\.weight is stored")


# --- trits and scales in other forms ---


def unpack(tensors: Tensors, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> None:
    """Packed projections to bare trits, as transformers saves a model that it has unpacked."""
    for name, packed in tensors.items():
        if packed.dtype == torch.uint8:
            tensors[name] = torch.cat([(packed >> 2 * i & 3).to(torch.int8) - 1 for i in range(4)]).to(dtype)
        if name.endswith("weight_scale") and shape is not None:
            tensors[name] = packed.reshape(shape)


@pytest.mark.parametrize("family", ["microsoft", "llama", "1bitllm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_bare_trits_beside_their_scale(tmp_path: Path, out: Path, family: str, dtype: torch.dtype) -> None:
    """Under either convention: llama divides by its scale, microsoft multiplies."""
    model = make_checkpoint(tmp_path / "model", family, packed=True)
    model.rewrite_config(quantization_config=model.config.get("quantization_config", {"quant_method": "bitnet"}))
    if family == "1bitllm":
        model.rewrite_config(quantization_config=MULTIPLY)
    wanted = converted(model.path, out)
    edit_tensors(model.path, lambda tensors: unpack(tensors, dtype, (1,) if dtype == torch.float32 else ()))
    assert converted(model.path, out) == wanted


def test_bare_trits_beside_a_scale_a_row(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", row_scales=True, hidden=512, ffn=512)
    wanted = converted(model.path, out, type="iq2_bn")
    edit_tensors(model.path, lambda tensors: unpack(tensors, torch.bfloat16))
    assert converted(model.path, out, type="iq2_bn") == wanted


@pytest.mark.parametrize("value", [2.0, 0.5, float("nan"), float("inf")])
def test_a_value_beside_a_scale_that_is_no_trit(tmp_path: Path, out: Path, value: float) -> None:
    model = make_checkpoint(tmp_path / "model", "microsoft", packed=True)

    def spoil(tensors: Tensors) -> None:
        unpack(tensors, torch.bfloat16)
        tensors["model.layers.1.mlp.up_proj.weight"][300, 7] = value

    edit_tensors(model.path, spoil)
    refused(model.path, out, r"up_proj\.weight: row 300, column 7 holds \S+ beside a weight_scale, and is no trit")


def test_floats_that_have_their_scale_beside_it_once_more(tmp_path: Path, out: Path) -> None:
    """transformers would multiply by it twice."""
    model = make_checkpoint(tmp_path / "model", "microsoft", packed=True)

    def scale(tensors: Tensors) -> None:
        unpack(tensors, torch.bfloat16)
        for name in [name for name in tensors if name.endswith("_scale")]:
            tensors[name.removesuffix("_scale")] *= tensors[name]

    edit_tensors(model.path, scale)
    refused(model.path, out, r"beside a weight_scale, and is no trit; .*remove the weight_scale tensors")
    edit_tensors(model.path, lambda t: [t.pop(name) for name in list(t) if name.endswith("_scale")])
    refused(model.path, out, "without a weight_scale, and quantization_config .*remove quantization_config")
    model.rewrite_config(quantization_config=None)
    converted(model.path, out)


@pytest.mark.parametrize("quantization", [None, ONLINE])
def test_a_scale_beside_weights_that_config_json_gives_none(
    tmp_path: Path, out: Path, quantization: dict[str, str] | None
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    edit_tensors(model.path, lambda tensors: unpack(tensors, torch.bfloat16))
    model.rewrite_config(quantization_config=quantization)
    refused(model.path, out, r"weight_scale: is the scale of trits, and config\.json's quantization_config")


@pytest.mark.parametrize("runner", [None, "bitnet.cpp", "ik_llama.cpp"])
def test_scales_that_the_default_type_cannot_hold_name_the_type_that_does(
    tmp_path: Path, out: Path, runner: str | None
) -> None:
    options = {"dtype": "f16", "marked": False, "ternary_floats": True, "group": 128, "hidden": 512, "ffn": 512}
    model = make_checkpoint(tmp_path / "model", "llama", **options)
    type_name = "iq2_bn" if runner == "ik_llama.cpp" else "i2_s"
    arguments = ["convert", str(model.path), str(out), "--type", type_name]
    result = CliRunner().invoke(app, arguments + (["--runner", runner] if runner else []))
    other = " --runner llama.cpp" if runner else ""
    assert result.exit_code == 2
    assert f"columns; --type q2_0{other} holds all tensors with their exact scales, for llama.cpp; " in result.stderr
    converted(model.path, out, type="q2_0")


# --- ternary but for outliers ---


def add_outliers(tensors: Tensors, *ends: str, every: int = 30000) -> None:
    for name, tensor in tensors.items():
        if name.endswith(ends):
            values = tensor.reshape(-1)
            values[::every] = values[::every] * 2.37 + 0.01
            tensors[name] = values.reshape(tensor.shape)


SCALES = {
    "groups": ({"group": 128}, "a scale for each 128 columns"),
    "small groups": ({"group": 32}, "a scale for each 32 columns"),
    "rows": ({"row_scales": True}, "a scale a row"),
    "one": ({}, "a scale a row"),
}


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("ends", [("down_proj.weight", "v_proj.weight"), ("_proj.weight",)])
def test_a_rule_over_whole_tensors_makes_no_scale_of_what_is_ternary_but_for_outliers(
    tmp_path: Path, out: Path, scales: str, dtype: str, ends: tuple[str, ...], marked: bool
) -> None:
    options, words = SCALES[scales]
    options = {
        "dtype": dtype,
        "marked": marked,
        "ternary_floats": True,
        "hidden": 512,
        "ffn": 512,
        "layers": 1,
    } | options
    model = make_checkpoint(tmp_path / "model", "llama", **options)
    edit_tensors(model.path, lambda tensors: add_outliers(tensors, *ends))
    for rule in ("absmean", "absmedian"):
        refused(
            model.path,
            out,
            f"but for outliers, with {words}; .*: a rule over the whole .*fallback='f16'",
            ternarize=rule,
        )


def test_a_rule_is_not_applied_where_most_have_several_scales(tmp_path: Path, out: Path) -> None:
    options = {"dtype": "f16", "marked": False, "ternary_floats": True, "group": 128, "hidden": 512, "ffn": 512}
    model = make_checkpoint(tmp_path / "model", "llama", **options)

    def spoil(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("v_proj.weight"):
                tensors[name] = torch.randn(tensors[name].shape, dtype=torch.float16)

    edit_tensors(model.path, spoil)
    refused(
        model.path,
        out,
        r"is not ternary; 12 of 14 projections are ternary, 12 with a scale for each 128 columns: a rule",
        ternarize="absmean",
    )


def master(kind: str, shape: torch.Size) -> torch.Tensor:
    """Master weights that are hard to tell: coarse, clipped at one magnitude, or mostly dead."""
    values = torch.randn(shape) * 0.05
    if kind == "coarse":
        return (values * 40).round() / 40
    if kind == "clipped":
        return values.clamp(-0.06, 0.06)
    if kind == "dead":
        return torch.where(torch.rand(shape) < 0.95, 0.0, values)
    return values


@pytest.mark.parametrize("kind", ["normal", "coarse", "clipped", "dead"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_master_weights_are_not_taken_for_ternary_ones(
    tmp_path: Path, out: Path, kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, marked=False, layers=1)

    def spoil(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("_proj.weight"):
                tensors[name] = master(kind, tensors[name].shape).to(dtype)

    edit_tensors(model.path, spoil)
    result = bitconv.convert(model.path, out, ternarize="absmean")
    assert not any(tensor.was_ternary for tensor in result.tensors)
    assert bitconv.verify(out, against=model.path, ternarize="absmean").right
    out.unlink()
    refused(model.path, out, r"0 of 7 projections are ternary\): unmarked master weights")


@pytest.mark.parametrize("family", ["llama", "plain_qwen3"])
@pytest.mark.parametrize(("dtype", "fallback"), [("f16", "f16"), ("bf16", "bf16"), ("f32", "f32"), ("bf16", "f32")])
def test_what_is_ternary_but_for_outliers_is_kept_in_floats(
    tmp_path: Path, out: Path, family: str, dtype: str, fallback: str
) -> None:
    options = {"dtype": dtype, "marked": False, "ternary_floats": True, "group": 128, "hidden": 512, "ffn": 512}
    model = make_checkpoint(tmp_path / "model", family, layers=1, head_dim=128, **options)
    ends = ("down_proj.weight", "q_proj.weight")
    edit_tensors(model.path, lambda tensors: add_outliers(tensors, *ends))
    # float16 in its blocks would round other scales
    options = {"type": "q2_0" if dtype == "f16" else "f32", "runner": "llama.cpp"}
    refused(model.path, out, "is ternary but for outliers, with a scale for each 128 columns; 5 of 7", **options)
    result = bitconv.convert(model.path, out, fallback=fallback, **options)
    assert bitconv.verify(out, against=model.path).right and bitconv.verify(out).right
    fell = {tensor.name: (tensor.type, tensor.fallback) for tensor in result.tensors if tensor.fallback}
    assert fell == dict.fromkeys(("blk.0.attn_q.weight", "blk.0.ffn_down.weight"), (fallback, "it is not ternary"))
    file, tensors = File(out), load_file(model.path / "model.safetensors")
    for end, name in (("self_attn.q_proj", "blk.0.attn_q.weight"), ("mlp.down_proj", "blk.0.ffn_down.weight")):
        wanted = tensors[f"model.layers.0.{end}.weight"].float().numpy()
        if family == "llama" and "attn_q" in name:
            wanted = interleave(wanted, 4)
        data = file.bytes(name, wanted.size * (4 if fallback == "f32" else 2))
        raw = torch.frombuffer(bytearray(data), dtype=FLOATS[fallback])
        assert (raw.float().numpy().reshape(wanted.shape) == wanted).all()


def test_a_file_that_keeps_a_projection_in_floats_runs_and_is_repacked(tmp_path: Path, out: Path) -> None:
    options = {"dtype": "f16", "marked": False, "ternary_floats": True, "hidden": 512, "ffn": 512, "layers": 2}
    model = make_checkpoint(tmp_path / "model", "llama", **options)
    whole = tmp_path / "whole.gguf"
    bitconv.convert(model.path, whole, type="tq2_0", embed_type="f32")
    edit_tensors(model.path, lambda tensors: add_outliers(tensors, "0.mlp.up_proj.weight", every=10**9))
    bitconv.convert(model.path, out, type="tq2_0", fallback="f16", embed_type="f32")
    text = tmp_path / "text.txt"
    text.write_text("many words in a row " * 40)
    a, b = (bitconv.evaluate(file, text, window=64).perplexity for file in (whole, out))
    assert a != b and abs(a / b - 1) < 0.05  # one weight in a projection, and activations that are not rounded
    bitconv.repack(out, tmp_path / "q2_0.gguf", type="q2_0")
    assert bitconv.verify(tmp_path / "q2_0.gguf", against=model.path).right
    bitconv.export(out, tmp_path / "exported")
    bitconv.convert(tmp_path / "exported", tmp_path / "again.gguf", type="tq2_0", fallback="f16")
    assert bitconv.verify(tmp_path / "again.gguf", against=model.path).right
    faults = [fault for tensor in bitconv.verify(whole, against=model.path).tensors for fault in tensor.faults]
    assert faults or bitconv.verify(whole, against=model.path).faults


def test_a_bit_of_a_projection_in_floats_is_checked(tmp_path: Path, out: Path) -> None:
    options = {"dtype": "f16", "marked": False, "ternary_floats": True, "hidden": 512, "ffn": 512, "layers": 1}
    model = make_checkpoint(tmp_path / "model", "llama", **options)
    edit_tensors(model.path, lambda tensors: add_outliers(tensors, "q_proj.weight"))
    bitconv.convert(model.path, out, type="tq2_0", fallback="f16")
    data = bytearray(out.read_bytes())
    data[data.index(File(out).bytes("blk.0.attn_q.weight", 4096)) + 1234] ^= 1
    out.write_bytes(data)
    verdict = bitconv.verify(out, against=model.path)
    assert [tensor.name for tensor in verdict.tensors if tensor.faults] == ["blk.0.attn_q.weight"]


def test_a_model_of_which_little_is_ternary_is_not_kept_in_floats(tmp_path: Path, out: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, marked=False)
    refused(model.path, out, "0 of 14 projections are ternary", fallback="f16")
