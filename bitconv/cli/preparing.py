"""The commands that make what others need: kernel-config, dummy."""

from pathlib import Path
from typing import Annotated

import typer

from bitconv import choices
from bitconv.cli.options import (
    JsonOption,
    ModelArgument,
    QuietOption,
    RevisionOption,
    ThreadsOption,
    TokenOption,
    one_of,
    option,
)
from bitconv.cli.rendering import print_dummy, print_kernel_config, show
from bitconv.cli.verbs import call


def _shapes(incomplete: str) -> list[str]:
    from bitconv.commands.dummy import SHAPES

    return [name for name in SHAPES if name.startswith(incomplete)]


def kernel_config(
    model: ModelArgument,
    type: Annotated[str, one_of(choices.TILED_TYPE, "--type", "Layout to build kernels for.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.ini", help="File to write.")] = Path(
        "kernel_config.ini"
    ),
    revision: RevisionOption = None,
    token: TokenOption = None,
    leave_out: Annotated[bool, typer.Option("--leave-out", help="Leave out shapes that have no legal tile.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite FILE.ini.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what bitnet.cpp is built with for TL1 or TL2.

    A kernel_config.ini with the tiles of a model, whose files run in no other build.
    """
    show(call("kernel_config", locals()), as_json, print_kernel_config)


def dummy(
    directory: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Model directory to write.", show_default=False)],
    shape: Annotated[
        str,
        option(
            "--shape",
            metavar="SHAPE",
            help="2b-4t, llama3-8b, large, 3b, falcon3-10b, 100b, or LAYERSxHIDDENxFFN[xHEADS[xKV_HEADS[xVOCAB]]] "
            "for a model like 2b-4t, with a vocabulary of 1024 tokens where none is given.",
            autocompletion=_shapes,
        ),
    ],
    stored: Annotated[str, one_of(choices.STORED, "--stored", "How the ternary matrices are stored.")],
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Other random weights.")] = 0,
    layers: Annotated[int | None, option("--layers", metavar="N", min=1, help="In place of the shape's.")] = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint of random weights.

    In the exact sizes of a real model, for benchmarks and planning.
    """
    show(call("dummy", locals(), doing="writing"), as_json, print_dummy, quiet=quiet)
