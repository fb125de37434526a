"""The native passes over the strings of vocabularies, and what is checked by them all at once."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from bitconv import _kernels
from bitconv.gguf import MalformedGGUF, encode_header, read_gguf
from bitconv.gguf.reader import _READ_AHEAD
from bitconv.system.errors import BitconvError
from bitconv.tokenizer.bpe import BPE
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8)


def encoded(strings: list[str]) -> bytes:
    return b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in strings)


@given(TEXTS, st.integers(0, 9))
def test_encodes_and_decodes_as_gguf_has_strings(strings: list[str], count: int) -> None:
    data = _kernels.encode_strings(strings)
    assert data == encoded(strings)
    wanted = strings[:count]
    assert _kernels.decode_strings(b"ab" + data, 2, count) == (wanted, 2 + len(encoded(wanted)))


@pytest.mark.parametrize(
    "rest", [b"", b"\1", encoded(["abc"])[:-1], struct.pack("<Q", 1) + b"\xff", struct.pack("<Q", 2**64 - 1) + b"abc"]
)
def test_decodes_up_to_what_is_cut_off_or_not_utf8(rest: bytes) -> None:
    data = encoded(["a", "bé"])
    assert _kernels.decode_strings(data + rest, 0, 9) == (["a", "bé"], len(data))
    assert _kernels.decode_strings(data, len(data) + 1, 9) == ([], len(data) + 1)


def test_encodes_no_surrogate() -> None:
    with pytest.raises(UnicodeEncodeError):
        _kernels.encode_strings(["a", "\ud800"])


def test_reads_strings_across_what_is_read_at_once(tmp_path: Path) -> None:
    strings = ["x" * (_READ_AHEAD * i // 7) + "é" * i for i in range(10)] + ["", "end"]
    header = encode_header({"a": strings, "b": "last"}, [])
    file = tmp_path / "strings.gguf"
    file.write_bytes(header)
    assert read_gguf(file).metadata == {"a": strings, "b": "last"}
    file.write_bytes(header[: header.index(b"end") + 1])
    with pytest.raises(MalformedGGUF, match="truncated: the file ends inside the value of 'a'"):
        read_gguf(file)
    file.write_bytes(header.replace(b"end", b"e\xffd"))
    with pytest.raises(MalformedGGUF, match="the value of 'a' is not UTF-8"):
        read_gguf(file)


PARTS = st.sampled_from(["", "a", "b", "ab", "aba", "abcdefgh", "é", "abcdefghé", "a b"])


@given(st.lists(PARTS, unique=True), st.lists(st.builds("{} {}".format, PARTS, PARTS) | PARTS))
def test_finds_the_first_merge_that_is_not_of_tokens(tokens: list[str], merges: list[str]) -> None:
    parted = [merge.partition(" ") for merge in merges]
    faulty = (i for i, (a, _, b) in enumerate(parted) if not {a, b, a + b} <= set(tokens))
    assert _kernels.faulty_merge(tokens, merges) == next(faulty, -1)


ODD = st.sampled_from([None, 1, [1, 2], ["a"], ["a", "b", "ab"], "\ud800 a", {"a": 0, "b": 1}, [["a"], "b"]])


@given(
    st.sampled_from([["a", "b", "ab"], ["a", "b", "ab", "", "a b", "b a", "é", "aé", "\ud800"]]),
    st.lists(st.builds("{} {}".format, PARTS, PARTS)) | st.lists(st.lists(PARTS, min_size=2, max_size=2)),
    st.lists(st.tuples(st.integers(0, 9), ODD), max_size=1),
)
def test_all_merges_at_once_are_those_one_by_one(
    tokens: list[str], merges: list[Any], odd: list[tuple[int, Any]]
) -> None:
    for at, value in odd:
        merges.insert(at, value)
    bpe = BPE(Path("tokenizer.json"), {text: i for i, text in enumerate(tokens)}, merges, None, False, False)

    def one_by_one() -> list[str]:
        return [f"{left} {right}" for left, right in bpe.pairs() if " " not in left and " " not in right]

    try:
        wanted = one_by_one()
    except BitconvError as refusal:
        with pytest.raises(BitconvError) as caught:
            bpe.spaced()
        assert str(caught.value) == str(refusal)
    else:
        assert bpe.spaced() == wanted
