"""Export: the checkpoint holds what the file does, transformers computes the model with it, convert takes it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.checkpoint import safetensors_files
from bitconv.checkpoint.safetensors_files import NewTensor, write_tensors
from bitconv.gguf import Metadata, TensorEntry, Value, align, encode_header, read_gguf
from bitconv.system.errors import BitconvError
from bitconv.tokenizer.pretokenizers import PRE_TOKENIZERS
from bitconv.tokenizer.rebuild import tokenizer_files
from bitconv.tokenizer.sentencepiece_model import _fields
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from gguf_file import File
from synthetic import FIXTURES, Synthetic, make_checkpoint, pack_hf
from tokenizer_support import HARD_TEXTS, byte_level_json, convert, write_json

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def export(source: Path, parent: Path, **options: Any) -> tuple[bitconv.Export, Path]:
    """The checkpoint converted to parent/out.gguf, and exported again into a directory of the same name."""
    parent.mkdir()
    bitconv.convert(source, parent / "out.gguf", **options)
    return bitconv.export(parent / "out.gguf", parent / source.name), parent / source.name


def stored(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """dtype, shape and bytes of every tensor of a checkpoint, read by the format's specification.

    All are aligned, as those who map the file into memory need them.
    """
    tensors = {}
    for file in directory.glob("*.safetensors"):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            assert (start + first) % {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}[entry["dtype"]] == 0
            tensors[name] = (entry["dtype"], entry["shape"], data[start + first : start + last])
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def replace_tensor(path: Path, name: str, type_id: int, data: bytes) -> None:
    """Write a file again with other data, of another type, for one tensor."""
    file = read_gguf(path)
    source = path.read_bytes()
    ends = [tensor.offset for tensor in file.tensors[1:]] + [len(source)]
    entries, parts, size = [], [], 0
    for tensor, end in zip(file.tensors, ends, strict=True):
        part = data if tensor.name == name else source[tensor.offset : end]
        kind = type_id if tensor.name == name else tensor.type_id
        entries.append(TensorEntry(tensor.name, tensor.shape, kind, size))
        parts.append(part.ljust(align(len(part)), b"\0"))
        size += len(parts[-1])
    path.write_bytes(encode_header(file.metadata, entries) + b"".join(parts))


def replace_metadata(path: Path, **changes: Value | None) -> None:
    """Write a file again with metadata changed; None removes a key. In names of keys "__" stands for a dot."""
    file = read_gguf(path)
    changed = file.metadata | {key.replace("__", "."): value for key, value in changes.items()}
    entries = [TensorEntry(t.name, t.shape, t.type_id, t.offset - file.data_offset) for t in file.tensors]
    header = encode_header({key: value for key, value in changed.items() if value is not None}, entries)
    path.write_bytes(header + path.read_bytes()[file.data_offset :])


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory


def assert_same(first: Metadata, second: Metadata) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert np.array_equal(value, second[key]), key


@pytest.fixture
def llama(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "llama", layers=1)


@pytest.fixture
def file(llama: Synthetic, tmp_path: Path) -> Path:
    bitconv.convert(llama.path, tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


# --- there and back ---


@pytest.mark.slow
@pytest.mark.parametrize("type_name", ["i2_s", "tl2", "tq1_0", "f32", "f16", "bf16"])
def test_converting_an_export_gives_the_same_file(checkpoint: Path, tmp_path: Path, type_name: str) -> None:
    options = {"type": type_name, "runner": "bitnet.cpp"}
    _, exported = export(checkpoint, tmp_path / "exported", **options)
    bitconv.convert(exported, tmp_path / "second.gguf", **options)
    assert (tmp_path / "second.gguf").read_bytes() == (exported.parent / "out.gguf").read_bytes()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 128, "kv_heads": 1, "hidden": 512}),
        ("llama", {"dtype": "f32", "convention": "multiply"}),
        ("microsoft", {"packed": True}),
        ("microsoft", {"packed": True, "dtype": "f32"}),
    ],
)
def test_an_export_of_a_packed_checkpoint_is_the_checkpoint(tmp_path: Path, family: str, options: dict) -> None:
    model = make_checkpoint(tmp_path / "model", family, **options)
    dtype = options.get("dtype", "bf16")
    result, exported = export(
        model.path, tmp_path / "exported", embed_type=dtype, scale_convention=options.get("convention")
    )
    assert stored(exported) == stored(model.path)
    assert (result.dtype, result.exact_scales) == (dtype, True)
    assert result.scale_convention == ("divide" if family == "llama" and not options.get("convention") else "multiply")
    written = read_json(exported / "config.json")
    for key in model.config.keys() - {"quantization_config"}:
        assert written[key] == model.config[key], key
    assert written["torch_dtype"] == {"bf16": "bfloat16", "f32": "float32"}[dtype]


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_master_weights_come_back_packed_with_the_scale_in_float32(tmp_path: Path, dtype: str) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype=dtype)
    result, exported = export(model.path, tmp_path / "exported", embed_type=dtype)
    assert (result.dtype, result.exact_scales, result.scale_convention) == (dtype, dtype == "f32", "multiply")
    tensors, before = stored(exported), stored(model.path)
    slots = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj"}
    for slot, module in slots.items():
        name, trits = f"model.layers.1.{module}.weight", model.trits[f"blk.1.{slot}.weight"]
        assert tensors[name] == ("U8", [trits.shape[0] // 4, trits.shape[1]], pack_hf(trits).tobytes())
        assert tensors[f"{name}_scale"] == ("F32", [1], model.scales[f"blk.1.{slot}.weight"].tobytes())
    norms = {"self_attn.inner_attn_ln": "self_attn.attn_sub_norm", "mlp.ffn_layernorm": "mlp.ffn_sub_norm"}
    for old, new in norms.items():
        assert tensors[f"model.layers.0.{new}.weight"] == before[f"model.layers.0.{old}.weight"]
    written = read_json(exported / "config.json")
    assert (written["architectures"], written["hidden_act"]) == (["BitNetForCausalLM"], "silu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_name", "runner"),
    [
        ("i2_s", "bitnet.cpp"),
        ("tl1", "bitnet.cpp"),
        ("tl2", "bitnet.cpp"),
        ("tq1_0", "bitnet.cpp"),
        ("tq2_0", "llama.cpp"),
        ("q2_0", "llama.cpp"),
        ("iq2_bn", "ik_llama.cpp"),
        ("iq1_bn", "ik_llama.cpp"),
        ("f32", "llama.cpp"),
        ("f16", "llama.cpp"),
        ("bf16", "llama.cpp"),
    ],
)
def test_every_type_gives_its_trits_and_its_scales(tmp_path: Path, type_name: str, runner: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=768, layers=1)
    result, exported = export(model.path, tmp_path / "exported", type=type_name, runner=runner)
    tensors, before = stored(exported), stored(model.path)
    scales = {tensor.name: tensor.scale for tensor in bitconv.verify(exported.parent / "out.gguf").tensors}
    packed = {name for name, (dtype, _, _) in before.items() if dtype == "U8"}
    assert {name: tensors[name] for name in packed} == {name: before[name] for name in packed}
    assert {t.name: t.scale for t in result.tensors if t.scale is not None}.keys() == packed
    assert sorted(t.scale for t in result.tensors if t.scale is not None) == sorted(s for s in scales.values() if s)
    bitconv.convert(exported, tmp_path / "second.gguf", type="f32")
    again = bitconv.verify(tmp_path / "second.gguf").tensors
    assert {t.name: t.scale for t in again if t.scale} == {name: scale for name, scale in scales.items() if scale}


def test_rows_of_a_head_that_lie_in_two_quarters_of_the_packing_are_put_back(tmp_path: Path) -> None:
    """Of one head: neighbours in the file are half a head apart in the checkpoint, and in different quarters."""
    model = make_checkpoint(tmp_path / "model", "llama", heads=2, kv_heads=1, layers=1)
    _, exported = export(model.path, tmp_path / "exported")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert stored(exported)[name] == stored(model.path)[name]


def test_a_tensor_of_zeros_is_exported(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=512, layers=1)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f16")
    data = bytearray((tmp_path / "out.gguf").read_bytes())
    tensor = File(tmp_path / "out.gguf").tensors["blk.0.ffn_up.weight"]
    data[tensor.start : tensor.start + 512 * 512 * 2] = bytes(512 * 512 * 2)
    (tmp_path / "out.gguf").write_bytes(data)
    bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    assert stored(tmp_path / "exported")["model.layers.0.mlp.up_proj.weight"][2] == b"\x55" * (512 * 512 // 4)


def test_a_tied_llama_stays_tied(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", layers=1, tied=True)
    _, exported = export(model.path, tmp_path / "exported")
    assert read_json(exported / "config.json")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in stored(exported)


def test_a_q8_0_embedding_becomes_floats_of_the_same_values(file: Path, tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(-128, 128, (1280 * 256 // 32, 34)).astype(np.int8)
    blocks[:, :2] = np.float16([0.01]).view(np.int8)
    replace_tensor(file, "token_embd.weight", 8, blocks.tobytes())
    result = bitconv.export(file, tmp_path / "exported")
    values = np.float32(np.float16(0.01)) * blocks[:, 2:].astype(np.float32)
    assert stored(tmp_path / "exported")["model.embed_tokens.weight"] == ("F32", [1280, 256], values.tobytes())
    assert (result.dtype, result.exact_scales) == ("f32", True)


def test_a_value_that_bfloat16_cannot_hold_makes_the_checkpoint_float32(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    at = File(file).tensors["output.weight"].start + 1000
    data[at : at + 2] = np.float16(1.001).tobytes()
    file.write_bytes(data)
    result = bitconv.export(file, tmp_path / "exported")
    dtype, _, values = stored(tmp_path / "exported")["lm_head.weight"]
    assert (result.dtype, dtype, result.scale_convention, result.exact_scales) == ("f32", "F32", "multiply", True)
    assert np.frombuffer(values, np.float32)[500] == np.float32(np.float16(1.001))


def test_tensors_of_odd_sizes_are_aligned(tmp_path: Path) -> None:
    sizes = {"a": ("u8", 3), "b": ("bf16", 1), "c": ("f32", 1), "d": ("u8", 1)}
    tensors = [
        NewTensor(name, dtype, (count,), partial(lambda size, _: iter([np.full(size, 7, np.uint8)]), count * width))
        for name, (dtype, count) in sizes.items()
        for width in [{"u8": 1, "bf16": 2, "f32": 4}[dtype]]
    ]
    write_tensors(tmp_path, tensors, 1, None)
    assert {name: (dtype, shape) for name, (dtype, shape, _) in stored(tmp_path).items()} == {
        name: (dtype.upper(), [count]) for name, (dtype, count) in sizes.items()
    }


def test_large_models_are_written_in_shards(
    llama: Synthetic, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", 300_000)
    result = bitconv.export(file, tmp_path / "model2")
    index = read_json(tmp_path / "model2" / "model.safetensors.index.json")
    shards = sorted((tmp_path / "model2").glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, 5)]
    for shard in shards:
        with safe_open(shard, framework="np") as opened:
            names = list(opened.keys())
            assert opened.metadata() == {"format": "pt"}
        assert {index["weight_map"][name] for name in names} == {shard.name}
        assert len(names) == 1 or shard.stat().st_size < 300_000 + 4096
    assert index["weight_map"].keys() == {tensor.name for tensor in result.tensors} == stored(llama.path).keys()
    assert index["metadata"]["total_size"] == result.size == sum(tensor.nbytes for tensor in result.tensors)
    bitconv.convert(tmp_path / "model2", tmp_path / "second.gguf")
    assert bitconv.verify(file, against=tmp_path / "model2").right


# --- rope scaling ---


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3_ROPE,
        LLAMA3_ROPE | {"factor": 32.0, "original_max_position_embeddings": 8192, "high_freq_factor": 2.5},
    ],
)
def test_rope_scaling_comes_back(llama: Synthetic, tmp_path: Path, scaling: dict[str, Any]) -> None:
    llama.rewrite_config(rope_scaling=scaling, rope_theta=500000.0)
    _, exported = export(llama.path, tmp_path / "exported")
    assert read_json(exported / "config.json")["rope_scaling"] == scaling


def test_llama3_factors_computed_in_float32_are_recognised(llama: Synthetic, tmp_path: Path) -> None:
    """As llama.cpp's converter computes them, which differ in the last bits."""
    llama.rewrite_config(rope_scaling=LLAMA3_ROPE)
    _, exported = export(llama.path, tmp_path / "exported")
    file = exported.parent / "out.gguf"
    factors = np.frombuffer(File(file).bytes("rope_freqs.weight", 32 * 4), np.float32)
    noise = np.where((factors > 1) & (factors < 8), np.float32(1 + 3e-7), np.float32(1))
    replace_tensor(file, "rope_freqs.weight", 0, (factors * noise).tobytes())
    bitconv.export(file, exported, force=True)
    assert read_json(exported / "config.json")["rope_scaling"] == LLAMA3_ROPE


