"""Calling a function of the Python API with what a command was given."""

from __future__ import annotations

from typing import Any

import bitconv
from bitconv.cli.progress import progress_bar

_OF_PRINTING = ("as_json", "verbose", "quiet")


def call(verb: str, given: dict[str, Any], *, doing: str | None = None, unit: str = "bytes") -> Any:
    """The result of bitconv.VERB.

    Args:
        verb: The function's name.
        given: The command's parameters, which are the function's by name but for those of printing; with `quiet` no
            progress is shown.
        doing: What a progress bar says, where the function has progress.
        unit: Of the progress: "bytes" or another.
    """
    function = getattr(bitconv, verb)
    quiet = given.get("quiet", False)
    given = {name: value for name, value in given.items() if name not in _OF_PRINTING}
    if doing is None or quiet:
        return function(**given)
    with progress_bar(doing, unit) as progress:
        return function(**given, progress=progress)
