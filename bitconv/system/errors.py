"""Errors that a user can cause, as values: code, file, tensor, cause and way out. One place makes the line of them."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Written = Callable[[str, Any], str]

# The most characters of a line; a message may quote what a stranger's file holds.
MAX_LINE = 500
# Of faults, or what else is said of a file, the most that are listed: more do not help, and a stranger's has many.
MAX_FAULTS = 50
# What is cut where there is more, the first first, and how much of it stays.
_CAUSE, _WHERE, _WAY_OUT = 100, 150, 250

# What option() makes, in the text of a cause or a way out: a name, and a value in JSON.
_OPTION = re.compile("\x02([a-z0-9_]+)\x02([^\x02\x03]*)\x03")


class Code(Enum):
    """The kinds of errors: a number that stays over releases, and what it means."""

    USAGE = ("BC001", "an argument or option of a value that it cannot have")
    OPTIONS = ("BC002", "options that do not go together, or not with this input")

    NOT_FOUND = ("BC010", "a file or directory that is not there")
    FILE_KIND = ("BC011", "a directory, a pipe or a device where a file belongs, or a file where a directory does")
    EXISTS = ("BC012", "an output that would take the place of what is there")
    READ = ("BC013", "a file that the system does not give")
    WRITE = ("BC014", "a file that the system does not take")
    CHANGED = ("BC015", "a file that changes while it is read")
    PACKAGE = ("BC016", "a Python package that is not installed")
    HUB = ("BC020", "a model that the Hub does not give")

    FORMAT = ("BC030", "a file of another format, or of a version of it that is not read")
    DAMAGED = ("BC031", "a file of weights that is cut short or damaged")
    MALFORMED = ("BC032", "a text or JSON file that does not parse or lacks what it must hold")
    MALFORMED_GGUF = ("BC033", "a GGUF file that contradicts itself")
    UNSAFE = ("BC034", "a file that asks for more than to be read")
    TOO_LARGE = ("BC035", "a file or a number beyond what is read")

    CONFIG = ("BC040", "a setting of a model that is missing or makes no sense")
    UNSUPPORTED = ("BC041", "a setting of a model that no runner computes")
    REFUSED = ("BC042", "a kind of checkpoint that is told and cannot be converted right")
    CONVENTION = ("BC043", "scales that contradict the convention by which they are read")
    INCOMPLETE = ("BC044", "a checkpoint that lacks a file or a tensor")
    CONTRADICTION = ("BC045", "files of a model that contradict each other")
    TENSOR_FORM = ("BC046", "a tensor of a type, a shape or a name that its model does not have")
    TENSOR_VALUE = ("BC047", "a value that no weight or scale has")

    TOKENIZER = ("BC050", "tokenizer files that are incomplete or contradict themselves")
    TOKENIZER_UNSUPPORTED = ("BC051", "a tokenizer that no runner has")

    LAYOUT = ("BC060", "a tensor that the type cannot hold")
    RUNNER = ("BC061", "a model or a type that the runner does not compute")
    TILES = ("BC062", "a tile that is missing or is not legal")
    ASKED = ("BC063", "a runner that cannot be asked")

    GGUF_UNSUPPORTED = ("BC070", "a model that this command does not work on")
    FAULTY = ("BC071", "a GGUF file that is wrong; verify lists all faults")

    INTERRUPTED = ("BC090", "a signal that asks to stop")
    FAULT = ("BC099", "a fault of bitconv itself")

    @property
    def number(self) -> str:
        return self.value[0]

    @property
    def title(self) -> str:
        return self.value[1]


# The parameters that are true or false: option() of one of these without a value is of what sets it.
_FLAGS = ("attest", "dry_run", "float_activations", "force", "leave_out", "scale_in_blocks", "strict")


def option(name: str, value: object = None) -> str:
    """A parameter of the Python API in a message: `force=True` there, `--force` on the command line.

    Args:
        name: As a function of the API has it, such as "embed_type".
        value: Where one is named too, as in `--type q2_0`; a path or an enum's member counts as text.
    """
    if value is None and name in _FLAGS:
        value = True
    value = getattr(value, "value", value)
    if not isinstance(value, bool | int | float | None):
        value = str(value)
    try:
        text = json.dumps(value)
    except ValueError:  # of thousands of digits, which Python does not print
        text = json.dumps("(a huge number)")
    return f"\x02{name}\x02{text}\x03"


def in_python(name: str, value: Any) -> str:
    """How Python's users write a parameter."""
    return name if value is None else f"{name}={value!r}"


