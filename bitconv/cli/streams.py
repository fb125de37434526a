"""stdout and stderr, whatever they are connected to."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from pathlib import PurePath
from typing import Any, TextIO

# stdout itself, while what commands print is held back until they end.
held_back_from: TextIO | None = None


def write(stream: TextIO | None, text: str) -> str | None:
    """Write to stdout or stderr. Returns why the text is lost, if it is.

    What the stream cannot encode is escaped, and a reader that has gone, as `head` does, has read all that it wants.
    """
    if stream is None:
        return None
    try:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
        return None
    except OSError as error:
        cause = None if isinstance(error, BrokenPipeError) else error.strerror
    except KeyboardInterrupt:
        divert(stream)
        raise
    divert(stream)
    return cause


def write_now(text: str) -> None:
    """To stdout, of a result that is read as it comes. What would steer the terminal is escaped."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    write(sys.stdout if held_back_from is None else held_back_from, shown)


def print_wrapped(head: str, text: str) -> None:
    """A line that breaks between words where stdout is a terminal, its further lines below the first's text."""
    stream = sys.stdout if held_back_from is None else held_back_from
    if stream.isatty():
        room = shutil.get_terminal_size().columns
        text = textwrap.fill(text, max(room, len(head) + 20), initial_indent=head, subsequent_indent=" " * len(head))
        print(text)
    else:
        print(f"{head}{text}")


def divert(stream: TextIO) -> None:
    """Where the rest goes when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: object) -> None:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))  # in ASCII, which every stdout takes as it is


def _finite(value: Any) -> Any:
    """With None, which is null, for the floats that JSON does not have, and text for paths."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