@pytest.mark.parametrize("change", ["linear", "one", "all", "nan", "zero"])
def test_factors_that_are_not_llama3_s_are_longrope_s(llama: Synthetic, tmp_path: Path, change: str) -> None:
    llama.rewrite_config(rope_scaling=LLAMA3_ROPE)
    bitconv.convert(llama.path, tmp_path / "out.gguf")
    factors = np.frombuffer(File(tmp_path / "out.gguf").bytes("rope_freqs.weight", 32 * 4), np.float32).copy()
    match change:
        case "linear":
            factors = np.linspace(1, 8, 32, dtype=np.float32)
        case "one":
            factors[np.flatnonzero(factors > 1)[1]] *= np.float32(1.01)
        case "all":
            factors[:] = 8
        case "nan":
            factors[-1] = np.nan
        case "zero":
            factors[3] = 0
    replace_tensor(tmp_path / "out.gguf", "rope_freqs.weight", 0, factors.tobytes())
    if change in ("nan", "zero"):
        refused(tmp_path / "out.gguf", "rope_freqs.weight", "its factors are not all finite and positive")
        return
    bitconv.export(tmp_path / "out.gguf", tmp_path / "exported")
    scaling = read_json(tmp_path / "exported" / "config.json")["rope_scaling"]
    assert scaling["rope_type"] == "longrope" and scaling["attention_factor"] == 1
    assert scaling["short_factor"] == scaling["long_factor"]
    assert np.array(scaling["long_factor"], np.float32).tolist() == factors.tolist()


