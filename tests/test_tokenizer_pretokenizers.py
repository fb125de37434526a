"""The structure of a byte-level tokenizer.json -> tokenizer.ggml.pre, and that a runner then splits text alike.

Each structure is written here as the models' tokenizer.json files have it. A vocabulary is trained with it, so that
its merges stop where the structure splits, and a runner given the recognised name must find the same tokens.
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import bitconv
import pytest
from bitconv.system.errors import BitconvError

import real_runners
from synthetic import make_checkpoint
from tokenizer_support import FIXTURES, HARD_TEXTS, Runner, byte_level, byte_level_json, convert, write_json

tokenizers = pytest.importorskip("tokenizers")


def split(regex: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def digits(*, individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
BYTES = byte_level(use_regex=False)
GPT2 = byte_level(use_regex=True)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
JAIS2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
# Here the line breaks are characters in the JSON, not escapes of the regular expression.
SEED_CODER = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+"
    "|\\s+(?!\\S)|\\s+"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The beginning of DeepSeek's list of all cased letters is enough for the texts here.
CASED_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0400-\u0481\ufb00-\ufb06]+"
)
DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

# (recognised name, steps, ignore_merges, clean_up_tokenization_spaces)
STRUCTURES = [
    ("gpt-2", [GPT2], False, True),  # GPT-2, GPT-NeoX, OLMo, MPT, Phi-2
    ("starcoder", [digits(individual=True), GPT2], False, True),  # StarCoder, Refact
    ("smollm", [digits(individual=True), GPT2], False, False),  # SmolLM, Command R
    ("falcon", [PUNCTUATION, GPT2, digits(individual=False), split("[0-9][0-9][0-9]")], False, True),
    ("falcon", [PUNCTUATION, GPT2, digits(individual=True)], False, True),  # Falcon3, Falcon-E
    ("falcon", [PUNCTUATION, GPT2, split("[0-9]")], False, True),
    ("llama-bpe", [split(LLAMA3), BYTES], True, True),  # Llama 3, bitnet-b1.58-2B-4T
    ("llama-bpe", [{"type": "Sequence", "pretokenizers": [split(LLAMA3, "Removed", invert=True), BYTES]}], True, False),
    ("dbrx", [split(LLAMA3, "Removed", invert=True), BYTES], False, False),
    ("qwen2", [split(QWEN2), BYTES], False, False),  # Qwen2, Qwen3
    ("stablelm2", [split(QWEN2), BYTES], False, True),
    (
        "deepseek-llm",
        [
            *map(split, ("[\r\n]", CASED_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", CJK)),
            digits(individual=True),
            BYTES,
        ],
        False,
        False,
    ),
    (
        "deepseek-coder",
        [*map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK)), digits(individual=True), BYTES],
        False,
        False,
    ),
    ("bloom", [split(BLOOM), BYTES], False, True),
    ("poro-chat", [split(BLOOM), BYTES], False, False),
    ("viking", [split(BLOOM), digits(individual=True), BYTES], False, False),
    ("tekken", [split(TEKKEN), BYTES], True, False),  # Mistral-Nemo
    ("gpt-4o", [split(GPT4O), BYTES], False, False),
    (
        "deepseek-v3",
        [*map(split, (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3)), BYTES],
        False,
        False,
    ),
    ("qwen35", [split(QWEN35), BYTES], False, False),
    ("jais-2", [split(JAIS2), BYTES], False, True),
    ("seed-coder", [split(SEED_CODER), BYTES], False, False),
    ("bailingmoe", [split(BAILING), BYTES], False, False),
    ("exaone-moe", [split(EXAONE_MOE), BYTES], False, True),
]


def has_marks_or_cased_beyond_ascii(text: str) -> bool:
    return any(
        unicodedata.category(c).startswith("M") or (not c.isascii() and unicodedata.category(c) in ("Lu", "Ll", "Lt"))
        for c in text
    )


# Texts that the runner's own regular expressions get wrong: those of tekken and gpt-4o in every runner, that of
# deepseek-v3 in ik_llama.cpp.
WRONG_IN_RUNNER = {
    "tekken": has_marks_or_cased_beyond_ascii,
    "gpt-4o": has_marks_or_cased_beyond_ascii,
    "deepseek-v3": lambda text: "~" in text,
}


def texts() -> list[str]:
    """The hard texts, and texts in which their characters meet at random."""
    generator = random.Random(58)
    joined = "".join(HARD_TEXTS)
    ascii_characters = [*filter(str.isascii, joined), *"    \n\n\t'sStTdDlL019.,!? "]
    random_texts = [
        "".join(generator.choices(characters, k=24))
        for characters in (ascii_characters, [*joined, *ascii_characters, "\u0301"])
        for _ in range(100)
    ]
    return [*HARD_TEXTS, *random_texts]


def directory_with(path: Path, steps: list[dict[str, Any]], ignore_merges: bool, cleans: bool) -> Path:
    tokenizer = byte_level_json(added=[{"content": "<end>"}], ignore_merges=ignore_merges)
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    settings = {"eos_token": "<end>", "clean_up_tokenization_spaces": cleans}
    return write_json(path, tokenizer=tokenizer, tokenizer_config=settings)


def train(directory: Path, samples: list[str]) -> Any:
    """A tokenizer of 1000 tokens with the structure in the directory, which it is saved to."""
    structure = json.loads((directory / "tokenizer.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**structure, "added_tokens": []}))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(FIXTURES / "eval.txt").read_text(encoding="utf-8"), *samples * 3], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


@pytest.mark.runners
@pytest.mark.parametrize(("name", "steps", "ignore_merges", "cleans"), STRUCTURES)
def test_runner_splits_as_the_structure_does(
    name: str, steps: list[dict[str, Any]], ignore_merges: bool, cleans: bool, tmp_path: Path
) -> None:
    directory = directory_with(tmp_path, steps, ignore_merges, cleans)
    samples = texts()
    tokenizer = train(directory, samples)
    metadata = convert(directory, 1000)
    assert metadata["tokenizer.ggml.pre"] == name
    runner = Runner(metadata, tmp_path / "vocab.gguf")
    wrong = WRONG_IN_RUNNER.get(name, lambda _: False)
    right = [text for text in samples if not wrong(text)]
    assert len(right) > 90
    assert [text for text in right if runner.tokenize(text) != tokenizer.encode(text).ids] == []
    runner.close()


FALCONS = [[PUNCTUATION, GPT2, digits(individual=True)], [PUNCTUATION, GPT2, split("[0-9]")]]


@pytest.mark.runners
@pytest.mark.parametrize("steps", FALCONS, ids=["Falcon3", "Falcon-E"])
def test_the_names_of_bitnet_cpp_for_the_falcons_are_wrong_elsewhere(
    steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Why the name is falcon: ik_llama.cpp reads falcon3 as llama-bpe, and does not load falcon_e."""
    directory = directory_with(tmp_path, steps, False, True)
    samples = texts()
    tokenizer = train(directory, samples)
    runner = Runner(convert(directory, 1000, pre="falcon3"), tmp_path / "vocab.gguf")
    wrong = [text for text in samples if runner.tokenize(text) != tokenizer.encode(text).ids]
    assert len(wrong) > 10
    runner.close()
    with pytest.raises(AssertionError, match="the runner refused the vocabulary"):
        Runner(convert(directory, 1000, pre="falcon_e"), tmp_path / "vocab.gguf")


