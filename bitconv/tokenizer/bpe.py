"""The BPE model of a tokenizer.json: vocabulary and merges, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitconv._kernels import faulty_merge
from bitconv.system.errors import BitconvError, Code


@dataclass(frozen=True)
class BPE:
    """vocab: text -> id. merges: "left right" strings or [left, right] pairs, the first merges first."""

    path: Path
    vocab: dict[str, int]
    merges: list[Any]
    unk_token: str | None
    byte_fallback: bool
    ignore_merges: bool

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The merges in order. Raises BitconvError for one that names a token the vocabulary lacks."""
        vocab = self.vocab
        for rank, merge in enumerate(self.merges):
            try:
                left, right = merge.split(" ") if isinstance(merge, str) else merge
                known = left in vocab and right in vocab and left + right in vocab
            except (TypeError, ValueError):
                raise BitconvError(
                    f"merge {rank} is {merge!r}; expected two tokens", code=Code.TOKENIZER, file=self.path
                ) from None
            if not known:
                raise BitconvError(
                    f"merge {rank} is {merge!r}; a part of it or the whole is no token",
                    code=Code.TOKENIZER,
                    file=self.path,
                )
            yield left, right

    def spaced(self) -> list[str]:
        """The merges in order as "left right", without those of a token with a space in it.

        Those never apply in the byte alphabet, which has no space, and would be read as other ones. Raises BitconvError
        as `pairs` does.
        """
        # All merges are checked at once. It says of none why it is not like the others: pairs() does.
        with suppress(TypeError, UnicodeEncodeError):
            merges = self.merges
            if set(map(type, merges)) == {list} and set(map(len, merges)) == {2}:
                merges = list(map(" ".join, merges))
            # Without an empty token each merge that is not faulty has a space, and so none has two.
            plain = "" not in self.vocab and "".join(merges).count(" ") == len(merges)
            if plain and faulty_merge(list(self.vocab), merges) < 0:
                return merges
        return [f"{left} {right}" for left, right in self.pairs() if " " not in left and " " not in right]


def read_bpe(path: Path, json: Mapping[str, Any]) -> BPE:
    """The model of the parsed tokenizer.json `json`. Raises BitconvError unless it is plain BPE."""
    model = json.get("model")
    if not isinstance(model, dict):
        raise BitconvError("has no model", code=Code.TOKENIZER, file=path)
    # Files of before 2020 name no type; only BPE has merges.
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise BitconvError(
            f"its model is {kind}; only BPE vocabularies can be converted", code=Code.TOKENIZER_UNSUPPORTED, file=path
        )
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise BitconvError("its BPE model has no vocab object and merges list", code=Code.TOKENIZER, file=path)
    for text, token_id in vocab.items():
        if not isinstance(token_id, int) or token_id < 0:
            raise BitconvError(f"token {text!r} has the id {token_id!r}", code=Code.TOKENIZER, file=path)
    if len(set(vocab.values())) < len(vocab):
        raise BitconvError("two tokens of its vocab have the same id", code=Code.TOKENIZER, file=path)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise BitconvError(
                f"{key} is {model[key]!r}; llama.cpp's BPE cannot express it",
                code=Code.TOKENIZER_UNSUPPORTED,
                file=path,
            )
    unk_token = model.get("unk_token")
    return BPE(
        path,
        vocab,
        merges,
        unk_token if isinstance(unk_token, str) else None,
        bool(model.get("byte_fallback", False)),
        bool(model.get("ignore_merges", False)),
    )