def test_other_rope_scaling_is_refused(file: Path) -> None:
    replace_metadata(file, llama__rope__scaling__type="yarn")
    refused(file, "llama.rope.scaling.type", "'yarn'")


# --- tokenizers ---


@pytest.mark.parametrize("name", dict.fromkeys(row.name for row in PRE_TOKENIZERS if row.name != "deepseek-llm"))
def test_every_pre_tokenizer_comes_back(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "before", tokenizer=byte_level_json(["a b", "ab c"]), tokenizer_config={"eos_token": "a"})
    metadata = convert(tmp_path / "before", 258, name)
    assert metadata["tokenizer.ggml.pre"] == name
    files = tokenizer_files(metadata, Path("x.gguf"), None)
    assert_same(metadata, convert(write_files(tmp_path / "after", files), 258))
    Tokenizer.from_str(files["tokenizer.json"].decode()).encode("abc 123 it's\n\n  def")


def test_splits_of_the_mapped_bytes_stand_behind_their_mapping(tmp_path: Path) -> None:
    write_json(tmp_path / "before", tokenizer=byte_level_json(), tokenizer_config={"eos_token": "a"})
    files = tokenizer_files(convert(tmp_path / "before", 256, "falcon"), Path("x.gguf"), None)
    steps = json.loads(files["tokenizer.json"])["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Punctuation", "Split", "ByteLevel", "Split", "Split"]


