"""The options that several commands have.

Every option is declared by its name: typer 0.27.0 to 0.27.2 take a metavar for one where it is the parameter's own.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bitconv import choices
from bitconv.choices import Choice


def one_of(choice: Choice, name: str, help: str, *, metavar: str | None = None, show_default: bool = False) -> Any:
    """An option that takes a word of several. metavar: in place of all the words."""
    return typer.Option(
        name,
        parser=choice.parse,
        autocompletion=choice.complete,
        metavar=metavar or "|".join(choice.words),
        help=help,
        show_default=show_default,
    )


def option(*names: str, **settings: Any) -> Any:
    """An option without a default to show."""
    return typer.Option(*names, show_default=False, **settings)


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Hugging Face model: a directory, or an id on the Hub.", show_default=False),
]
AgainstOption = Annotated[str | None, option("--against", metavar="MODEL", help="Checkpoint that the file must equal.")]
RevisionOption = Annotated[
    str | None,
    option("--revision", metavar="NAME", help="Branch, tag or commit of MODEL on the Hub. Default: main."),
]
TokenOption = Annotated[
    str | None,
    option("--token", metavar="TEXT", help="For a private or gated MODEL. Default: HF_TOKEN, or hf auth login's."),
]
TernarizeOption = Annotated[
    str | None,
    one_of(
        choices.TERNARIZE,
        "--ternarize",
        "Rule for float weights that are not ternary already; a checkpoint without a marker needs it.",
    ),
]
GroupOption = Annotated[
    int | None,
    option("--group", metavar="N", help="With --ternarize absmax: columns that share a scale. Default: 128."),
]
ThreadsOption = Annotated[
    int | None,
    option(
        "--threads",
        "-t",
        metavar="N",
        min=1,
        help="Threads to use; files are worked on by 8 at most. Default: all cores.",
    ),
]
ConventionOption = Annotated[
    str | None,
    one_of(
        choices.SCALE_CONVENTION,
        "--scale-convention",
        "What weight_scale does to the output, in place of what config.json implies.",
    ),
]
KernelConfigOption = Annotated[
    Path | None,
    option(
        "--kernel-config",
        metavar="FILE.ini",
        help="TL1 and TL2: the kernel_config.ini that the runner was built with.",
    ),
]
I2SOrderOption = Annotated[
    str | None,
    one_of(
        choices.I2_S_ORDER,
        "--i2-s-order",
        "Byte order of an I2_S file that does not record it. Default: published.",
    ),
]
RunnerOption = Annotated[
    str | None,
    one_of(
        choices.RUNNER,
        "--runner",
        "Runner to write for; see bitconv runners. Default: the type's.",
        metavar="NAME",
    ),
]
BackendOption = Annotated[
    str | None,
    one_of(
        choices.BACKEND,
        "--backend",
        "Processor that will run it: auto takes the fastest exact type there; see bitconv runners.",
        metavar="NAME",
    ),
]
ScaleInBlocksOption = Annotated[
    bool,
    typer.Option("--scale-in-blocks", help="Types with scales in their blocks: rounded to float16, no .scale tensors."),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite OUT.gguf.")]
PreOption = Annotated[
    str | None,
    option(
        "--pre",
        metavar="NAME",
        help="tokenizer.ggml.pre, in place of the pre-tokenizer recognised from tokenizer.json.",
    ),
]
FilePreOption = Annotated[
    str | None,
    option("--pre", metavar="NAME", help="Pre-tokenizer's name, in place of IN.gguf's tokenizer.ggml.pre."),
]
WindowOption = Annotated[
    int, typer.Option("--window", metavar="N", min=2, help="Tokens predicted from each other, a window at a time.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, and print nothing: the exit code tells.")
]
