"""Errors that a user can cause, as values: code, file, tensor, cause and way out. One place makes the line of them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from enum import Enum
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# The most characters of a line; a message may quote what a stranger's file holds.
MAX_LINE = 500

# What option() makes, in the text of a cause or a way out.
_OPTION = re.compile("\x02([a-z0-9_]+)(?:=([^\x03]*))?\x03")


class Code(Enum):
    """The kinds of errors: a stable code, and what it means."""

    USAGE = ("BC001", "an argument or option that does not fit")

    @property
    def number(self) -> str:
        return self.value[0]

    @property
    def title(self) -> str:
        return self.value[1]


def option(name: str, value: object = None) -> str:
    """A parameter of the Python API in a message: `force=True` there, `--force` on the command line.

    name: as a function of the API has it, such as "embed_type". value: where one is named too, as in --type q2_0.
    """
    return f"\x02{name}\x03" if value is None else f"\x02{name}={value}\x03"


def in_python(name: str, value: str | None) -> str:
    """How Python's users write a parameter."""
    return f"{name}=True" if value is None else f"{name}={value!r}"


class BitconvError(Exception):
    """An input that cannot be worked with.

    Attributes:
        code: What kind of error, stable over releases.
        file: The file or model that it is about, where there is one.
        tensor: The tensor in it, where there is one.
        cause: What is wrong.
        way_out: What helps, where something does.

    str() is one line of at most 500 characters, which speaks of Python's parameters; the command line makes one that
    speaks of options, and exits with 2.
    """

    def __init__(
        self,
        cause: str,
        *,
        code: Code = Code.USAGE,
        file: object = None,
        tensor: str | None = None,
        way_out: str | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.code = code
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.way_out = way_out

    def line(self, written: Callable[[str, str | None], str] = in_python) -> str:
        """The error in one line. written: how a parameter (name, value) is written where the line is read."""
        where = "".join(f"{part}: " for part in (self.file, self.tensor) if part)
        way_out = f"; {self.way_out}" if self.way_out else ""
        where, cause, way_out = (_plain(text, written) for text in (where, self.cause, way_out))
        room = max(MAX_LINE - len(where) - len(way_out), 80)
        if len(cause) > room:
            cause = f"{cause[: room - 4]} ..."
        line = f"{where}{cause}{way_out}"
        return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 4]} ..."

    def __str__(self) -> str:
        return self.line()


def _plain(text: str, written: Callable[[str, str | None], str]) -> str:
    """One line: with options as they are written, white space folded, and no control characters."""
    text = _OPTION.sub(lambda match: written(match[1], match[2]), text)
    start, end = text[:1].isspace(), text[-1:].isspace()
    folded = " ".join("".join(map(_shown, text)).split())
    return f"{' ' * start}{folded}{' ' * end}"


def _shown(character: str) -> str:
    """Control characters would steer the terminal. Surrogates stand for bytes of a path, and stderr escapes them."""
    kept = character.isprintable() or character.isspace() or "\ud800" <= character <= "\udfff"
    return character if kept else "\N{REPLACEMENT CHARACTER}"


def reports_system_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Of a function that users call: a file that the system does not give or take is a BitconvError like all else."""

    @functools.wraps(function)
    def reporting(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for value in (*args, *kwargs.values()):
            if isinstance(value, str | os.PathLike) and "\0" in os.fspath(value):
                raise BitconvError(f"{value!r}: holds a zero byte, which no path can")
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise BitconvError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None

    return reporting