def test_a_rebuilt_tokenizer_json_splits_text_as_before(tmp_path: Path) -> None:
    _, exported = export(FIXTURES / "Llama3-1.58-tiny", tmp_path / "exported")
    before = Tokenizer.from_file(str(FIXTURES / "Llama3-1.58-tiny" / "tokenizer.json"))
    after = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for text in (*HARD_TEXTS, "a<|eot_id|> b<|begin_of_text|>"):
        assert before.encode(text).ids == after.encode(text).ids
        assert before.decode(before.encode(text).ids) == after.decode(after.encode(text).ids)
    assert after.get_vocab() == before.get_vocab()


def test_a_rebuilt_tokenizer_model_splits_text_as_before(tmp_path: Path) -> None:
    _, exported = export(FIXTURES / "bitnet_b1_58-tiny", tmp_path / "exported")
    before = SentencePieceProcessor(model_file=str(FIXTURES / "bitnet_b1_58-tiny" / "tokenizer.model"))
    after = SentencePieceProcessor(model_file=str(exported / "tokenizer.model"))
    for text in HARD_TEXTS:
        assert before.encode(text) == after.encode(text)
    for role in ("bos_id", "eos_id", "unk_id", "pad_id"):
        assert getattr(before, role)() == getattr(after, role)()


