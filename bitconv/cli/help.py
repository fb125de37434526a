"""How --help looks: options in groups, an example, and nothing that is typer's own notation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

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


class Group(TyperGroup):
    """The commands, each with the whole first sentence of what it does."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One below the other."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        _section(formatter, "Commands", ((name, c.get_short_help_str(1000)) for name, c in commands if c is not None))


def _section(formatter: Any, heading: str, records: Iterable[tuple[str, str]]) -> None:
    rows = list(records)
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows)


def _plain(left: str, right: str) -> tuple[str, str]:
    """Without types and ranges, which the words beside them tell better."""
    right = re.sub(r"\s*\[(required|x[<>]=?\S+)\]", "", right)
    return re.sub(r" <[^>]*>$", "", left), re.sub(r"; x[<>]=?[^]]*", "", right)
