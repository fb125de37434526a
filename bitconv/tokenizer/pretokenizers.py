"""The pre-tokenizer of a byte-level tokenizer.json: its structure, recognised as a tokenizer.ggml.pre name.

A runner knows a pre-tokenizer by its name only and has the regular expressions compiled in. The structure in
tokenizer.json is reduced to what runners have, regular expressions that split the text one after another, and
looked up in a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitconv.system.errors import BitconvError, Code, option
from bitconv.tokenizer.files import steps


class PreTokenizer(NamedTuple):
    """A name and what a runner does when it reads it (llama.cpp src/llama-vocab.cpp, 2026-11).

    splits: regular expressions in the spelling of tokenizer.json, each applied to the pieces of the one before;
    matches and gaps are pieces.
    ignore_merges: a piece that is a token as a whole is not merged. cleans: detokenizing removes the space before
    punctuation (clean_up_tokenization_spaces).
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    cleans: bool = True


# Marks where ByteLevel maps bytes to characters, if splits follow: those see the mapped text.
_BYTES = "<ByteLevel>"
_PUNCTUATION = "<Punctuation>"
_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_JAIS2 = _LLAMA3.replace(
    r"\s+(?!\S)|\s+", "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
)
_SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_TEKKEN = (
    rf"{_CASED % ('*', '+')}|{_CASED % ('+', '*')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"{_CASED % ('*', '+')}{_CONTRACTION}|{_CASED % ('+', '*')}{_CONTRACTION}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CASED_LETTERS = r"\s?[A-Za-z<cased letters>]+"
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Where several names mean the same to a runner, the one the oldest runners know stands here: gpt-2 for olmo, mpt,
# phi-2 and jais; starcoder and smollm for refact, command-r, codeshell and exaone; dbrx for smaug-bpe; qwen2 for
# grok-2 and hunyuan; gpt-4o for llama4.
# Up to tekken, every name is known to bitnet.cpp since October 2024, ik_llama.cpp and llama.cpp; those after it
# to llama.cpp and ik_llama.cpp of 2026 only.
PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("starcoder", (_DIGIT, _GPT2)),
    PreTokenizer("smollm", (_DIGIT, _GPT2), cleans=False),
    PreTokenizer("falcon", (_PUNCTUATION, _GPT2, _BYTES, r"\p{N}+", "[0-9][0-9][0-9]")),
    # Falcon3 and Falcon-E. bitnet.cpp (2025 to May 2026) has falcon3 and falcon_e for exactly this, and its converter
    # writes them. No other runner knows falcon_e: bitnet.cpp itself refuses to load it from July 2026 on (its issue
    # 622), as do llama.cpp and ik_llama.cpp. There falcon3 means llama-bpe, which parts a line break from the indent
    # after it. falcon means the same to every runner and splits right. It takes digits by threes, which changes
    # nothing: a vocabulary trained on single digits has no merge of two.
    PreTokenizer("falcon", (_PUNCTUATION, _GPT2, _BYTES, _DIGIT)),
    PreTokenizer("falcon", (_PUNCTUATION, _GPT2, _BYTES, "[0-9]")),
    PreTokenizer("llama-bpe", (_LLAMA3,), ignore_merges=True),
    PreTokenizer("dbrx", (_LLAMA3,)),
    PreTokenizer("qwen2", (_QWEN2,), cleans=False),
    PreTokenizer("stablelm2", (_QWEN2,)),
    PreTokenizer(
        "deepseek-llm",
        (r"[\r\n]", _CASED_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _CJK, _DIGIT),
        cleans=False,
    ),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT), cleans=False),
    PreTokenizer("bloom", (_BLOOM,)),
    PreTokenizer("poro-chat", (_BLOOM,), cleans=False),
    PreTokenizer("viking", (_BLOOM, _DIGIT), cleans=False),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True, cleans=False),
    PreTokenizer("gpt-4o", (_GPT4O,), cleans=False),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", _CJK_KANA, _DEEPSEEK3), cleans=False),
    PreTokenizer("qwen35", (_QWEN35,), cleans=False),
    PreTokenizer("jais-2", (_JAIS2,)),
    PreTokenizer("seed-coder", (_SEED_CODER,), cleans=False),
    PreTokenizer("bailingmoe", (_BAILING,), cleans=False),
    PreTokenizer("exaone-moe", (_EXAONE_MOE,)),
)

