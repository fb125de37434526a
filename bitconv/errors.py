"""The one error type that a user can cause."""

from __future__ import annotations


class BitconvError(Exception):
    """An input that cannot be worked with.

    The message is one line that names the file, the tensor and the cause, and where there is one, the way
    out. The command line prints it and exits with 2.
    """
