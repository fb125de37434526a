"""What the tokenizer tests share: small vocabularies, hard texts, and a runner's own tokenizer."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitconv.gguf import Metadata, encode_header
from bitconv.tokenizer import tokenizer_metadata

FIXTURES = Path(__file__).parent.parent / "fixtures"

HARD_TEXTS = (
    "",
    " ",
    "Hello world",
    " leading",
    "trailing  ",
    "  two  spaces\n\n   indent\n\tTab\r\n\r\n  end\n",
    "def f(x):\n    return x**2  # no\n\n\n\tpass\n \n",
    "don't I'M we'Ll they've x's 's 'S can'T",
    "3 33 333 3333 33333 3.14 1,000,000 ٣٤٥ Ⅷ ½ ² x2y",
    "$5+3=8 <a> ^_^ `|~ a.b,c;d:e!f?g(h)i[j]k{l}m !!??...''''``\"\"",
    "naïve café Zürich straße ǅ ﬁ Å",
    "CamelCase camelCASE ABCdef  ABC'S",
    "нещо на Български м",
    "我想在apple工作1314151天\uff5e\uff0c\u3002\uff01 ひらがなカタカナ",
    "한국어 텍스트 ㄱㄴ",
    "مرحبا بالعالم، هذا",
    "हिन्दी भाषा। ไทย កាន់តែពិសេស",
    "🚀 (normal) 😶\u200d🌫️ 🦙🦙",
    "zero\u200bwidth \ufeffbom\u00a0nbsp\u3000wide\u2028line",
    "nul\x00 bell\x07",
)


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def byte_alphabet() -> list[str]:
    """The 256 characters of byte-level BPE, in the order tokenizers' alphabet() sorts them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in [*printable, *range(0x100, 0x100 + 256 - len(printable))]]


def byte_level_json(
    merges: Sequence[Any] = (), added: Sequence[Mapping[str, Any]] = (), **model: Any
) -> dict[str, Any]:
    """A tokenizer.json with a byte-level vocabulary, GPT-2's pre-tokenizer and no post-processor."""
    vocab = {text: token_id for token_id, text in enumerate(byte_alphabet())}
    for merge in merges:
        vocab.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), len(vocab))
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(vocab) + index,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                **token,
            }
            for index, token in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level(use_regex=True),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": list(merges), **model},
    }


def write_json(directory: Path, **files: Any) -> Path:
    """Write each value as the JSON file <name>.json into `directory`."""
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return directory


def convert(directory: Path, vocab_size: int, pre: str | None = None, **config: Any) -> dict[str, Any]:
    return tokenizer_metadata(directory, {"vocab_size": vocab_size, **config}, pre=pre)


class Runner:
    """ik_llama.cpp with a vocabulary-only file of `metadata`."""

    def __init__(self, metadata: Metadata, path: Path) -> None:
        self._api = pytest.importorskip("ik_llama_cpp._ctypes_api")
        sizes = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
        path.write_bytes(
            encode_header(
                {
                    "general.architecture": "llama",
                    **{f"llama.{size}": np.uint32(64) for size in sizes},
                    "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
                    **metadata,
                },
                [],
            )
        )
        parameters = self._api.llama_model_default_params()
        parameters.vocab_only = True
        self._model = self._api.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, "the runner refused the vocabulary"

    def close(self) -> None:
        self._api.llama_free_model(self._model)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode("utf-8")
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._api.llama_tokenize(self._model, data, len(data), ids, len(ids), add_special, parse_special)
        return ids[:count]

    def ends_generation(self, token_id: int) -> bool:
        return bool(self._api.llama_token_is_eog(self._model, token_id))
