"""How results look where Python shows them: short, and as a table in a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from html import escape
from typing import Any

# Of fields with more items their number is shown.
_SHORT = 4
# Of a table's rows.
_ROWS = 400


class Result:
    """A dataclass that a function of the API returns, declared with repr=False."""

    def __repr__(self) -> str:
        """Every field; of long ones how many items they have."""
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in _fields(self))})"

    def _repr_html_(self) -> str:
        """A table of fields, and below it one of each list of records."""
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in _fields(self)
        )
        return f"<table>{rows}</table>{''.join(_details(name, value) for name, value in _fields(self))}"


def _fields(record: Any) -> Iterator[tuple[str, Any]]:
    yield from ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))


def _short(value: object) -> str:
    if isinstance(value, tuple | dict) and len(value) > _SHORT:
        return f"<{len(value)}>"
    return repr(value)


def _text(value: object) -> str:
    if _is_listed(value):
        return f"{len(value)}"  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _is_listed(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _details(name: str, value: Any) -> str:
    if not _is_listed(value):
        return ""
    head = _row("th", [field for field, _ in _fields(value[0])])
    rows = "".join(_row("td", [_text(cell) for _, cell in _fields(record)]) for record in value[:_ROWS])
    return f"<details><summary>{escape(name)}</summary><table>{head}{rows}</table></details>"


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
