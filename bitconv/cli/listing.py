"""The commands that list what is known: runners, families."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bitconv.cli.options import JsonOption
from bitconv.cli.process import as_option
from bitconv.cli.rendering import print_backends, print_catalogue, print_runner, show
from bitconv.cli.streams import print_json

if TYPE_CHECKING:
    from bitconv.backends import Cell


def runners(as_json: JsonOption = False) -> None:
    """List the runners: what each one computes right, and how fast on which processor."""
    from bitconv.backends import CELLS
    from bitconv.runners import RUNNERS

    if as_json:
        print_json(
            [{**dataclasses.asdict(runner), "backends": _backends(CELLS.get(runner.name, {}))} for runner in RUNNERS]
        )
        return
    for runner in RUNNERS:
        print_runner(runner)
    print_backends()


def _backends(by_type: dict[str, dict[str, Cell]]) -> dict[str, dict[str, dict[str, str]]]:
    return {
        name: {backend: {"speed": cell.speed.value, "source": cell.source} for backend, cell in cells.items()}
        for name, cells in by_type.items()
    }


def families(as_json: JsonOption = False) -> None:
    """List the model families, and what is refused and why."""
    from bitconv.commands.families import catalogue

    show(catalogue(as_option), as_json, print_catalogue)
