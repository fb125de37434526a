"""The one error type that a user can cause."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class BitconvError(Exception):
    """An input that cannot be worked with.

    The message is one line that names the file, the tensor and the cause, and where there is one, the way
    out. The command line prints it and exits with 2.
    """


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
