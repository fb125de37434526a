"""Vocabularies as GGUF metadata: tokens, types, special ids, templates, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitconv.system.errors import BitconvError
from bitconv.tokenizer import tokenizer_metadata
from bitconv.tokenizer.notes import tokenizer_notes

from tokenizer_support import FIXTURES, HARD_TEXTS, Runner, byte_level_json, convert, write_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_LEVEL_FIXTURES = ("bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")
END = {"content": "<end>"}


def fixture_metadata(name: str) -> dict[str, Any]:
    config = json.loads((FIXTURES / name / "config.json").read_text())
    return tokenizer_metadata(FIXTURES / name, config)


def small(directory: Path, **files: Any) -> Path:
    """A directory with a byte-level vocabulary of 257 tokens: the bytes and, with id 256, <end>."""
    files.setdefault("tokenizer", byte_level_json(added=[END]))
    return write_json(directory, **{"tokenizer_config": {"eos_token": "<end>"}, **files})


# The fixtures: what the metadata says is what independent code says.


@pytest.mark.parametrize("name", BYTE_LEVEL_FIXTURES)
def test_byte_level_vocabulary_is_that_of_the_tokenizers_library(name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    metadata = fixture_metadata(name)
    size = tokenizer.get_vocab_size()
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert metadata["tokenizer.ggml.tokens"] == [tokenizer.id_to_token(token_id) for token_id in range(size)]
    assert metadata["tokenizer.ggml.token_type"].dtype == np.int32
    assert metadata["tokenizer.ggml.token_type"].tolist() == [
        CONTROL if token_id in special else NORMAL for token_id in range(size)
    ]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert metadata["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]


@pytest.mark.runners
@pytest.mark.parametrize("name", BYTE_LEVEL_FIXTURES)
def test_runner_splits_byte_level_text_like_the_tokenizers_library(name: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    runner = Runner(fixture_metadata(name), tmp_path / "vocab.gguf")
    for text in (*HARD_TEXTS, "<|begin_of_text|>User: hi<|eot_id|>\n<|eot_id|> x"):
        for add_special in (False, True):
            expected = tokenizer.encode(text, add_special_tokens=add_special).ids
            assert runner.tokenize(text, add_special=add_special) == expected, text
    runner.close()


@pytest.mark.runners
@pytest.mark.parametrize("name", BYTE_LEVEL_FIXTURES)
def test_ends_of_generation_reach_the_runner(name: str, tmp_path: Path) -> None:
    metadata = fixture_metadata(name)
    assert metadata["tokenizer.ggml.bos_token_id"] == 1272
    assert metadata["tokenizer.ggml.eos_token_id"] == 1273
    assert metadata["tokenizer.ggml.eot_token_id"] == 1276
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert all(type(metadata[key]) is np.uint32 for key in metadata if key.endswith("_token_id"))
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    assert [i for i in range(1280) if runner.ends_generation(i)] == [1273, 1276]
    runner.close()


# Ids, types and merges.


def test_rows_without_a_token_become_unused_tokens(tmp_path: Path) -> None:
    metadata = convert(small(tmp_path), 260)
    assert metadata["tokenizer.ggml.tokens"][255:] == ["\u0143", "<end>", "[PAD257]", "[PAD258]", "[PAD259]"]
    assert metadata["tokenizer.ggml.token_type"].tolist()[255:] == [NORMAL, CONTROL, UNUSED, UNUSED, UNUSED]


def test_added_tokens_come_from_all_three_files(tmp_path: Path) -> None:
    directory = small(
        tmp_path,
        added_tokens={"<tool>": 257, "<late>": 258},
        tokenizer_config={
            "eos_token": "<end>",
            "added_tokens_decoder": {"257": {"content": "<tool>", "special": True}, "259": {"content": "\n\n"}},
        },
    )
    metadata = convert(directory, 260)
    assert metadata["tokenizer.ggml.tokens"][256:] == ["<end>", "<tool>", "<late>", "\n\n"]
    assert metadata["tokenizer.ggml.token_type"].tolist()[256:] == [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED]


def test_tokens_with_a_role_in_added_tokens_json_are_special(tmp_path: Path) -> None:
    directory = small(
        tmp_path,
        added_tokens={"<pad>": 257, "<more>": 258, "<text>": 259},
        tokenizer_config={"eos_token": "<end>", "pad_token": {"content": "<pad>"}},
        special_tokens_map={"additional_special_tokens": ["<more>"]},
    )
    metadata = convert(directory, 260)
    assert metadata["tokenizer.ggml.token_type"].tolist()[257:] == [CONTROL, CONTROL, USER_DEFINED]


@pytest.mark.runners
def test_added_token_in_the_byte_alphabet_stays_text(tmp_path: Path) -> None:
    # As in Falcon3: the line break, spelled in the byte alphabet, is listed as an added token too.
    newline = {"id": 198, "content": "\u010a", "special": False}
    directory = small(tmp_path, tokenizer=byte_level_json(["\u010a \u010a"], [{"id": 257, **END}, newline]))
    metadata = convert(directory, 258)
    token_id = metadata["tokenizer.ggml.tokens"].index("\u010a")
    assert token_id == 198
    assert metadata["tokenizer.ggml.token_type"][token_id] == NORMAL
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    assert runner.tokenize("\n\n") == [256]
    runner.close()


def test_both_spellings_of_merges_give_the_same(tmp_path: Path) -> None:
    pairs = [["\u0120", "a"], ["b", "c"], ["\u0120a", "bc"]]
    added = [{"id": 259, **END}]
    new = convert(small(tmp_path / "new", tokenizer=byte_level_json(pairs, added)), 260)
    old = convert(small(tmp_path / "old", tokenizer=byte_level_json([" ".join(p) for p in pairs], added)), 260)
    assert new["tokenizer.ggml.merges"] == old["tokenizer.ggml.merges"] == ["\u0120 a", "b c", "\u0120a bc"]
    assert new["tokenizer.ggml.tokens"] == old["tokenizer.ggml.tokens"]


def test_merge_of_a_raw_space_is_left_out(tmp_path: Path) -> None:
    # BPE sees the byte alphabet, which has no space: the merge never applies, and "a   b" would be read as another.
    tokenizer = byte_level_json([["a", "b"]], [{"id": 260, **END}])
    tokenizer["model"]["vocab"] |= {" ": 257, "a ": 258, "a b": 259}
    tokenizer["model"]["merges"] += [["a", " "], ["a ", "b"]]
    metadata = convert(small(tmp_path, tokenizer=tokenizer), 261)
    assert metadata["tokenizer.ggml.merges"] == ["a b"]


# Special tokens.


def test_roles_come_from_the_first_file_that_names_a_token(tmp_path: Path) -> None:
    directory = small(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<end>"}, "pad_token": "gone"},
        special_tokens_map={"bos_token": "A", "eos_token": "B"},
        generation_config={"eos_token_id": [5, 6], "bos_token_id": 9, "pad_token_id": 10, "sep_token_id": 11},
    )
    metadata = convert(directory, 257, eos_token_id=3, bos_token_id=4, pad_token_id=7, unk_token_id=-1)
    assert metadata["tokenizer.ggml.eos_token_id"] == 256
    assert metadata["tokenizer.ggml.bos_token_id"] == metadata["tokenizer.ggml.tokens"].index("A")
    assert metadata["tokenizer.ggml.padding_token_id"] == 7
    assert metadata["tokenizer.ggml.seperator_token_id"] == 11
    assert "tokenizer.ggml.unknown_token_id" not in metadata


@pytest.mark.parametrize(
    ("generation", "eos", "eot", "eom"),
    [
        ([5], 5, None, None),
        ([5, 6], 5, 6, None),
        ([5, 6, 7], 5, 6, 7),
        ([5, 6, 257], 5, 257, 6),
    ],
)
def test_further_eos_ids_become_eot_and_eom(
    tmp_path: Path, generation: list[int], eos: int, eot: int | None, eom: int | None
) -> None:
    added = [END, {"content": "<|im_end|>"}] if 257 in generation else [END]
    directory = small(
        tmp_path,
        tokenizer=byte_level_json(added=added),
        tokenizer_config={},
        generation_config={"eos_token_id": generation},
    )
    metadata = convert(directory, 260)
    assert metadata["tokenizer.ggml.eos_token_id"] == eos
    assert metadata.get("tokenizer.ggml.eot_token_id") == eot
    assert metadata.get("tokenizer.ggml.eom_token_id") == eom


@pytest.mark.parametrize(
    ("config", "generation", "lost"),
    [
        (5, 5, []),
        ([5, 6, 7], None, []),
        ([5, 6, 7, 8], None, [8]),
        (None, [5, 6, 7, 8, 9], [8, 9]),
        ([5, 257, 6, 258, 7], None, []),
        ([5, 6], [7, 8], [8]),
        ([5, 257, 258, 259], None, []),  # known by their texts
        ([5, 6, 7, 257], [258, 9], [9]),
    ],
)
def test_ends_that_no_runner_will_know_are_noted(tmp_path: Path, config: Any, generation: Any, lost: list[int]) -> None:
    added = [END, {"content": "<|im_end|>"}, {"content": "<|eom_id|>"}, {"content": "<|endoftext|>"}]
    generation_config = {} if generation is None else {"eos_token_id": generation}
    directory = small(
        tmp_path,
        tokenizer=byte_level_json(added=added),
        tokenizer_config={},
        generation_config=generation_config,
    )
    metadata = convert(directory, 260, eos_token_id=config)
    notes = tokenizer_notes(directory, {"vocab_size": 260, "eos_token_id": config}, metadata)
    assert len(notes) == bool(lost)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert all(f"{tokens[token_id]!r} ({token_id})" in notes[0] for token_id in lost)
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    ends = {*np.atleast_1d(config or []).tolist(), *np.atleast_1d(generation or []).tolist()}
    assert sorted(end for end in ends if not runner.ends_generation(end)) == lost
    runner.close()


def test_end_of_message_and_fill_in_the_middle_tokens_are_known_by_text(tmp_path: Path) -> None:
    added = [END, {"content": "<|eot_id|>"}, {"content": "<|eom_id|>"}, {"content": "<|fim_prefix|>"}]
    metadata = convert(small(tmp_path, tokenizer=byte_level_json(added=added)), 260)
    assert metadata["tokenizer.ggml.eot_token_id"] == 257
    assert metadata["tokenizer.ggml.eom_token_id"] == 258
    assert metadata["tokenizer.ggml.fim_pre_token_id"] == 259


def template(*items: str) -> dict[str, Any]:
    """A post-processor: "text" is the text, other items are special tokens; "A" has id 32, "<end>" has 256."""
    ids = {"A": 32, "<end>": 256}
    names = [item for item in items if item != "text"]
    return {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}} if item == "text" else {"SpecialToken": {"id": item, "type_id": 0}}
            for item in items
        ],
        "pair": [],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names},
    }


@pytest.mark.parametrize(
    ("post_processor", "tokenizer_config", "add_bos", "add_eos"),
    [
        (None, {}, False, False),
        (template("A", "text"), {}, True, False),
        (template("text", "<end>"), {}, False, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("A", "text")]}, {}, True, False),
        ({"type": "RobertaProcessing", "cls": ["A", 32], "sep": ["<end>", 256]}, {}, True, True),
        (template("A", "text"), {"add_bos_token": False}, False, False),
        (None, {"add_bos_token": True, "add_eos_token": True}, True, True),
        (None, {"tokenizer_class": "LlamaTokenizerFast"}, True, False),
        (template("<end>", "A", "text"), {"add_bos_token": False}, False, False),
    ],
)
def test_what_a_prompt_gets_by_itself(
    tmp_path: Path,
    post_processor: dict[str, Any] | None,
    tokenizer_config: dict[str, Any],
    add_bos: bool,
    add_eos: bool,
) -> None:
    tokenizer = {**byte_level_json(added=[END]), "post_processor": post_processor}
    directory = small(
        tmp_path, tokenizer=tokenizer, tokenizer_config={"bos_token": "A", "eos_token": "<end>", **tokenizer_config}
    )
    metadata = convert(directory, 257)
    assert metadata["tokenizer.ggml.add_bos_token"] is add_bos
    assert metadata["tokenizer.ggml.add_eos_token"] is add_eos


def test_bos_token_that_only_the_template_names(tmp_path: Path) -> None:
    tokenizer = {**byte_level_json(added=[END]), "post_processor": template("A", "text")}
    metadata = convert(small(tmp_path, tokenizer=tokenizer), 257)
    assert metadata["tokenizer.ggml.bos_token_id"] == 32
    assert metadata["tokenizer.ggml.add_bos_token"] is True


# Chat templates.


def test_chat_template_of_tokenizer_config(tmp_path: Path) -> None:
    metadata = convert(small(tmp_path, tokenizer_config={"eos_token": "<end>", "chat_template": "{{ x }}"}), 257)
    assert metadata["tokenizer.chat_template"] == "{{ x }}"
    assert "tokenizer.chat_templates" not in metadata


def test_named_chat_templates(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "d"},
        {"name": "tool_use", "template": "t"},
        {"name": "a-b", "template": "r"},
    ]
    metadata = convert(small(tmp_path, tokenizer_config={"eos_token": "<end>", "chat_template": templates}), 257)
    assert metadata["tokenizer.chat_template"] == "d"
    assert metadata["tokenizer.chat_templates"] == ["a_b", "tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "t"
    assert metadata["tokenizer.chat_template.a_b"] == "r"


def test_chat_template_files_win_over_tokenizer_config(tmp_path: Path) -> None:
    directory = small(tmp_path, tokenizer_config={"eos_token": "<end>", "chat_template": "old"})
    (directory / "chat_template.jinja").write_text("new", encoding="utf-8")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("r", encoding="utf-8")
    metadata = convert(directory, 257)
    assert metadata["tokenizer.chat_template"] == "new"
    assert metadata["tokenizer.chat_templates"] == ["rag"]
    assert metadata["tokenizer.chat_template.rag"] == "r"


# Refused.


def model(**changes: Any) -> dict[str, Any]:
    tokenizer = byte_level_json(["a b"], [END])
    tokenizer["model"] |= changes
    return {"tokenizer": tokenizer}


@pytest.mark.parametrize(
    ("files", "file", "cause"),
    [
        (model(type="WordPiece"), "tokenizer.json", "its model is WordPiece"),
        (model(type="Unigram"), "tokenizer.json", "its model is Unigram"),
        (model(vocab=None), "tokenizer.json", "no vocab object"),
        (model(vocab={"a": 0, "b": "1"}), "tokenizer.json", "token 'b' has the id '1'"),
        (model(vocab={"a": 0, "b": 0}), "tokenizer.json", "two tokens of its vocab have the same id"),
        (model(vocab={"a": 0, "b": 300}, merges=[]), "tokenizer.json", "vocab_size is 258"),
        (model(vocab={"a": 0, "b": 257}, merges=[]), "tokenizer.json", "the added token '<end>'"),
        (
            model(vocab={"a": 0, "<end>": 1}, merges=[]),
            "tokenizer.json",
            "'<end>' stands twice, with the ids 1 and 257",
        ),
        (
            {
                **model(vocab={"a": 0, "<end>": 1}, merges=[]),
                "tokenizer_config": {"eos_token": "<end>", "added_tokens_decoder": {"5": {"content": "<end>"}}},
            },
            "tokenizer.json",
            "'<end>' stands twice, with the ids 1 and 5",
        ),
        (model(merges=["a b", "a c"]), "tokenizer.json", "merge 1 is 'a c'; a part of it or the whole is no token"),
        (model(merges=["a b c"]), "tokenizer.json", "merge 0 is 'a b c'; expected two tokens"),
        (model(merges=[["a"]]), "tokenizer.json", "expected two tokens"),
        (model(end_of_word_suffix="</w>"), "tokenizer.json", "end_of_word_suffix"),
        (model(dropout=0.1), "tokenizer.json", "dropout"),
        ({"added_tokens": {"<x>": 257}}, "tokenizer.json", "added token 257 is '<end>', and '<x>' in another entry"),
        ({"added_tokens": {"<x>": "9"}}, "added_tokens.json", "has no id and content"),
        ({"tokenizer_config": {}}, "config.json", "no eos token"),
        ({"generation_config": {"eos_token_id": [2, 300]}}, "generation_config.json", "beyond vocab_size 258"),
        ({"tokenizer_config": {"eos_token": "<end>", "add_bos_token": True}}, "tokenizer_config.json", "no bos token"),
        ({"tokenizer_config": {"eos_token": "<end>", "chat_template": 7}}, "tokenizer_config.json", "chat_template"),
        ({"tokenizer_config": {"eos_token": "<end>", "chat_template": "\ud800"}}, "", "surrogate"),
    ],
)
def test_refuses_what_is_malformed_or_contradictory(
    tmp_path: Path, files: dict[str, Any], file: str, cause: str
) -> None:
    directory = small(tmp_path, **{**model(), **files})
    with pytest.raises(BitconvError) as error:
        convert(directory, 258)
    assert str(directory / file) in str(error.value)
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_a_template_that_runners_cannot_express(tmp_path: Path) -> None:
    tokenizer = {**byte_level_json(added=[END]), "post_processor": template("<end>", "A", "text")}
    with pytest.raises(BitconvError, match=r"set add_bos_token in tokenizer_config\.json"):
        convert(small(tmp_path, tokenizer=tokenizer), 257)


def test_refuses_a_template_with_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    post_processor = {"type": "RobertaProcessing", "cls": ["A", 300], "sep": ["<end>", 256]}
    tokenizer = {**byte_level_json(added=[END]), "post_processor": post_processor}
    with pytest.raises(BitconvError, match=r"its post_processor .* has ids beyond vocab_size"):
        convert(small(tmp_path, tokenizer=tokenizer), 257)


def test_refuses_a_directory_without_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(BitconvError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        convert(tmp_path, 257)


def test_refuses_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BitconvError, match=r"tokenizer\.json: not valid JSON"):
        convert(tmp_path, 257)
