"""The commands that list what is known: runners, families."""

import dataclasses

from bitconv.cli.options import JsonOption
from bitconv.cli.process import as_option
from bitconv.cli.rendering import print_catalogue, print_runner, show
from bitconv.cli.streams import print_json


def runners(as_json: JsonOption = False) -> None:
    """List the runners, and what each one computes right."""
    from bitconv.runners import RUNNERS

    if as_json:
        print_json([dataclasses.asdict(runner) for runner in RUNNERS])
        return
    for runner in RUNNERS:
        print_runner(runner)


def families(as_json: JsonOption = False) -> None:
    """List the model families, and what is refused and why."""
    from bitconv.commands.families import catalogue

    show(catalogue(as_option), as_json, print_catalogue)