def plain(value: object) -> str:
    """A value that was read from a file, to stand in a message: without numpy's types, and not too long."""
    return f"{str(value) if hasattr(value, 'tolist') else repr(value):.80}"


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
        code: Code,
        file: object = None,
        tensor: str | None = None,
        way_out: str | None = None,
    ) -> None:
        super().__init__(rendered(cause))
        self.code = code
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self._cause = cause
        self._way_out = way_out

    @property
    def cause(self) -> str:
        return rendered(self._cause)

    @property
    def way_out(self) -> str | None:
        return self._way_out and rendered(self._way_out)

    def at(self, file: object, tensor: str | None = None, way_out: str | None = None) -> BitconvError:
        """The same error, where it becomes known what it is about or what helps."""
        return BitconvError(
            self._cause,
            code=self.code,
            file=file,
            tensor=self.tensor if tensor is None else tensor,
            way_out=self._way_out if way_out is None else way_out,
        )

    def line(self, written: Written = in_python) -> str:
        """The error in one line. written: how a parameter (name, value) is written where the line is read."""
        where = "".join(f"{rendered(part, written)}: " for part in (self.file, self.tensor) if part)
        cause = rendered(self._cause, written)
        way_out = f"; {rendered(self._way_out, written)}" if self._way_out else ""
        cause = _cut(cause, max(_CAUSE, MAX_LINE - len(where) - len(way_out)))
        where = _cut(where, max(_WHERE, MAX_LINE - len(cause) - len(way_out)))
        way_out = _cut(way_out, max(_WAY_OUT, MAX_LINE - len(cause) - len(where)))
        return f"{where}{cause}{way_out}"

    def as_json(self, written: Written = in_python) -> dict[str, str | None]:
        """The error as what `json.dumps` takes."""
        return {
            "code": self.code.number,
            "title": self.code.title,
            "file": self.file,
            "tensor": self.tensor,
            "cause": rendered(self._cause, written),
            "way_out": self._way_out and rendered(self._way_out, written),
            "message": self.line(written),
        }

    def __str__(self) -> str:
        return self.line()

    def __reduce__(self) -> tuple[Any, ...]:
        kept: dict[str, Any] = {"code": self.code, "file": self.file, "tensor": self.tensor, "way_out": self._way_out}
        return functools.partial(type(self), **kept), (self._cause,)


def _cut(text: str, room: int) -> str:
    """With dots in the middle where there is no room for all of it: both ends of a path or a sentence tell the most."""
    if len(text) <= room:
        return text
    end = (room - 5) // 2
    return f"{text[: room - 5 - end]} ... {text[-end:]}"


def rendered(text: str, written: Written = in_python) -> str:
    """One line: with options as they are written, white space folded, and no control characters."""

    def parameter(match: re.Match[str]) -> str:
        try:
            return written(match[1], json.loads(match[2]))
        except ValueError:  # what looks like one in a stranger's file
            return match[0]

    return " ".join("".join(map(_shown, _OPTION.sub(parameter, _cut(text, 4 * MAX_LINE)))).split())


def check_number(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    """BitconvError where a parameter is less or more than makes sense."""
    if value < least:
        raise BitconvError(f"{option(name, value)}: at least {least} is needed", code=Code.USAGE)
    if value > most:
        raise BitconvError(f"{option(name, value)}: at most {most} is possible", code=Code.USAGE)


def one_line(text: str) -> str:
    """Text that may quote a stranger's file as one line of at most MAX_LINE characters."""
    return _cut(rendered(text), MAX_LINE)


def first_lines(texts: list[str]) -> tuple[str, ...]:
    """The first of them as lines, and how many more there are."""
    more = [f"and {len(texts) - MAX_FAULTS:,} more"] if len(texts) > MAX_FAULTS else []
    return (*map(one_line, texts[:MAX_FAULTS]), *more)


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
                raise BitconvError("holds a zero byte, which no path can", code=Code.USAGE, file=repr(value))
        try:
            return function(*args, **kwargs)
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
            raise BitconvError(cause, code=Code.READ, file=error.filename) from None

    return reporting