def test_added_tokens_unused_ids_and_templates_of_a_byte_level_tokenizer_come_back(tmp_path: Path) -> None:
    added = [
        {"id": 256, "content": "<s>"},
        {"id": 260, "content": "</s>"},
        {"id": 258, "content": " two words", "special": False},
        {"id": 262, "content": "<|eom_id|>"},
        {"id": 263, "content": "<|eot_id|>"},
    ]
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool use", "template": "{{ b }}"}]
    json_file = byte_level_json(added=added)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "mask_token": "a"}
    flags = {"add_bos_token": False, "add_eos_token": True, "clean_up_tokenization_spaces": True}
    before = write_json(
        tmp_path / "before", tokenizer=json_file, tokenizer_config={**names, **flags, "chat_template": templates}
    )
    metadata = convert(before, 266)
    assert (metadata["tokenizer.ggml.tokens"][257], metadata["tokenizer.ggml.tokens"][265]) == ("[PAD257]", "[PAD265]")
    files = tokenizer_files(metadata, Path("x.gguf"), None)
    assert_same(metadata, convert(write_files(tmp_path / "after", files), 266))
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.encode("a two words<|eot_id|>").ids == [tokenizer.token_to_id("a"), 258, 263, 260]
    assert tokenizer.id_to_token(257) is None


def test_added_tokens_and_unused_ids_of_sentencepiece_come_back(tmp_path: Path) -> None:
    model = FIXTURES / "bitnet_b1_58-tiny" / "tokenizer.model"
    decoder = {"1024": {"content": "<|user|>", "special": True}, "1027": {"content": "<two words>", "special": False}}
    settings = {"eos_token": "<|user|>", "add_bos_token": False, "added_tokens_decoder": decoder}
    write_json(tmp_path / "before", tokenizer_config=settings)
    (tmp_path / "before" / "tokenizer.model").write_bytes(model.read_bytes())
    metadata = convert(tmp_path / "before", 1030)
    metadata |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.unknown_token_id": np.uint32(0)}
    scores = metadata["tokenizer.ggml.scores"]
    assert isinstance(scores, np.ndarray)
    scores[1027] = -5
    files = tokenizer_files(metadata, Path("x.gguf"), None)
    assert_same(metadata, convert(write_files(tmp_path / "after", files), 1030))
    assert json.loads(files["tokenizer_config.json"])["add_prefix_space"] is False
    trainer = dict(_fields(dict(_fields(files["tokenizer.model"]))[2]))
    assert [trainer[number] for number in (3, 4, 40, 42, 43)] == [2, 1030, 0, 1024, 2**64 - 1]
    assert trainer[47] == b"<|user|>"


def test_the_ends_of_a_generation_are_those_of_the_file(file: Path, tmp_path: Path) -> None:
    bitconv.export(file, tmp_path / "exported")
    wanted = {"bos_token_id": 1272, "eos_token_id": [1273, 1276]}
    assert read_json(tmp_path / "exported" / "generation_config.json") == wanted
    assert wanted.items() <= read_json(tmp_path / "exported" / "config.json").items()


def test_a_file_without_pre_needs_one_named(file: Path, tmp_path: Path) -> None:
    replace_metadata(file, tokenizer__ggml__pre=None)
    refused(file, "tokenizer.ggml.pre is missing", "pre='NAME'", "llama-bpe")
    bitconv.export(file, tmp_path / "exported", pre="llama-bpe")
    assert read_json(tmp_path / "exported" / "tokenizer.json")["model"]["ignore_merges"] is True


