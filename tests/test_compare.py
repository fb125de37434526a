"""What compare finds between a file and its checkpoint: nothing in right files, every planted fault in wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.commands.compare import Comparison, compare
from bitconv.gguf import read_gguf
from bitconv.system.errors import BitconvError

from conftest import FIXTURES
from synthetic import make_checkpoint
from test_torch_files import as_bin
from test_verify import Rebuilt

pytestmark = pytest.mark.torch
transformers = pytest.importorskip("transformers")

LLAMA = FIXTURES / "Llama3-1.58-tiny"
MICROSOFT = FIXTURES / "bitnet-b1.58-2B-4T-tiny"
ONEBITLLM = FIXTURES / "bitnet_b1_58-tiny"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A right file of each checkpoint."""
    files = {model: tmp_path_factory.mktemp("good") / "good.gguf" for model in (LLAMA, MICROSOFT, ONEBITLLM)}
    for model, file in files.items():
        bitconv.convert(model, file)
    return files


@pytest.mark.parametrize("model", [LLAMA, MICROSOFT, ONEBITLLM], ids=lambda model: model.name)
def test_a_right_file_agrees(converted: dict[Path, Path], model: Path) -> None:
    result = compare(converted[model], model)
    assert result.disagreements == ()
    assert result.tokens > 500
    assert result.divergence < 0.001 and result.top1_agreement > 0.97 and result.mean_difference < 0.05
    assert result.file_perplexity == pytest.approx(result.model_perplexity, rel=5e-3)


@pytest.mark.parametrize("family", ["1bitllm", "microsoft", "llama"])
def test_grouped_heads_and_other_sizes_agree(tmp_path: Path, family: str) -> None:
    """Random weights: float32 embeddings, since logits of such a model are large."""
    model = make_checkpoint(tmp_path / "model", family)
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    result = compare(tmp_path / "out.gguf", model.path)
    assert not result.tokenized_differently
    assert result.top1_agreement > 0.9 and result.divergence < 0.05


def test_master_weights_of_the_microsoft_family_agree(tmp_path: Path) -> None:
    """quantization_mode "online": transformers ternarises at run time."""
    model = make_checkpoint(tmp_path / "model", "microsoft", packed=False)
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    assert compare(tmp_path / "out.gguf", model.path).top1_agreement > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"ternary_floats": True},
        {"ternary_floats": True, "row_scales": True},
        {"packed": True, "convention": "multiply"},
        {"packed": True, "convention": "divide"},
    ],
    ids=str,
)
def test_1bitllm_s_own_class_with_ternary_weights_agrees(tmp_path: Path, options: dict) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", **options)
    if "packed" in options:
        linear_class = {"divide": "bitlinear", "multiply": "autobitlinear"}[options["convention"]]
        model.rewrite_config(quantization_config={"quant_method": "bitnet", "linear_class": linear_class})
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", embed_type="f32")
    result = compare(tmp_path / "out.gguf", model.path)
    assert result.top1_agreement > 0.9 and result.divergence < 0.05


