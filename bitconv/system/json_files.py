"""JSON files that must hold an object."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import decode, read_whole

# What Python converts to no number, and values within values: far more than any model's files have.
_HUGE = re.compile(r"\d{4301,}")
_MAX_DEPTH = 100


def read_json(path: Path, within: Path | None = None) -> dict[str, Any]:
    """A JSON file that must hold an object. within: the model directory, as open_input takes it."""
    value = read_json_value(path, within)
    if not isinstance(value, dict):
        raise BitconvError("holds no JSON object", code=Code.MALFORMED, file=path)
    return value


def read_json_value(path: Path, within: Path | None = None) -> Any:
    """A JSON file of any value. What parsers read differently is refused: keys that stand twice, and NaN."""
    try:
        text = decode(read_whole(path, within), path)
    except FileNotFoundError:
        raise BitconvError("missing", code=Code.NOT_FOUND, file=path) from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
        _check_depth(value)
    except RecursionError:
        raise BitconvError("not valid JSON: its values are nested too deep", code=Code.MALFORMED, file=path) from None
    except ValueError as error:
        digits = _HUGE.search(text)  # Python's own words for it tell how to lift its limit
        cause = f"a number of {len(digits[0])} digits" if digits else error
        raise BitconvError(f"not valid JSON: {cause}", code=Code.MALFORMED, file=path) from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _check_depth(value: Any) -> None:
    level = [value] if type(value) in (dict, list) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
    raise RecursionError
