"""From signals, errors and results to exit codes. Nothing is imported here that takes time."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from bitconv.cli import streams
from bitconv.cli.streams import print_json, write
from bitconv.system.errors import BitconvError, Code

RIGHT, WRONG, ERROR, FAULT = 0, 1, 2, 70  # EX_SOFTWARE
_BY_SIGNAL = 128  # and the signal's number, as shells have it
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

# The parameters of the Python API that the command line calls otherwise.
_NAMES = {"tensor_types": "tensor-type"}


class Interrupted(KeyboardInterrupt):
    """A signal that asks to stop, raised wherever the program is: it cleans up as after any error."""

    number: int


def run(command: Callable[[], None]) -> NoReturn:
    """Run the command, and exit as its result or its failure says."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP; a shell, SIGINT in the background
            signal.signal(number, _interrupt)
    # A vocabulary is hundreds of thousands of objects, none of them garbage: Python's own threshold has them looked
    # through again and again.
    gc.set_threshold(1_000_000)
    as_json = "--json" in sys.argv[1:]
    printed = io.StringIO()
    streams.held_back_from = sys.stdout
    code: Any = RIGHT
    with contextlib.redirect_stdout(printed):
        try:
            with failures_end_in_one_line(as_json):
                command()
        except SystemExit as end:
            code = end.code
        except Exception as fault:
            printed.truncate(printed.seek(0))  # what had been printed of a result
            code = _report(fault, as_json)
    # When all is done, so that nothing about stdout can stop the work. Only a result that is lost is an error.
    try:
        cause = write(sys.stdout, printed.getvalue())
    except Interrupted as stop:
        cause, code = "interrupted", _BY_SIGNAL + stop.number
    if cause is not None:
        write(sys.stderr, f"bitconv: error: stdout: {cause}\n")
        code = code or ERROR
    sys.exit(code)


def _interrupt(number: int, frame: Any) -> NoReturn:
    for each in _SIGNALS:  # a closed terminal sends several, and one must not end the cleaning up
        signal.signal(each, signal.SIG_IGN)
    stop = Interrupted()
    stop.number = number
    raise stop


@contextlib.contextmanager
def failures_end_in_one_line(as_json: bool) -> Iterator[None]:
    try:
        yield
    except BitconvError as error:
        _tell(error, as_json)
        sys.exit(ERROR)
    except KeyboardInterrupt as stop:
        _tell(BitconvError("interrupted", code=Code.INTERRUPTED), as_json)
        sys.exit(_BY_SIGNAL + getattr(stop, "number", signal.SIGINT))


def _report(fault: Exception, as_json: bool) -> int:
    """Of what is no error of the user's: where the traceback was written."""
    import tempfile
    import traceback

    try:
        descriptor, file = tempfile.mkstemp(prefix="bitconv-", suffix=".traceback.txt")  # its owner's alone
        with os.fdopen(descriptor, "w", errors="backslashreplace") as stream:
            traceback.print_exception(fault, file=stream)
        where = f"the traceback is in {file}"
    except OSError as error:
        where = f"the traceback could not be written: {error.strerror}"
    cause = f"a fault of bitconv: {type(fault).__name__}: {fault}"
    _tell(BitconvError(cause, code=Code.FAULT, way_out=f"please report it; {where}"), as_json)
    return FAULT


def _tell(error: BitconvError, as_json: bool) -> None:
    write(sys.stderr, f"bitconv: error: {error.line(as_option)}\n")
    if as_json:
        print_json({"error": error.as_json(as_option)})


def as_option(name: str, value: Any) -> str:
    """How users of the command line write a parameter."""
    flag = f"--{_NAMES.get(name, name.replace('_', '-'))}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(str(value))}"