def test_a_checkpoint_in_a_bin_file_agrees(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm")
    bitconv.convert(model.path, tmp_path / "out.gguf", embed_type="f32")
    as_bin(model)
    assert compare(tmp_path / "out.gguf", model.path).top1_agreement > 0.9


def planted(file: Rebuilt, tmp_path: Path, model: Path) -> Comparison:
    return compare(file.write(tmp_path / "bad.gguf"), model)


def assert_model_differs(result: Comparison) -> None:
    assert not result.agrees
    assert any("divergence" in text for text in result.disagreements)
    assert not result.tokenized_differently


def test_finds_q_rows_that_are_not_permuted(converted: dict[Path, Path], tmp_path: Path) -> None:
    file = Rebuilt(converted[LLAMA])
    q = file.tensor("blk.1.attn_q.weight")
    rows = np.frombuffer(q[3][: 512 * 128], np.uint8).reshape(8, 32, 2, 128)  # heads, pairs, halves, bytes of a row
    q[3] = rows.swapaxes(1, 2).tobytes() + q[3][512 * 128 :]
    assert_model_differs(planted(file, tmp_path, LLAMA))


@pytest.mark.parametrize("model", [LLAMA, MICROSOFT], ids=lambda model: model.name)
def test_finds_an_inverted_scale(converted: dict[Path, Path], tmp_path: Path, model: Path) -> None:
    file = Rebuilt(converted[model])
    tensor = file.tensor("blk.1.ffn_down.weight")
    scale_at = 512 * 1024 // 4
    inverse = 1 / np.frombuffer(tensor[3], np.float32, 1, scale_at)
    tensor[3] = tensor[3][:scale_at] + inverse.tobytes() + tensor[3][scale_at + 4 :]
    assert_model_differs(planted(file, tmp_path, model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.eom_token_id", np.uint32(268)),
        ("tokenizer.chat_template.tool_use", "{{ 'INJECTED ' }}{{ messages[0].content }}"),
        ("general.sampling.temp", np.float32(9)),
    ],
)
def test_finds_a_key_that_no_logit_shows(converted: dict[Path, Path], tmp_path: Path, key: str, value: object) -> None:
    file = Rebuilt(converted[LLAMA])
    file.metadata[key] = value
    result = planted(file, tmp_path, LLAMA)
    assert result.disagreements == (f"{key} is a key that the checkpoint does not ask for",)


def test_finds_silu_in_place_of_relu2(converted: dict[Path, Path], tmp_path: Path) -> None:
    """What a file of the architecture bitnet computes."""
    file = Rebuilt(converted[MICROSOFT])
    file.metadata = {key.replace("bitnet-b1.58.", "bitnet."): value for key, value in file.metadata.items()}
    file.metadata["general.architecture"] = "bitnet"
    assert_model_differs(planted(file, tmp_path, MICROSOFT))


@pytest.mark.parametrize("model", [LLAMA, MICROSOFT, ONEBITLLM], ids=lambda model: model.name)
def test_finds_tensors_of_two_layers_swapped(converted: dict[Path, Path], tmp_path: Path, model: Path) -> None:
    file = Rebuilt(converted[model])
    one, two = file.tensor("blk.0.ffn_up.weight"), file.tensor("blk.1.ffn_up.weight")
    one[3], two[3] = two[3], one[3]
    assert_model_differs(planted(file, tmp_path, model))


@pytest.mark.parametrize("model", [MICROSOFT, ONEBITLLM], ids=lambda model: model.name)
def test_finds_attn_sub_norm_and_ffn_norm_swapped(converted: dict[Path, Path], tmp_path: Path, model: Path) -> None:
    file = Rebuilt(converted[model])
    for layer in (0, 1):
        one, two = file.tensor(f"blk.{layer}.attn_sub_norm.weight"), file.tensor(f"blk.{layer}.ffn_norm.weight")
        one[3], two[3] = two[3], one[3]
    assert_model_differs(planted(file, tmp_path, model))


@pytest.mark.parametrize(("model", "name"), [(LLAMA, "llama"), (MICROSOFT, "bitnet-b1.58")])
def test_finds_a_rope_base_of_10000_for_500000(
    converted: dict[Path, Path], tmp_path: Path, model: Path, name: str
) -> None:
    file = Rebuilt(converted[model])
    assert file.metadata[f"{name}.rope.freq_base"] == 500000
    file.metadata[f"{name}.rope.freq_base"] = np.float32(10000)
    assert_model_differs(planted(file, tmp_path, model))


@pytest.mark.parametrize("rank", [0, -1])
def test_finds_a_missing_merge(converted: dict[Path, Path], tmp_path: Path, rank: int) -> None:
    """The weights are right and get the checkpoint's tokens: only the tokenization differs."""
    file = Rebuilt(converted[MICROSOFT])
    del file.metadata["tokenizer.ggml.merges"][rank]
    result = planted(file, tmp_path, MICROSOFT)
    assert result.metadata == ("tokenizer.ggml.merges is not what the checkpoint says",)
    (said,) = result.disagreements[1:]
    assert "tokenized differently" in said


@pytest.mark.parametrize("model", [MICROSOFT, ONEBITLLM], ids=lambda model: model.name)
def test_finds_that_bos_is_not_added(converted: dict[Path, Path], tmp_path: Path, model: Path) -> None:
    file = Rebuilt(converted[model])
    file.metadata["tokenizer.ggml.add_bos_token"] = False
    result = planted(file, tmp_path, model)
    assert not result.agrees
    assert len(result.tokenized_differently) > 1000


def test_finds_another_score_of_a_sentencepiece_token(converted: dict[Path, Path], tmp_path: Path) -> None:
    file = Rebuilt(converted[ONEBITLLM])
    scores = file.metadata["tokenizer.ggml.scores"] = file.metadata["tokenizer.ggml.scores"].copy()
    scores[[300, 900]] = scores[[900, 300]]
    assert planted(file, tmp_path, ONEBITLLM).tokenized_differently


@pytest.mark.parametrize(
    "settings", [{}, {"add_prefix_space": False}, {"legacy": True}, {"add_bos_token": None}], ids=str
)
def test_finds_a_space_in_front_that_is_not_the_tokenizer_s(tmp_path: Path, settings: dict) -> None:
    """And finds nothing in the right file, although transformers 5 adds none to a text that starts with one."""
    model = make_checkpoint(tmp_path / "model", "1bitllm").path
    said = json.loads((model / "tokenizer_config.json").read_text()) | settings
    said = {key: value for key, value in said.items() if value is not None}
    (model / "tokenizer_config.json").write_text(json.dumps(said))
    bitconv.convert(model, tmp_path / "out.gguf", embed_type="f32")
    (tmp_path / "text").write_text(" the lord said unto moses\n  and \u2581so on")
    assert not compare(tmp_path / "out.gguf", model, text=tmp_path / "text").tokenized_differently
    file = Rebuilt(tmp_path / "out.gguf")
    file.metadata["tokenizer.ggml.add_space_prefix"] = not file.metadata["tokenizer.ggml.add_space_prefix"]
    assert len(planted(file, tmp_path, model).tokenized_differently) > 1000


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": False}, {"legacy": True}], ids=str)
def test_a_tokenizer_saved_by_transformers_5_is_the_same(tmp_path: Path, settings: dict) -> None:
    """As tokenizer.json, without tokenizer.model and with other settings."""
    model = make_checkpoint(tmp_path / "model", "1bitllm").path
    said = json.loads((model / "tokenizer_config.json").read_text()) | settings
    (model / "tokenizer_config.json").write_text(json.dumps(said))
    saved = transformers.AutoTokenizer.from_pretrained(model)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (model / name).unlink()
    saved.save_pretrained(model)
    bitconv.convert(model, tmp_path / "out.gguf", embed_type="f32")
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["tokenizer.ggml.add_space_prefix"] is settings.get("add_prefix_space", True)
    assert not compare(tmp_path / "out.gguf", model).tokenized_differently


@pytest.mark.parametrize("kind", ["llama", "1bitllm"])
def test_refuses_float_weights_that_nothing_marks(tmp_path: Path, kind: str) -> None:
    model = make_checkpoint(tmp_path / "model", kind, packed=False)
    model.rewrite_config(architectures=["LlamaForCausalLM"], quantization_config=None)
    bitconv.convert(model.path, tmp_path / "out.gguf", ternarize="absmean")
    with pytest.raises(BitconvError, match="nothing marks this"):
        bitconv.compare(tmp_path / "out.gguf", model.path)


@pytest.mark.parametrize(("kind", "packed"), [("mixtral", True), ("mixtral", False), ("1bitllm", False)])
def test_runs_what_transformers_has_no_class_for(tmp_path: Path, kind: str, packed: bool) -> None:
    model = make_checkpoint(tmp_path / "model", kind, packed=packed, hidden=256, ffn=512)
    if kind == "mixtral":
        quantization = model.config["quantization_config"]
        online = {"linear_class": "autobitlinear", "quantization_mode": "online"}
        model.rewrite_config(quantization_config=quantization | ({} if packed else online))
        model.rewrite_config(model_type="mixtral")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="tq2_0", embed_type="f32")
    result = bitconv.compare(tmp_path / "out.gguf", model.path)
    # Of random weights; router logits that tie are few.
    assert result.divergence < 0.02 and result.top1_agreement > 0.9
    if kind == "mixtral":
        rebuilt = Rebuilt(tmp_path / "out.gguf")
        scales = rebuilt.tensor("blk.0.ffn_up_exps.scale")
        scales[3] = np.frombuffer(scales[3], np.float32)[3::-1].tobytes()
        bad = bitconv.compare(rebuilt.write(tmp_path / "bad.gguf"), model.path)
        assert bad.divergence > 10 * result.divergence


