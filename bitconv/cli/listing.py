"""The commands that list what there is: in a model, and what is known of runners and families."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitconv.cli.options import (
    AgainstOption,
    I2SOrderOption,
    JsonOption,
    KernelConfigOption,
    QuietOption,
    RevisionOption,
    ThreadsOption,
    TokenOption,
    option,
)
from bitconv.cli.process import RIGHT, WRONG, as_option
from bitconv.cli.rendering import (
    print_backends,
    print_catalogue,
    print_difference,
    print_overview,
    print_report,
    print_runner,
    print_surroundings,
    show,
)
from bitconv.cli.streams import print_json
from bitconv.cli.verbs import call

_MODEL_OR_FILE = "GGUF file, model directory, or id on the Hub."

if TYPE_CHECKING:
    from bitconv.backends import Cell


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="GGUF file, model directory, id on the Hub, or hf://OWNER/NAME/FILE.gguf.",
            show_default=False,
        ),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List the metadata, or config.json.")] = False,
    headers: Annotated[
        bool, typer.Option("--headers", help="Read headers alone: no shares of -1, 0 and +1, but at once.")
    ] = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in a GGUF file, bitconv's or another's, or in a checkpoint.

    Nothing is proven of it: see verify. Of what is on the Hub headers are read, and it is not downloaded.
    """
    given = {name: value for name, value in locals().items() if name not in ("tensors", "metadata")}
    result = call("inspect", given, doing="counting", unit="tensors")
    show(result, as_json, lambda overview: print_overview(overview, tensors=tensors, metadata=metadata))


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to report on.", show_default=False)],
    output: Annotated[Path, option("--output", "-o", metavar="FILE.html", help="File to write.")],
    against: AgainstOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite FILE.html.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a page about a GGUF file, with verify's verdict and plots.

    It is one HTML file, which loads nothing from anywhere. Exits with 1 where the file is wrong.
    """
    result = call("report", locals(), doing="reading", unit="")
    show(result, as_json, print_report, quiet=quiet)
    raise typer.Exit(WRONG if result.right is False else RIGHT)


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_MODEL_OR_FILE, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.", show_default=False)],
    token: TokenOption = None,
    threads: ThreadsOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List all that differs.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """What differs between two models, whatever their layouts.

    Exits with 0 where it is the same model, in other types too, and 1 where it is not.
    """
    result = call("diff", locals(), doing="comparing", unit="values")
    show(
        result,
        as_json,
        lambda difference: print_difference(difference, verbose=verbose),
        verdict=result.verdict,
        quiet=quiet,
    )
    raise typer.Exit(RIGHT if result.same else WRONG)


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


def _backends(by_type: "dict[str, dict[str, Cell]]") -> dict[str, dict[str, dict[str, str]]]:
    return {
        name: {backend: {"speed": cell.speed.value, "source": cell.source} for backend, cell in cells.items()}
        for name, cells in by_type.items()
    }


def families(as_json: JsonOption = False) -> None:
    """List the model families, and what is refused and why."""
    from bitconv.commands.families import catalogue

    show(catalogue(as_option), as_json, print_catalogue)


def doctor(as_json: JsonOption = False) -> None:
    """What there is on this machine: versions, instruction sets, extras, runners, caches."""
    show(call("doctor", {}), as_json, print_surroundings)