# Every byte-level name of llama.cpp (2026-11), and falcon_e of bitnet.cpp (May 2025 to May 2026).
_KNOWN_NAMES = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
    falcon-h1 falcon3 falcon_e gigachat glm4 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-97m grok-2
    hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es
    jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez
    mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35
    refact roberta-bpe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken
    tiny_aya trillion ufakzeka viking youtu
"""


def is_byte_level(json: Mapping[str, Any]) -> bool:
    """Whether the parsed tokenizer.json maps bytes to characters before BPE."""
    return any(step.get("type") == "ByteLevel" for step in steps(json.get("pre_tokenizer"), "pretokenizers"))


def recognise(path: Path, json: Mapping[str, Any], *, ignore_merges: bool, cleans: bool) -> str:
    """The tokenizer.ggml.pre name of the parsed tokenizer.json `json`, a byte-level one.

    NFC normalization is accepted, although no runner normalizes: text that is not in NFC, which is rare, is
    tokenized differently. Raises BitconvError for a structure without a name, and for one no runner can express.
    """
    for step in steps(json.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":
            raise BitconvError(
                f"the normalizer {step.get('type')} changes text; llama.cpp's byte-level BPE has none",
                code=Code.TOKENIZER_UNSUPPORTED,
                file=path,
            )
    splits = tuple(_splits(path, json))
    matches = [row for row in PRE_TOKENIZERS if row.splits == splits and row.ignore_merges == ignore_merges]
    if not matches:
        raise BitconvError(
            f"no runner has a pre-tokenizer that splits by {' then '.join(splits) or 'nothing'} "
            f"(ignore_merges {str(ignore_merges).lower()})",
            code=Code.TOKENIZER_UNSUPPORTED,
            file=path,
            way_out=f"name the nearest with {option('pre', 'NAME')}",
        )
    return next((row.name for row in matches if row.cleans == cleans), matches[0].name)


def is_known(name: str) -> bool:
    """Whether a runner has a byte-level pre-tokenizer of this name."""
    return name in _KNOWN_NAMES.split()


def check_name(name: str) -> str:
    """`name`, if llama.cpp knows it. Raises BitconvError otherwise."""
    if not is_known(name):
        raise BitconvError(
            f"{option('pre', name)}: llama.cpp has no such pre-tokenizer; it has {', '.join(_KNOWN_NAMES.split())}",
            code=Code.USAGE,
        )
    return name


def _splits(path: Path, json: Mapping[str, Any]) -> Iterator[str]:
    """The splits of the pre-tokenizer in the form of PreTokenizer.splits; one without that form as <its JSON type>."""
    chain = list(steps(json.get("pre_tokenizer"), "pretokenizers"))
    for step in chain:
        kind = step.get("type")
        if kind == "Split":
            yield _split(step)
        elif kind == "Digits":
            yield _DIGIT if step.get("individual_digits") else rf"{_DIGIT}+"
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            yield _PUNCTUATION
        elif kind == "ByteLevel":
            if step.get("add_prefix_space", True):
                raise BitconvError(
                    "ByteLevel adds a space before the text; llama.cpp's byte-level BPE cannot",
                    code=Code.TOKENIZER_UNSUPPORTED,
                    file=path,
                )
            if step.get("use_regex", True):
                yield _GPT2
            if step is not chain[-1]:
                yield _BYTES
        else:
            yield f"<{kind}>"


def _split(step: Mapping[str, Any]) -> str:
    """The regular expression of a Split step."""
    pattern = step.get("pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    # Line breaks are in some files as characters, in others as escapes.
    text = pattern.get("Regex", pattern.get("String", ""))
    if not isinstance(text, str):
        return f"<{step.get('type')}>"
    regex = text if "Regex" in pattern else re.escape(text)
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    # DeepSeek spells out every cased letter of Unicode.
    regex = re.sub(r"^\\s\?\[A-Za-z[^\x00-\x7f][^\x00-,.-\x7f]*\]\+$", lambda _: _CASED_LETTERS, regex)
    behavior = step.get("behavior")
    # Removed and inverted keeps the matches, and an expression that ends in |\s+ leaves nothing between them.
    if behavior == "Isolated" or (behavior == "Removed" and step.get("invert") and regex.endswith(r"|\s+")):
        return regex
    return f"<{behavior}> {regex}"
