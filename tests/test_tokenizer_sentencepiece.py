"""SentencePiece vocabularies, from tokenizer.model and from a tokenizer.json derived from one: llama.cpp's "llama"."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitconv.system.errors import BitconvError
from bitconv.tokenizer.notes import tokenizer_notes

from tokenizer_support import FIXTURES, HARD_TEXTS, Runner, convert, write_json

sentencepiece = pytest.importorskip("sentencepiece")

FIXTURE = FIXTURES / "bitnet_b1_58-tiny"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def train(path: Path, **options: Any) -> Any:
    """Train a small model into `path` and load it with the sentencepiece library."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((FIXTURES / "eval.txt").read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        minloglevel=2,
        **{
            "model_type": "bpe",
            "vocab_size": 400,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def derived_json(processor: Any, **changes: Any) -> dict[str, Any]:
    """The tokenizer.json that transformers 4 derives from a model: every split of a piece in two is a merge."""
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    pieces = [piece for piece, i in vocab.items() if not (processor.is_byte(i) or processor.is_control(i))]
    pieces.sort(key=lambda piece: -processor.get_score(vocab[piece]))
    merges = [
        f"{piece[:i]} {piece[i:]}"
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    names = ("<unk>", "<s>", "</s>")
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": vocab[name], "content": name, **flags} for name in names],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
        **changes,
    }


def fixture_processor() -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(FIXTURE / "tokenizer.model"))


def write_derived(directory: Path, tokenizer: dict[str, Any]) -> Path:
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    return write_json(directory, tokenizer=tokenizer, tokenizer_config=settings)


def test_pieces_are_those_of_the_sentencepiece_library() -> None:
    processor = fixture_processor()
    ids = range(processor.vocab_size())
    metadata = convert(FIXTURE, processor.vocab_size())
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.tokens"] == processor.id_to_piece(list(ids))
    assert metadata["tokenizer.ggml.scores"].dtype == np.float32
    assert metadata["tokenizer.ggml.scores"].tolist() == processor.get_score(list(ids))
    assert metadata["tokenizer.ggml.token_type"].tolist() == [
        UNKNOWN
        if processor.is_unknown(i)
        else CONTROL
        if processor.is_control(i)
        else BYTE
        if processor.is_byte(i)
        else NORMAL
        for i in ids
    ]
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.bos_token_id"] == processor.bos_id()
    assert metadata["tokenizer.ggml.eos_token_id"] == processor.eos_id()
    assert metadata["tokenizer.ggml.unknown_token_id"] == processor.unk_id()
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.runners
def test_runner_splits_text_like_the_sentencepiece_library(tmp_path: Path) -> None:
    processor = fixture_processor()
    runner = Runner(convert(FIXTURE, processor.vocab_size()), tmp_path / "vocab.gguf")
    for text in HARD_TEXTS:
        expected = processor.encode(text) if text else []
        assert runner.tokenize(text) == expected, text
        assert runner.tokenize(text, add_special=True) == [processor.bos_id(), *expected], text
    runner.close()


@pytest.mark.runners
def test_user_defined_pieces_and_the_missing_space_in_front(tmp_path: Path) -> None:
    processor = train(
        tmp_path / "tokenizer.model", user_defined_symbols=["<tool>", "\u2581\u2581"], add_dummy_prefix=False
    )
    metadata = convert(tmp_path, 400, bos_token_id=1, eos_token_id=2)
    assert metadata["tokenizer.ggml.add_space_prefix"] is False
    assert metadata["tokenizer.ggml.tokens"][3:5] == ["<tool>", "  "]
    assert metadata["tokenizer.ggml.token_type"].tolist()[3:5] == [USER_DEFINED, USER_DEFINED]
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    for text in (*HARD_TEXTS[1:], "a <tool> b<tool>", "x  y    z"):
        assert runner.tokenize(text) == processor.encode(text), text
    runner.close()


def test_added_tokens_and_padding_follow_the_pieces(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "tokenizer.model", tmp_path)
    decoder = {
        "0": {"content": "<unk>", "special": True},
        "1024": {"content": "<pad>", "special": True},
        "1025": {"content": "</line>", "special": False},
    }
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "added_tokens_decoder": decoder}
    metadata = convert(write_json(tmp_path, tokenizer_config=settings), 1028)
    assert metadata["tokenizer.ggml.tokens"][1024:] == ["<pad>", "</line>", "[PAD1026]", "[PAD1027]"]
    assert metadata["tokenizer.ggml.token_type"].tolist()[1024:] == [CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert metadata["tokenizer.ggml.scores"].tolist()[1024:] == [-1000.0, -1000.0, -10000.0, -10000.0]
    assert metadata["tokenizer.ggml.token_type"][0] == UNKNOWN
    assert metadata["tokenizer.ggml.padding_token_id"] == 1024
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert metadata["tokenizer.ggml.add_bos_token"] is True


def test_model_and_json_side_by_side_must_agree(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "tokenizer.model", tmp_path)
    tokenizer = derived_json(fixture_processor())
    both = convert(write_derived(tmp_path, tokenizer), 1024)
    assert both["tokenizer.ggml.scores"].tolist() == convert(FIXTURE, 1024)["tokenizer.ggml.scores"].tolist()

    vocab = tokenizer["model"]["vocab"]
    vocab["\u2581the"], vocab["in"] = vocab["in"], vocab["\u2581the"]
    write_derived(tmp_path, tokenizer)
    with pytest.raises(BitconvError, match=r"tokenizer\.model has .*; remove the file that does not belong"):
        convert(tmp_path, 1024)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"model_type": "unigram"}, "its model is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"byte_fallback": False, "vocab_size": 120}, "lacks byte tokens"),
    ],
)
def test_model_that_the_runner_cannot_express_is_refused(tmp_path: Path, options: dict[str, Any], cause: str) -> None:
    train(tmp_path / "tokenizer.model", **options)
    with pytest.raises(BitconvError, match=cause) as error:
        convert(tmp_path, 400, eos_token_id=2)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.model"))


