"""Byte-level BPE (tokenizer.json): llama.cpp's model "gpt2"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitconv.system.errors import BitconvError, Code
from bitconv.tokenizer.bpe import BPE, read_bpe
from bitconv.tokenizer.files import TokenizerFiles, steps
from bitconv.tokenizer.pretokenizers import check_name, recognise
from bitconv.tokenizer.spm import BYTE_PIECES
from bitconv.tokenizer.vocabulary import TokenType, Vocabulary, added_type, assemble

# The characters that stand for bytes: printable Latin-1 for itself, the other 68 bytes from U+0100 on.
BYTE_CHARACTERS = frozenset(map(chr, [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100 + 68)]))


_SPACE = "\u0120"  # stands for the byte 0x20


def byte_level_vocabulary(files: TokenizerFiles, json: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """Tokens in the byte alphabet, merges, and the pre-tokenizer's name: `pre`, or else the recognised one."""
    path = files.json_path
    bpe = read_bpe(path, json)
    if pre is None:
        cleans = bool(files.tokenizer_config.get("clean_up_tokenization_spaces", False))
        name = recognise(path, json, ignore_merges=bpe.ignore_merges, cleans=cleans)
    else:
        name = check_name(pre)
    tokens, types = assemble(path, files.vocab_size, *_entries(files, bpe))
    return Vocabulary("gpt2", tokens, types, {"tokenizer.ggml.pre": name, "tokenizer.ggml.merges": bpe.spaced()})


def refuse_rebuilt(path: Path, json: Mapping[str, Any]) -> None:
    """Refuse a byte-level vocabulary under another pre-tokenizer than its own.

    transformers 5 runs what config files call LlamaTokenizer with SentencePiece's steps, whatever the vocabulary is,
    and saves them. No text is split any more as the model learnt, and nothing tells which steps there were.
    """
    model = json.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or _SPACE not in vocab or not BYTE_PIECES.isdisjoint(vocab):
        return
    kinds = [str(step.get("type")) for step in steps(json.get("pre_tokenizer"), "pretokenizers")]
    raise BitconvError(
        f"its vocabulary is byte-level, its pre-tokenizer {' and '.join(kinds) or 'none'}; transformers 5 saves that "
        "for a tokenizer_class LlamaTokenizer, and texts are not split any more as the model learnt",
        code=Code.TOKENIZER,
        file=path,
        way_out="restore tokenizer.json and tokenizer_config.json from the model's original release",
    )


def _entries(files: TokenizerFiles, bpe: BPE) -> tuple[dict[int, str], dict[int, TokenType]]:
    """Texts by id, and the types of those that are no normal ones."""
    texts, types = dict(zip(bpe.vocab.values(), bpe.vocab, strict=True)), dict[int, TokenType]()
    for token_id, added in files.added.items():
        text = texts.get(token_id, added.content)
        if added.content != text:
            raise BitconvError(
                f"id {token_id} is {text!r} and the added token {added.content!r}",
                code=Code.TOKENIZER,
                file=files.json_path,
            )
        # Falcon3 lists the line break as an added token in the byte alphabet. The text never holds that spelling,
        # so it is a token like any other, for BPE to make.
        spelled = not added.content.isascii() and BYTE_CHARACTERS.issuperset(added.content)
        if not (spelled and bpe.vocab.get(added.content) == token_id):
            types[token_id] = added_type(added)
        texts[token_id] = added.content
    return texts, types
