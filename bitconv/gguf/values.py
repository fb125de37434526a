"""GGUF metadata values: a Python value that carries its GGUF type by itself.

bool is BOOL, str is STRING, a numpy scalar is the number type of its dtype, a one-dimensional numpy array is an
ARRAY of that type, and a list of str is an ARRAY of STRING. Plain int and float are ambiguous and not used.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bitconv._kernels import encode_strings
from bitconv.system.errors import one_line

Value: TypeAlias = bool | str | np.generic | npt.NDArray[Any] | list[str]
Metadata: TypeAlias = dict[str, Value]

# GGUF value type ids (the format's specification, version 3).
BOOL, STRING, ARRAY = 7, 8, 9
NUMBER_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# Of a value that is longer, its length and its start are shown.
_SHOWN = 60
_NUMBER_IDS = {dtype: type_id for type_id, dtype in NUMBER_DTYPES.items()} | {np.dtype("?"): BOOL}
_TYPE_NAMES = {"b1": "bool", **{f"{kind}{size}": f"{kind}{size * 8}" for kind in "uif" for size in (1, 2, 4, 8)}}


def value_type(value: Value) -> str:
    """What GGUF calls its type, short: u32, f32, bool, str, or [i32] and so on for arrays."""
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, str):
        return "str"
    if isinstance(value, list):
        return "[str]"
    name = _TYPE_NAMES[value.dtype.str[1:]]
    return f"[{name}]" if isinstance(value, np.ndarray) else name


def encode_value(value: Value) -> bytes:
    """A value with its type id in front, as it stands in a GGUF header."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + encode_strings([value])
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + encode_strings(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _NUMBER_IDS[value.dtype], len(value)) + value.tobytes()
    return struct.pack("<I", _NUMBER_IDS[value.dtype]) + value.tobytes()


def same_value(a: Value, b: Value) -> bool:
    """Whether two values have one type, and are the same to the bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


def shown(value: object) -> str:
    """A value in one line: of a list its length and its start, of a long text its start and its length."""
    if isinstance(value, list | np.ndarray):
        start = ", ".join(one_line(str(item))[:12] for item in value[:4])
        return f"{len(value):,}: {start}{', ...' if len(value) > 4 else ''}"
    text = one_line(str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
