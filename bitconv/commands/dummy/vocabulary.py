"""Made-up vocabularies of real sizes, as GGUF tokenizer metadata.

Their tokens are all words of one syllable, then of two and so on, so that the parts of every word are tokens too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice, product

import numpy as np

from bitconv.gguf import Metadata
from bitconv.tokenizer.byte_level import BYTE_CHARACTERS
from bitconv.tokenizer.spm import SPACE
from bitconv.tokenizer.vocabulary import TokenType

_SYLLABLES = [consonant + vowel for consonant in "klmnprst" for vowel in "aeiou"]
_PRINTABLE = [SPACE, *map(chr, range(0x21, 0x7F))]


def llama3(size: int, merges: int) -> Metadata:
    """Llama 3's form: byte-level BPE with its pre-tokenizer, and its 256 special tokens at the end."""
    special = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    for token_id, text in (
        (0, "<|begin_of_text|>"),
        (1, "<|end_of_text|>"),
        (6, "<|start_header_id|>"),
        (7, "<|end_header_id|>"),
        (9, "<|eot_id|>"),
    ):
        special.insert(token_id, text)
    return _byte_level("llama-bpe", size, merges, special) | {
        "tokenizer.ggml.bos_token_id": np.uint32(size - 256),
        "tokenizer.ggml.eos_token_id": np.uint32(size - 255),
        "tokenizer.ggml.add_bos_token": True,
    }


def falcon3(size: int, merges: int) -> Metadata:
    """Falcon3's form: byte-level BPE that splits at punctuation and digits; all that is not merged is special."""
    special = ["<|endoftext|>", *(f">>UNUSED_{number}<<" for number in range(size - 256 - merges - 1))]
    return _byte_level("falcon", size, merges, special) | {
        "tokenizer.ggml.eos_token_id": np.uint32(size - len(special)),
        "tokenizer.ggml.add_bos_token": False,
    }


def llama2(size: int) -> Metadata:
    """Llama 2's form with two added tokens: SentencePiece's BPE with byte tokens, single characters at the end."""
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    added = ["<pad>", "<extra_0>"]
    words = list(islice(_words(), size - len(head) - len(_PRINTABLE) - len(added)))
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    types += [TokenType.NORMAL] * (len(words) + len(_PRINTABLE)) + [TokenType.CONTROL] * 2
    scores = np.zeros(size, np.float32)
    scores[len(head) : size - len(added)] = -np.arange(len(words) + len(_PRINTABLE))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*head, *words, *_PRINTABLE, *added],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.padding_token_id": np.uint32(size - len(added)),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _byte_level(pre: str, size: int, merges: int, special: Sequence[str]) -> Metadata:
    """The 256 bytes, words that `merges` merges make, and the special tokens."""
    words = list(islice(_words(), size - 256 - len(special)))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*sorted(BYTE_CHARACTERS), *words, *special],
        "tokenizer.ggml.token_type": np.repeat(
            np.array([TokenType.NORMAL, TokenType.CONTROL], np.int32), [size - len(special), len(special)]
        ),
        "tokenizer.ggml.merges": list(_merges(words, merges)),
        "tokenizer.ggml.add_eos_token": False,
    }


def _words() -> Iterator[str]:
    for syllables in count(1):
        yield from map("".join, product(_SYLLABLES, repeat=syllables))


def _merges(words: Sequence[str], merges: int) -> Iterator[str]:
    """At least one merge a word, and as many of the other ways to make it as are wanted."""
    more = merges - len(words)
    for word in words:
        cuts = range(2, len(word), 2) or (1,)
        taken = min(1 + more, len(cuts))
        more -= taken - 1
        yield from (f"{word[:cut]} {word[cut:]}" for cut in cuts[:taken])
