"""An error is a value: its code, its parts, the line of them, and what Python does with exceptions."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from bitconv import BitconvError
from bitconv.gguf import MalformedGGUF
from bitconv.packed.ternary_tensor import FaultyTensor
from bitconv.system.errors import MAX_LINE, Code, option, plain

FULL = BitconvError("is wrong", code=Code.USAGE, file="a.gguf", tensor="blk.0", way_out=f"pass {option('force')}")


def as_flag(name: str, value: object) -> str:
    return f"<{name}|{value}>"


def test_the_line_is_file_tensor_cause_and_way_out() -> None:
    assert str(FULL) == "a.gguf: blk.0: is wrong; pass force=True"
    assert (FULL.file, FULL.tensor, FULL.cause, FULL.way_out) == ("a.gguf", "blk.0", "is wrong", "pass force=True")
    assert str(BitconvError("is wrong", code=Code.USAGE)) == "is wrong"


def test_parameters_are_written_as_the_reader_writes_them() -> None:
    error = BitconvError(f"{option('type', 'q2_0')} {option('threads', 0)}", code=Code.USAGE, way_out=option("pre"))
    assert str(error) == "type='q2_0' threads=0; pre"
    assert error.line(as_flag) == "<type|q2_0> <threads|0>; <pre|None>"


def test_what_looks_like_a_parameter_in_a_strangers_file_is_text() -> None:
    line = str(BitconvError("\x02force\x02{\x03", code=Code.USAGE))
    assert "force" in line and line.isprintable()


def test_codes_are_numbered_once_and_have_a_title() -> None:
    assert all(code.number.startswith("BC") and len(code.number) == 5 and code.title for code in Code)
    assert len({code.number for code in Code}) == len(Code)
    assert [code.number for code in Code] == sorted(code.number for code in Code)


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        MalformedGGUF("x", file="y"),
        FaultyTensor("x", code=Code.LAYOUT, tensor="z"),
    ],
)
def test_an_error_is_pickled_and_copied_whole(error: BitconvError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert twin.as_json() == error.as_json()
        assert twin.line(as_flag) == error.line(as_flag)


@pytest.mark.parametrize(
    ("file", "cause", "way_out"),
    [("f" * 4000, "c", "w"), ("f", "c" * 4000, "w"), ("f", "c", "w" * 4000), ("f" * 4000, "c" * 4000, "w" * 4000)],
)
def test_a_line_has_500_characters_at_most_and_keeps_a_bit_of_every_part(file: str, cause: str, way_out: str) -> None:
    line = str(BitconvError(cause, code=Code.USAGE, file=f"/first/{file}/last", way_out=f"pass {way_out} now"))
    assert len(line) <= MAX_LINE
    assert line.startswith("/first/") and "/last: c" in line and "; pass w" in line and line.endswith("w now")


def test_a_line_of_500_characters_is_not_cut() -> None:
    error = BitconvError("c" * 100, code=Code.USAGE, file="f" * 198, way_out="w" * 198)
    assert str(error) == f"{'f' * 198}: {'c' * 100}; {'w' * 198}"


def test_a_line_has_no_line_breaks_and_no_control_characters() -> None:
    error = BitconvError("a\nb\x1b[2J\tc", code=Code.USAGE, file="x\ny", tensor="t\r")
    assert str(error) == "x y: t: a b\N{REPLACEMENT CHARACTER}[2J c"


def test_values_stand_in_messages_as_plain_numbers() -> None:
    assert plain(np.float32(0.0597)) == "0.0597"
    assert plain(np.uint32(7)) == "7"
    assert plain("x") == "'x'"
    assert len(plain("x" * 1000)) == 80


def test_the_json_of_an_error() -> None:
    assert json.loads(json.dumps(FULL.as_json(as_flag))) == {
        "code": "BC001",
        "title": Code.USAGE.title,
        "file": "a.gguf",
        "tensor": "blk.0",
        "cause": "is wrong",
        "way_out": "pass <force|True>",
        "message": "a.gguf: blk.0: is wrong; pass <force|True>",
    }