@pytest.mark.parametrize("kind", ["microsoft", "llama"])
def test_refuses_weights_that_transformers_would_ternarise_again(tmp_path: Path, kind: str) -> None:
    model = make_checkpoint(tmp_path / "model", kind, packed=False, ternary_floats=True)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    with pytest.raises(
        BitconvError, match=r"q_proj\.weight: is ternary already, .*; verify against='MODEL' proves the file"
    ):
        bitconv.compare(tmp_path / "out.gguf", model.path)


def test_refuses_a_model_of_another_vocabulary(converted: dict[Path, Path]) -> None:
    with pytest.raises(BitconvError, match=r"has 1024 tokens, .* has 1280: they are different models"):
        compare(converted[ONEBITLLM], MICROSOFT)


def test_scales_without_a_dimension_are_told(tmp_path: Path) -> None:
    """The file is right, and transformers' layers take a weight_scale of shape (1,) alone."""
    model = tmp_path / "model"
    shutil.copytree(FIXTURES / "Llama3-1.58-tiny", model)
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for name, entry in header.items():
        if name.endswith(".weight_scale"):
            entry["shape"] = []
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    bitconv.convert(model, tmp_path / "out.gguf")
    assert bitconv.verify(tmp_path / "out.gguf", against=model).right
    with pytest.raises(BitconvError, match=r"weight_scale are scalars.*verify .*proves the file"):
        compare(tmp_path / "out.gguf", model)
