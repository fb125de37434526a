"""SentencePiece-like BPE from a tokenizer.json (byte fallback, spaces as U+2581): llama.cpp's model "llama".

llama.cpp's SPM tokenizer has no list of merges: any two neighbours that make a token may merge, those that make
the highest-scored token first. With minus the rank of a token's merge as its score this is what the merges do,
provided that they hold every way to make the token and that no other token's merges stand between them. Merges
that were derived from a SentencePiece model do; it is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.bpe import BPE, read_bpe
from bitconv.tokenizer.files import TokenizerFiles, steps
from bitconv.tokenizer.spm import BYTE_PIECES, SPACE, Piece, space_in_front, spm_vocabulary
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary


def spm_json_vocabulary(files: TokenizerFiles, json: Mapping[str, Any]) -> Vocabulary:
    """Tokens and scores of the parsed tokenizer.json. Raises BitconvError for what SPM cannot express."""
    bpe = read_bpe(files.json_path, json)
    if not bpe.byte_fallback:
        raise BitconvError(
            "neither byte-level nor with byte_fallback; llama.cpp has no such BPE",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=bpe.path,
        )
    stated = adds_space_prefix(bpe, json)
    add_space_prefix = space_in_front(files, stated, default=stated)
    special = {bpe.unk_token, *BYTE_PIECES, *(token.content for token in files.added.values())}
    scores = _scores(bpe, [text for text in bpe.vocab if text not in special])
    pieces = {
        token_id: Piece(text, scores.get(text, 0.0), _type(text, bpe.unk_token)) for text, token_id in bpe.vocab.items()
    }
    return spm_vocabulary(files, bpe.path, pieces, add_space_prefix=add_space_prefix)


def _type(text: str, unk_token: str | None) -> TokenType:
    if text == unk_token:
        return TokenType.UNKNOWN
    return TokenType.BYTE if text in BYTE_PIECES else TokenType.NORMAL


def _scores(bpe: BPE, texts: Collection[str]) -> dict[str, float]:
    """The score of each token that merges make. texts: the tokens that stand for text."""
    scores: dict[str, float] = {}
    pairs = list(bpe.pairs())
    last = None
    for rank, (left, right) in enumerate(pairs):
        token = left + right
        if token in scores and token != last:
            raise BitconvError(
                f"other merges stand between those that make {token!r}; SPM scores cannot say so",
                code=Code.TOKENIZER_UNSUPPORTED,
                file=bpe.path,
            )
        scores.setdefault(token, -float(rank))
        last = token

    def occurs(part: str) -> bool:
        return len(part) == 1 or part in scores

    merges = Counter(left + right for left, right in pairs if occurs(left) and occurs(right))
    for text in texts:
        if merges[text] != sum(occurs(text[:i]) and occurs(text[i:]) for i in range(1, len(text))):
            raise BitconvError(
                f"the merges lack a way to make {text!r} that SPM would take",
                code=Code.TOKENIZER_UNSUPPORTED,
                file=bpe.path,
                way_out="use the tokenizer.model that this file was made from",
            )
    return scores


def adds_space_prefix(bpe: BPE, json: Mapping[str, Any]) -> bool:
    """Whether a space is put in front. Raises BitconvError unless spaces become U+2581 and nothing else changes."""
    prefixes = replacements = 0
    for step in [*steps(json.get("normalizer"), "normalizers"), *steps(json.get("pre_tokenizer"), "pretokenizers")]:
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prefixes += 1
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                replacements += 1
            case {"type": "Metaspace", "replacement": "\u2581"}:
                replacements += 1
                prefixes += step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
                if step.get("split", True) and any(SPACE in text[1:] for text in bpe.vocab):
                    raise BitconvError(
                        "Metaspace splits at spaces, and llama.cpp's SPM tokenizer does not",
                        code=Code.TOKENIZER_UNSUPPORTED,
                        file=bpe.path,
                    )
            case _:
                raise BitconvError(
                    f"{step.get('type')} is a step that llama.cpp's SPM tokenizer does not have",
                    code=Code.TOKENIZER_UNSUPPORTED,
                    file=bpe.path,
                )
    if replacements != 1 or prefixes > 1:
        raise BitconvError(
            f"spaces are replaced {replacements} times and put in front {prefixes} times; llama.cpp's "
            "SPM tokenizer replaces them once",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=bpe.path,
        )
    return prefixes == 1