@pytest.mark.parametrize(
    "content",
    [b"", b"IQ== 0\nIg== 1\n", (FIXTURE / "tokenizer.model").read_bytes().partition(b"he")[0] + b"h"],
    ids=["empty", "tiktoken", "truncated"],
)
def test_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(BitconvError, match=r"tokenizer\.model: not a SentencePiece model"):
        convert(tmp_path, 1024, bos_token_id=1, eos_token_id=2)


# add_prefix_space.

LLAMA_CLASS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
FAST_CLASS = {**LLAMA_CLASS, "tokenizer_class": "PreTrainedTokenizerFast"}
NO_CLASS = {"bos_token": "<s>", "eos_token": "</s>"}
WITHOUT_PREFIX = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}


@pytest.mark.parametrize(
    ("settings", "model", "json_prefix", "expected"),
    [
        # (tokenizer_config.json, tokenizer.model's add_dummy_prefix, tokenizer.json's prefix; None: no such file)
        ({**LLAMA_CLASS, "add_prefix_space": False}, True, None, False),
        ({**LLAMA_CLASS, "add_prefix_space": False, "legacy": True}, True, None, False),
        ({**LLAMA_CLASS, "add_prefix_space": False, "legacy": False}, True, None, False),
        ({**LLAMA_CLASS, "tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False}, True, None, False),
        ({**LLAMA_CLASS, "add_prefix_space": True}, False, None, True),
        ({**LLAMA_CLASS, "add_prefix_space": None}, True, None, True),
        (LLAMA_CLASS, True, None, True),
        (LLAMA_CLASS, False, None, True),
        (NO_CLASS, True, None, True),
        (NO_CLASS, False, None, False),
        ({**NO_CLASS, "add_prefix_space": False}, False, None, False),
        ({**LLAMA_CLASS, "add_prefix_space": False}, None, True, False),
        ({**LLAMA_CLASS, "add_prefix_space": True}, None, False, True),
        ({**FAST_CLASS, "add_prefix_space": False}, None, True, True),
        ({**FAST_CLASS, "add_prefix_space": True}, None, False, False),
        ({**LLAMA_CLASS, "add_prefix_space": False}, True, True, False),
        ({**LLAMA_CLASS, "add_prefix_space": True}, True, False, True),
        (FAST_CLASS, True, False, False),
        (NO_CLASS, False, True, True),
    ],
)
def test_the_space_in_front_is_that_of_transformers(
    tmp_path: Path, settings: dict[str, Any], model: bool | None, json_prefix: bool | None, expected: bool
) -> None:
    processor = train(tmp_path / "tokenizer.model", add_dummy_prefix=model is not False)
    if model is None:
        (tmp_path / "tokenizer.model").unlink()
    write_json(tmp_path, tokenizer_config=settings, config={"model_type": "llama"})
    if json_prefix is not None:
        write_json(
            tmp_path, tokenizer=derived_json(processor, **({} if json_prefix else {"normalizer": WITHOUT_PREFIX}))
        )
    assert convert(tmp_path, 400)["tokenizer.ggml.add_space_prefix"] is expected
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    first = tokenizer.convert_ids_to_tokens(tokenizer("the", add_special_tokens=False).input_ids)[0]
    assert first.startswith("\u2581") is expected


@pytest.mark.parametrize(
    ("settings", "noted"),
    [({"legacy": False}, True), ({}, True), ({"legacy": True}, False), ({"add_prefix_space": False}, False)],
    ids=str,
)
def test_the_space_behind_a_special_token_is_noted(tmp_path: Path, settings: dict[str, Any], noted: bool) -> None:
    shutil.copy(FIXTURE / "tokenizer.model", tmp_path)
    write_json(tmp_path, tokenizer_config={**LLAMA_CLASS, **settings})
    notes = tokenizer_notes(tmp_path, {"vocab_size": 1024}, convert(tmp_path, 1024))
    assert [note for note in notes if "behind a special token" in note] == notes
    assert len(notes) == noted


def test_a_key_that_transformers_reads_by_release_is_refused(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / "tokenizer.model", tmp_path)
    write_json(tmp_path, tokenizer_config={**NO_CLASS, "add_prefix_space": False})
    with pytest.raises(BitconvError, match=r"add_prefix_space is false.*set tokenizer_class to LlamaTokenizer"):
        convert(tmp_path, 1024)


def test_pre_is_refused_for_sentencepiece() -> None:
    with pytest.raises(BitconvError, match="pre='llama-bpe' is for byte-level vocabularies"):
        convert(FIXTURE, 1024, pre="llama-bpe")


# tokenizer.json alone.


@pytest.mark.runners
def test_runner_splits_text_like_the_derived_json(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    directory = write_derived(tmp_path, derived_json(fixture_processor()))
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    metadata = convert(directory, 1024)
    original = convert(FIXTURE, 1024)
    assert metadata["tokenizer.ggml.tokens"] == original["tokenizer.ggml.tokens"]
    assert metadata["tokenizer.ggml.token_type"].tolist() == original["tokenizer.ggml.token_type"].tolist()
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    for text in (*HARD_TEXTS, "the lord said unto moses, speak unto the children of israel"):
        assert runner.tokenize(text) == tokenizer.encode(text).ids, text
    runner.close()


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}, True),
        (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}, False),
        (None, {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": False}, False),
        ({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, None, False),
    ],
)
def test_space_in_front_is_read_off_the_steps(
    tmp_path: Path, normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None, expected: bool
) -> None:
    tokenizer = derived_json(fixture_processor(), normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    assert convert(write_derived(tmp_path, tokenizer), 1024)["tokenizer.ggml.add_space_prefix"] is expected


def without_the_last_merge(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].pop()


def with_two_merges_swapped(tokenizer: dict[str, Any]) -> None:
    # Two ways to make one token come to stand on both sides of another token's.
    merges = tokenizer["model"]["merges"]
    products = [merge.replace(" ", "") for merge in merges]
    index = next(i for i in range(1, len(merges) - 1) if products[i - 1] == products[i] != products[i + 1])
    merges[index], merges[index + 1] = merges[index + 1], merges[index]


def with_a_token_inside_spaces(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["a\u2581b"] = 1024
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (without_the_last_merge, "the merges lack a way to make"),
        (with_two_merges_swapped, "other merges stand between those that make"),
        (with_a_token_inside_spaces, "Metaspace splits at spaces"),
        (lambda json: json.update(normalizer=None), "spaces are replaced 0 times"),
        (lambda json: json.update(normalizer={"type": "NFKC"}), "NFKC is a step that"),
        (lambda json: json.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace is a step that"),
        (lambda json: json["model"].update(byte_fallback=False), "neither byte-level nor with byte_fallback"),
        (lambda json: json["model"]["vocab"].pop("<0x0A>"), "lacks byte tokens"),
    ],
)
def test_json_that_the_runner_cannot_express_is_refused(tmp_path: Path, change: Any, cause: str) -> None:
    tokenizer = derived_json(fixture_processor())
    change(tokenizer)
    with pytest.raises(BitconvError, match=cause) as error:
        convert(write_derived(tmp_path, tokenizer), 1025)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    "steps",
    [
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "\u2581"}]},
        None,
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_byte_level_vocabulary_saved_with_metaspace_is_told(tmp_path: Path, steps: Any, beside: bool) -> None:
    tokenizer = json.loads((FIXTURES / "Llama3-1.58-tiny" / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = steps
    tokenizer["decoder"] = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    tokenizer["model"] |= {"byte_fallback": True, "ignore_merges": False}
    if beside:
        (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(BitconvError, match=r"vocabulary is byte-level.*restore tokenizer\.json and") as error:
        convert(write_json(tmp_path, tokenizer=tokenizer), 1280)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tiktoken_s_vocabulary_alone_is_told(tmp_path: Path, end: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(f"IQ== 0{end}Ig== 1{end}aGVsbG8= 2{end}".encode())
    with pytest.raises(BitconvError, match=r"tokenizer\.model: not a SentencePiece model but tiktoken's.*put the"):
        convert(tmp_path, 1024, bos_token_id=1, eos_token_id=2)


def test_vocab_json_and_merges_txt_alone_are_told(tmp_path: Path) -> None:
    write_json(tmp_path, vocab={"a": 0, "b": 1, "ab": 2}, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(BitconvError, match=r"vocab\.json and merges\.txt.*write tokenizer\.json.*save_pretrained"):
        convert(tmp_path, 3)


def test_byte_level_json_wins_over_a_model_file_of_another_format(tmp_path: Path) -> None:
    # Llama 3 ships tiktoken's vocabulary as tokenizer.model.
    llama3 = FIXTURES / "Llama3-1.58-tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama3 / name, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    vocab_size = json.loads((llama3 / "config.json").read_text())["vocab_size"]
    assert convert(tmp_path, vocab_size)["tokenizer.ggml.model"] == "gpt2"