@pytest.mark.runners
@pytest.mark.parametrize("steps", FALCONS, ids=["Falcon3", "Falcon-E"])
def test_llama_cpp_splits_as_the_falcons_do(
    steps: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And llama.cpp, of which the wheel runs whole models only, does the same with each of the three names."""
    pytest.importorskip("xllamacpp")
    model = make_checkpoint(tmp_path / "model", "llama", layers=1, vocab=1000)
    directory_with(model.path, steps, False, True)
    (model.path / "generation_config.json").unlink()
    text = "\n".join(HARD_TEXTS).replace("\r", "").replace("\0", "")
    (tmp_path / "hard.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(real_runners, "TEXT", tmp_path / "hard.txt")
    expected = train(model.path, texts()).encode(text).ids

    def tokens(pre: str | None) -> list[int]:
        file = tmp_path / f"{pre}.gguf"
        bitconv.convert(model.path, file, type="f16", pre=pre)
        return real_runners.llama_cpp(file, [0]).tokens.tolist()

    assert tokens(None) == expected
    assert tokens("falcon3") != expected
    with pytest.raises(real_runners.RunnerError):
        tokens("falcon_e")


def test_nfc_is_accepted(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, [split(QWEN2), BYTES], False, False)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    write_json(directory, tokenizer={**tokenizer, "normalizer": {"type": "NFC"}})
    assert convert(directory, 257)["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "cause"),
    [
        ([split(r"\w+"), BYTES], False, r"splits by \w+ (ignore_merges false); name the nearest with pre='NAME'"),
        ([split(r"\d"), GPT2], False, r"splits by \d then 's|'t"),
        ([split(QWEN2), BYTES], True, "(ignore_merges true)"),
        ([split(LLAMA3, "MergedWithNext"), BYTES], True, "<MergedWithNext>"),
        ([split(r"\p{N}", "Removed", invert=True), GPT2], False, "<Removed>"),
        ([{"type": "Punctuation", "behavior": "Isolated"}, GPT2], False, "<Punctuation>"),
        ([{"type": "Whitespace"}, BYTES], False, "<Whitespace>"),
        ([{"type": "Split", "pattern": {"Regex": 5}}, BYTES], False, "<Split>"),
        ([{"type": "Split", "pattern": {"String": ["a"]}}, BYTES], False, "<Split>"),
        ([GPT2, digits(individual=True)], False, r"then <ByteLevel> then \p{N}"),
        ([{**GPT2, "add_prefix_space": True}], False, "adds a space before the text"),
    ],
)
def test_structure_without_a_name_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], ignore_merges: bool, cause: str
) -> None:
    directory = directory_with(tmp_path, steps, ignore_merges, True)
    with pytest.raises(BitconvError) as error:
        convert(directory, 257)
    assert str(error.value).startswith(str(directory / "tokenizer.json"))
    assert cause in str(error.value)


def test_normalizer_is_refused(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, [GPT2], False, True)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    write_json(directory, tokenizer={**tokenizer, "normalizer": normalizer})
    with pytest.raises(BitconvError, match="the normalizer Lowercase changes text"):
        convert(directory, 257)


def test_pre_overrules_the_structure(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, [split(r"\w+"), BYTES], False, True)
    assert convert(directory, 257, pre="falcon3")["tokenizer.ggml.pre"] == "falcon3"
    with pytest.raises(BitconvError, match=r"pre='falcon4': .* it has a\.x-4\.0, .*qwen2"):
        convert(directory, 257, pre="falcon4")
