"""JSON files: the native parser takes what is plain as Python's own does, and leaves everything else to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitconv import _kernels
from bitconv.system.errors import BitconvError
from bitconv.system.json_files import read_json_value
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18) + 1, 10**18 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN, st.booleans(), st.sampled_from([None, 0, 3]))
def test_plain_json_is_parsed_as_by_python(value: Any, in_ascii: bool, indent: int | None) -> None:
    assert _kernels.parse_json(json.dumps(value, ensure_ascii=in_ascii, indent=indent).encode()) == value


def test_escapes_mean_what_they_do_to_python() -> None:
    text = r'["\"\\\/\b\f\n\r\t", "a\u0000\u007F\u0080\u07ff\u0800\uFFFFb", "\ud83d\ude00\uDBFF\uDFFF", {"\u0061": -0}]'
    assert _kernels.parse_json(text.encode()) == json.loads(text)


NOT_PLAIN = [
    *(b"", b" ", b"{", b"[", b'"', b'"a', b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[1]]", b"[] x", b"]"),
    *(b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a" 1}', b"{1:1}", b"{a:1}", b'{"a":1 "b":2}', b'{"a":1}}', b"{,}"),
    *(b"tru", b"True", b"nul", b"NaN", b"-Infinity", b"[truefalse]", b"'a'", b"// \n1", b"\xef\xbb\xbf1", b"\x0b1"),
    *(b"-", b"+1", b"01", b"-01", b"1.5", b"1.", b".5", b"1e5", b"1E5", b"0x10", b"1" * 19, b"1" * 5000, b"--1", b"1a"),
    *(b'"\n"', b'"\x00"', b'"\x1f"', b'"\\"', b'"\\x"', b'"\\\x00"', b'"\\u12"', b'"\\u12g4"', b'"\\u+123"', b'"\\'),
    *(b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\ud800x"', b'"\\ud800\\ud800"', b'"\\ud800\\'),
    *(b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b'"\\n\xff"', b'{"\xff":1}'),
    *(b'{"a":1,"a":1}', b'{"a":1,"b":2,"\\u0061":3}', b'[{"":[{"x":1,"x":2}]}]', b"[" * 51 + b"]" * 51, b"[" * 10**6),
    *(b"null", b"[1]\x00", b"\x00", b"[1,\x00]", "[1]\u00a0".encode(), '["a"]'.encode("utf-16")),
]


@pytest.mark.parametrize("data", NOT_PLAIN, ids=range(len(NOT_PLAIN)))
def test_what_is_not_plain_is_not_taken(data: bytes) -> None:
    assert _kernels.parse_json(data) is None


@given(PLAIN, st.data())
def test_a_damaged_file_is_never_taken_as_another_value(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(text) - 1, 0)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", *map(bytes, zip(b'"\\,:{}[]0-u\xff\n'))])
        )
    taken = _kernels.parse_json(bytes(text))
    if taken is not None:
        assert json.loads(text.decode(), object_pairs_hook=once) == taken


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"a":1,"a":2}', "the key 'a' stands twice"),
        (b"[" * 100 + b"]" * 100, "nested too deep"),
        (b"[" * 10**6, "nested too deep"),
        (b"1" * 5000, "a number of 5000 digits"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b'{"a": ', "not valid JSON: Expecting value"),
        (b'"\xff"', "not UTF-8"),
        (b"\xff\xfe[\x00", "is UTF-16"),
    ],
    ids=range(8),
)
def test_refusals_are_in_words(data: bytes, cause: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BitconvError, match=cause):
        read_json_value(tmp_path / "a.json")


@pytest.mark.parametrize(
    "data", [b"1.5", b"\xef\xbb\xbf[1]", b'"\\ud800"', b"[" * 99 + b"]" * 99, b"1" * 30, b" null "]
)
def test_what_is_right_and_not_plain_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert read_json_value(tmp_path / "a.json") == json.loads(data.decode("utf-8-sig"))