def test_a_file_that_does_not_say_whether_a_prompt_gets_bos_is_read_as_llama_cpp_does(
    file: Path, tmp_path: Path
) -> None:
    replace_metadata(file, tokenizer__ggml__add_bos_token=None, tokenizer__ggml__add_eos_token=None)
    bitconv.export(file, tmp_path / "exported")
    written = read_json(tmp_path / "exported" / "tokenizer_config.json")
    assert (written["add_bos_token"], written["add_eos_token"]) == (True, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer__ggml__model": "bert"}, ["tokenizer.ggml.model", "'bert'"]),
        ({"tokenizer__ggml__pre": "deepseek-llm"}, ["'deepseek-llm'", "pre='NAME'", "llama-bpe"]),
        ({"tokenizer__ggml__merges": None}, ["tokenizer.ggml.merges is missing"]),
        ({"tokenizer__ggml__token_type": None}, ["tokenizer.ggml.token_type is missing"]),
        ({"tokenizer__ggml__token_type": np.ones(7, np.int32)}, ["token_type has 7 entries"]),
        ({"tokenizer__ggml__token_type": np.full(1280, 9, np.int32)}, ["no vocabulary"]),
        ({"tokenizer__ggml__tokens": ["a"] * 1280}, ["1279 tokens a second time"]),
        ({"tokenizer__ggml__eos_token_id": np.uint32(1280)}, ["eos_token_id", "1280"]),
        ({"tokenizer__ggml__bos_token_id": None}, ["bos_token_id is missing"]),
    ],
)
def test_what_is_no_vocabulary_is_refused(file: Path, changes: dict[str, Any], words: list[str]) -> None:
    replace_metadata(file, **changes)
    refused(file, *words)


def test_pre_is_refused_for_sentencepiece(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", layers=1)
    bitconv.convert(model.path, tmp_path / "out.gguf")
    refused(tmp_path / "out.gguf", "pre='gpt-2'", pre="gpt-2")


# --- refusals ---


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + bytes(100))
    refused(tmp_path / "x.gguf", "not a GGUF file")


@pytest.mark.parametrize("keep", [100, 30_000, 200_000])
def test_a_truncated_file_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:-keep] if keep > 100 else file.read_bytes()[:keep])
    refused(file, "truncated")


