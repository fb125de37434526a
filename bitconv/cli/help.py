"""How --help looks: options in groups, an example, and nothing that is typer's own notation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

# Where a command has many options: a heading, and the parameters below it. The first heading has the rest.
_GROUPS = {
    "What it does": (),
    "How the input is read": (
        "revision",
        "token",
        "scale_convention",
        "ternarize",
        "group",
        "pre",
        "i2_s_order",
        "from_i2_s_order",
        "from_kernel_config",
    ),
    "In general": ("threads", "force", "quiet", "verbose", "as_json", "help"),
}
_MANY = 12


class Command(TyperCommand):
    """A command whose `epilog` is an example of it."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """[OPTIONS], and arguments without braces."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options in groups where there are many."""
        arguments: list[tuple[str | None, tuple[str, str]]] = []
        options: list[tuple[str | None, tuple[str, str]]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = arguments if parameter.param_type_name == "argument" else options
                kind.append((parameter.name, _plain(*record)))
        _section(formatter, "Arguments", (record for _, record in arguments))
        if len(options) < _MANY:
            _section(formatter, "Options", (record for _, record in options))
            return
        of = {name: heading for heading, names in _GROUPS.items() for name in names}
        rest = next(iter(_GROUPS))
        for heading in _GROUPS:
            _section(formatter, heading, (record for name, record in options if of.get(str(name), rest) == heading))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, in one line."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(f"Example:\n  {self.epilog}\n")


class _Commands(Mapping[str, Any]):
    """Commands that are made when they are asked for: to make all takes longer than all else that --help does."""

    def __init__(self, functions: Mapping[str, tuple[Callable[..., None], str]]) -> None:
        self._functions = functions

    def __getitem__(self, name: str) -> Any:
        function, example = self._functions[name]
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=Command, epilog=example)(function)
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


class Group(TyperGroup):
    """The commands of `functions`.

    Attributes:
        functions: By the command's name, what it calls and an example.
    """

    functions: ClassVar[Mapping[str, tuple[Callable[..., None], str]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands(self.functions)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.functions)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One below the other, each with the whole first sentence of what it does."""
        _section(formatter, "Commands", ((name, _summary(function)) for name, (function, _) in self.functions.items()))


def _summary(function: Callable[..., None]) -> str:
    paragraph = " ".join(inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].split())
    return f"{paragraph.partition('. ')[0].removesuffix('.')}."


def _section(formatter: Any, heading: str, records: Iterable[tuple[str, str]]) -> None:
    rows = list(records)
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows)


def _plain(left: str, right: str) -> tuple[str, str]:
    """Without types and ranges, which the words beside them tell better."""
    right = re.sub(r"\s*\[(required|x[<>]=?\S+)\]", "", right)
    return re.sub(r" <[^>]*>$", "", left), re.sub(r"; x[<>]=?[^]]*", "", right)
