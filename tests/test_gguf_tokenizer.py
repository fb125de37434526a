"""The tokenizer that runs from a file's metadata: the checkpoint's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitconv.gguf import MalformedGGUF
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.system.json_files import read_json
from bitconv.tokenizer import tokenizer_metadata
from bitconv.tokenizer.vocabulary import TokenType
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from conftest import FIXTURES
from tokenizer_support import HARD_TEXTS, Runner

LLAMA = FIXTURES / "Llama3-1.58-tiny"
ONEBITLLM = FIXTURES / "bitnet_b1_58-tiny"
EVAL = (FIXTURES / "eval.txt").read_text(encoding="utf-8")
SPECIAL_TEXTS = ("<|begin_of_text|>a<|eot_id|>  b<|eot_id|>", "<s>a</s> b <unk>")


def metadata_of(model: Path) -> dict[str, object]:
    return tokenizer_metadata(model, read_json(model / "config.json"))


def test_a_byte_level_tokenizer_is_the_checkpoint_s() -> None:
    own = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))
    rebuilt = load_tokenizer(metadata_of(LLAMA), LLAMA)
    for text in (*HARD_TEXTS, *SPECIAL_TEXTS, EVAL):
        ids = own.encode(text).ids
        assert rebuilt.encode(text).ids == ids
        assert rebuilt.decode(ids) == own.decode(ids)


def test_a_sentencepiece_tokenizer_is_the_checkpoint_s() -> None:
    own = SentencePieceProcessor(model_file=str(ONEBITLLM / "tokenizer.model"))
    rebuilt = load_tokenizer(metadata_of(ONEBITLLM), ONEBITLLM)
    for text in (*HARD_TEXTS, EVAL):
        assert rebuilt.encode(text).ids == [own.bos_id(), *own.encode(text)]
        assert rebuilt.encode(text, add_special_tokens=False).ids == own.encode(text)


@pytest.mark.runners
@pytest.mark.parametrize("model", [LLAMA, ONEBITLLM], ids=lambda model: model.name)
def test_special_tokens_in_a_text_are_found_as_a_runner_finds_them(tmp_path: Path, model: Path) -> None:
    metadata = metadata_of(model)
    rebuilt = load_tokenizer(metadata, model)
    runner = Runner(metadata, tmp_path / "vocabulary.gguf")
    for text in (*SPECIAL_TEXTS, *HARD_TEXTS):
        if "\x00" not in text:
            assert rebuilt.encode(text).ids == runner.tokenize(text, add_special=True)
    runner.close()


@pytest.mark.runners
def test_user_defined_tokens_of_spaces_are_found_as_a_runner_finds_them(tmp_path: Path) -> None:
    metadata = metadata_of(ONEBITLLM)
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), np.array(metadata["tokenizer.ggml.token_type"])
    tokens[-2:], types[-2:] = ["   ", "two words"], TokenType.USER_DEFINED
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    rebuilt = load_tokenizer(metadata, ONEBITLLM)
    runner = Runner(metadata, tmp_path / "vocabulary.gguf")
    for text in ("a   b", "a \u2581\u2581\u2581 b", "of two words", "two\u2581words", "   ", *HARD_TEXTS):
        if "\x00" not in text:
            assert rebuilt.encode(text).ids == runner.tokenize(text, add_special=True)
    runner.close()


@pytest.mark.parametrize("model", [LLAMA, ONEBITLLM], ids=lambda model: model.name)
def test_the_metadata_says_what_is_put_around_a_prompt(model: Path) -> None:
    metadata = metadata_of(model)
    bos, eos = (int(metadata[f"tokenizer.ggml.{role}_token_id"]) for role in ("bos", "eos"))
    for adds_bos, adds_eos, before, after in ((True, True, [bos], [eos]), (False, False, [], [])):
        flags = {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.ggml.add_eos_token": adds_eos}
        tokenizer = load_tokenizer(metadata | flags, model)
        alone = tokenizer.encode("Hello", add_special_tokens=False).ids
        assert tokenizer.encode("Hello").ids == [*before, *alone, *after]


def test_a_space_is_put_in_front_where_the_metadata_says_so() -> None:
    metadata = metadata_of(ONEBITLLM)
    without = load_tokenizer(metadata | {"tokenizer.ggml.add_space_prefix": False}, ONEBITLLM)
    assert without.encode(" the").ids == load_tokenizer(metadata, ONEBITLLM).encode("the").ids
    assert without.encode("the").ids != without.encode(" the").ids


@pytest.mark.parametrize("merge", ["nospace", "x nosuchtoken"])
def test_a_merge_that_is_none_names_the_file(merge: str) -> None:
    metadata = metadata_of(LLAMA)
    merges = [merge, *metadata["tokenizer.ggml.merges"][1:]]
    with pytest.raises(MalformedGGUF, match=r"Llama3-1\.58-tiny: its tokenizer cannot be built: "):
        load_tokenizer(metadata | {"tokenizer.ggml.merges": merges}, LLAMA)


def test_sentencepiece_tokens_merge_by_their_scores() -> None:
    metadata = metadata_of(ONEBITLLM)
    scores = np.array(metadata["tokenizer.ggml.scores"])
    changed = load_tokenizer(metadata | {"tokenizer.ggml.scores": -scores}, ONEBITLLM)
    assert changed.encode(EVAL).ids != load_tokenizer(metadata, ONEBITLLM).encode(EVAL).ids
