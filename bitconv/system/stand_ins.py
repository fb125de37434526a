"""What lies in place of a file where a download brought something else, told by the file's first bytes."""

from __future__ import annotations

import re
from typing import Any

from bitconv.system.errors import BitconvError, Code

# So many of a file's first bytes tell.
START = 512

# The first line of a pointer (git-lfs' docs/spec.md); hawser was the name before the first release.
_POINTER = re.compile(rb"version https?://(git-lfs\.github\.com|hawser\.github\.com)/")
_PAGE = re.compile(rb"<(!doctype|html|head|\?xml)\b", re.IGNORECASE)
# What the Hub answers, as text or as JSON, where it does not give a file.
_ANSWER = re.compile(
    rb'\{\s*"(error|message|detail)"\s*:|access to .{1,200} is (restricted|gated)|invalid (username|credentials)\b|'
    rb"(\d{3}:? )?((entry|repository|model|revision|file|page) )?(not found|unauthorized|forbidden|access denied)\b",
    re.IGNORECASE,
)
_AGAIN = "log in (hf auth login), accept the model's terms where it has some, and download the file again (hf download)"


def check_content(file: Any, start: bytes) -> None:
    """BitconvError where a file begins as a Git LFS pointer, a web page or a server's refusal does.

    start: its first bytes, START of them or all.
    """
    text = start[:START].removeprefix(b"\xef\xbb\xbf").lstrip()
    if _POINTER.match(text):
        raise BitconvError(
            "is a Git LFS pointer in place of the file itself",
            code=Code.INCOMPLETE,
            file=file,
            way_out="run git lfs install and git lfs pull in its directory, or download the model with hf download",
        )
    if _PAGE.match(text):
        way_out = f"take its address with /resolve/ in place of /blob/, or {_AGAIN}"
        raise BitconvError(
            "is a web page in place of the file itself", code=Code.INCOMPLETE, file=file, way_out=way_out
        )
    if _ANSWER.match(text):
        cause = f"is a server's answer in place of the file itself: {_quoted(text)}"
        raise BitconvError(cause, code=Code.INCOMPLETE, file=file, way_out=_AGAIN)


def check_binary(file: Any, start: bytes) -> None:
    """As check_content, of a file that is no text: BitconvError for any text."""
    check_content(file, start)
    text = start[:START]
    if len(text) > 8 and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in text):
        raise BitconvError(
            f"is a text in place of the file itself: {_quoted(text)}", code=Code.INCOMPLETE, file=file, way_out=_AGAIN
        )


def _quoted(text: bytes) -> str:
    return repr(text[:80].decode("utf-8", "replace").strip())
