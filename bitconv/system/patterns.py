"""Regular expressions from strangers, matched in time linear in the text.

Python's own engine may take longer than anyone waits (`(.|.)*!`), and recurse and overflow while it compiles. RE2 never
does, since it has no back references and no look-around, which are refused here by name.
"""

from __future__ import annotations

import re
from typing import Any

# What RE2 takes and Python does not, or takes for something else.
_OTHERWISE = re.compile(r"\\[CEKQXpPz]|\[:[^\]]*:\]|\(\?[a-zA-Z]*[-U]|\{[0-9]*,?[0-9]{4,}")
_MAX_BYTES = 16 << 20


class PatternError(ValueError):
    """A text that is no regular expression, or one that cannot be matched in bounded time."""


def compile_pattern(pattern: str) -> Any:
    """An object with match, search and fullmatch, as of Python's re module."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_BYTES
    unlike = _OTHERWISE.search(pattern)
    if unlike is not None:
        raise PatternError(f"{unlike[0]!r} is not supported")
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        cause = error.args[0] if error.args else ""
        raise PatternError(cause.decode("utf-8", "replace") if isinstance(cause, bytes) else str(cause)) from None
    except UnicodeEncodeError:
        raise PatternError("it is no text") from None