def test_a_file_that_is_not_ternary_is_refused(llama: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(llama.path, tmp_path / "out.gguf", type="f16")
    data = bytearray((tmp_path / "out.gguf").read_bytes())
    tensor = File(tmp_path / "out.gguf").tensors["blk.0.ffn_down.weight"]
    at = tensor.start + 200 * 384 * 2
    data[at : at + 2] = np.float16(0.0123).tobytes()
    (tmp_path / "out.gguf").write_bytes(data)
    refused(tmp_path / "out.gguf", "blk.0.ffn_down.weight", "row 200", "no ternary weights")


def test_a_quantized_model_is_refused(file: Path) -> None:
    replace_tensor(file, "blk.0.ffn_up.weight", 2, bytes(384 * 256 // 32 * 18))
    refused(file, "blk.0.ffn_up.weight", "q4_0")


def test_an_invalid_code_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[File(file).tensors["blk.0.attn_v.weight"].start + 100] |= 0b11
    file.write_bytes(data)
    refused(file, "blk.0.attn_v.weight", "row 1,")


def test_a_value_that_is_not_finite_is_refused(file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = File(file).tensors["output_norm.weight"].start
    data[at + 4 : at + 8] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    refused(file, "output_norm.weight", "nan", "finite")


@pytest.mark.parametrize("key", ["block_count", "attention__layer_norm_rms_epsilon", "feed_forward_length"])
def test_a_missing_size_is_refused(file: Path, key: str) -> None:
    replace_metadata(file, **{f"llama__{key}": None})
    refused(file, f"llama.{key.replace('__', '.')}")


def test_a_missing_tensor_is_refused(file: Path) -> None:
    replace_metadata(file, llama__block_count=np.uint32(2))
    refused(file, "blk.1.attn_norm.weight: missing")


def test_a_tensor_that_nothing_reads_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.9.ffn_up.weight", 1))
    refused(file, "blk.9.ffn_up.weight")


def test_partial_rotation_is_refused(file: Path) -> None:
    replace_metadata(file, llama__rope__dimension_count=np.uint32(32))
    refused(file, "rope.dimension_count is 32, a head has 64 dimensions")


def refused(file: Path, *words: str, **options: Any) -> None:
    """The export fails with one line that names the file and holds the words, and leaves nothing behind."""
    before = sorted(file.parent.iterdir())
    with pytest.raises(BitconvError) as error:
        bitconv.export(file, file.parent / "exported", **options)
    for word in (str(file), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(file.parent.iterdir()) == before


# --- the directory ---


def test_an_existing_directory_is_replaced_with_force_only(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    bitconv.export(file, target)
    (target / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier export")
    before = contents(target)
    with pytest.raises(BitconvError, match="pass force=True"):
        bitconv.export(file, target)
    assert contents(target) == before
    result = bitconv.export(file, target, force=True)
    assert sorted(contents(target)) == list(result.files)
    assert "model-00001-of-00002.safetensors" not in result.files


@pytest.mark.parametrize("name", ["notes.txt", "model.gguf", "special_tokens_map.json", "folder"])
def test_a_directory_with_other_files_is_never_replaced(file: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "exported"
    target.mkdir()
    (target / "config.json").write_text("{}")
    (target / name).mkdir() if name == "folder" else (target / name).write_text("mine")
    with pytest.raises(BitconvError, match=name):
        bitconv.export(file, target, force=True)
    assert sorted(path.name for path in target.iterdir()) == sorted(["config.json", name])


def test_a_failed_export_leaves_the_directory_as_it_was(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    bitconv.export(file, target)
    before = contents(target), sorted(tmp_path.iterdir())
    data = bytearray(file.read_bytes())
    data[File(file).tensors["blk.0.ffn_down.weight"].start + 20_000] |= 0b11
    file.write_bytes(data)
    with pytest.raises(BitconvError, match="invalid code"):
        bitconv.export(file, target, force=True)
    assert (contents(target), sorted(tmp_path.iterdir())) == before


def test_an_empty_directory_is_filled(file: Path, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    assert bitconv.export(file, tmp_path / "exported").files == tuple(sorted(contents(tmp_path / "exported")))


def test_a_file_and_a_missing_parent_are_no_directories(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BitconvError, match="is a file"):
        bitconv.export(file, file, force=True)
    with pytest.raises(BitconvError, match="does not exist"):
        bitconv.export(file, tmp_path / "no" / "exported")


def test_the_bytes_do_not_depend_on_threads(file: Path, tmp_path: Path) -> None:
    for threads in (1, 8):
        bitconv.export(file, tmp_path / str(threads), threads=threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "8")


def test_progress_counts_the_bytes_of_tensors(file: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = bitconv.export(file, tmp_path / "exported", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (result.size, result.size)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- transformers ---


@pytest.fixture
def logits() -> Callable[[Path, list[list[int]]], np.ndarray]:
    """What transformers computes for windows of tokens: (windows, tokens, vocabulary)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def run(directory: Path, windows: list[list[int]]) -> np.ndarray:
        # Compiling would take longer than all the rest.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model = transformers.AutoModelForCausalLM.from_pretrained(directory)
            result: np.ndarray = model(torch.tensor(windows)).logits.float().numpy()
        return result

    return run


@pytest.mark.torch
@pytest.mark.parametrize("name", ["Llama3-1.58-tiny", "bitnet-b1.58-2B-4T-tiny"])
def test_transformers_computes_the_same_as_from_the_checkpoint(
    tmp_path: Path, name: str, logits: Callable[[Path, list[list[int]]], np.ndarray]
) -> None:
    _, exported = export(FIXTURES / name, tmp_path / "exported", embed_type="bf16")
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokens = tokenizer.encode((FIXTURES / "eval.txt").read_text()[:500]).ids
    assert np.array_equal(logits(exported, [tokens]), logits(FIXTURES / name, [tokens]))


@pytest.mark.torch
def test_transformers_computes_a_1bitllm_model_that_it_could_not_load_before(
    tmp_path: Path, logits: Callable[[Path, list[list[int]]], np.ndarray]
) -> None:
    name = "bitnet_b1_58-tiny"
    _, exported = export(FIXTURES / name, tmp_path / "exported", embed_type="f32")
    tokens = SentencePieceProcessor(model_file=str(exported / "tokenizer.model")).encode(
        (FIXTURES / "eval.txt").read_text()
    )
    with np.load(FIXTURES / "next_token_reference.npz") as reference:
        positions, expected = reference[f"{name}/positions"], reference[f"{name}/log_probabilities"]
    first_window = positions < 256
    predicted = logits(exported, [tokens[:256]])[0, positions[first_window]].astype(np.float64)
    predicted -= np.log(np.exp(predicted).sum(axis=1, keepdims=True))
    assert first_window.sum() > 5
    # Rounding an activation to int8 the other way, once in a while, is all that may differ.
    assert np.median(np.abs(predicted - expected[first_window])) < 1e-5
    assert np.abs(predicted - expected[first_window]).max() < 0.5
