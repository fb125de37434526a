"""The command line: options, printing, streams and exit codes; what the commands do is in bitconv.commands.

main() is here and app behind it, so that main answers signals before anything large is imported.
"""

from __future__ import annotations

from typing import Any, NoReturn

from bitconv.cli.process import run

__all__ = ["app", "main"]


def main() -> NoReturn:
    """The command `bitconv`."""
    run(lambda: __getattr__("app")())


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'bitconv.cli' has no attribute {name!r}")
    from bitconv.cli.application import app

    return app
