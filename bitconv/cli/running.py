"""The commands that run a GGUF file: eval, generate, compare."""

import itertools
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bitconv.cli.options import (
    I2SOrderOption,
    JsonOption,
    KernelConfigOption,
    ModelArgument,
    QuietOption,
    RevisionOption,
    ThreadsOption,
    TokenOption,
    WindowOption,
    option,
)
from bitconv.cli.process import RIGHT, WRONG
from bitconv.cli.rendering import print_comparison, print_evaluation, print_trials, show
from bitconv.cli.streams import write_now
from bitconv.cli.verbs import call

FileArgument = Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to run.", show_default=False)]


def evaluate(
    file: FileArgument,
    text: Annotated[Path, option("--text", metavar="TEXT.txt", help="Text to predict, UTF-8.")],
    window: WindowOption = 256,
    stride: Annotated[
        int | None,
        option(
            "--stride",
            metavar="N",
            min=1,
            help="Tokens between the starts of windows; with less than --window they overlap. Default: --window.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Tokens computed at once; 1 is as slow as generating.")
    ] = 256,
    max_tokens: Annotated[
        int | None, option("--max-tokens", metavar="N", min=2, help="Stop after so many tokens of the text.")
    ] = None,
    float_activations: Annotated[
        bool, typer.Option("--float-activations", help="What a runner computes that does not round activations.")
    ] = False,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of a GGUF file on a text.

    In exact BitNet arithmetic over its packed bytes.
    """
    show(call("evaluate", locals(), doing="evaluating", unit="tokens"), as_json, print_evaluation)


def generate(
    file: FileArgument,
    prompt: Annotated[str, option("--prompt", "-p", metavar="TEXT", help="Text to continue, as it stands.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="TEXT is what a user says: the file's chat template is put around it.")
    ] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Tokens to generate.")] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="0 takes the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the choice among tokens.", show_default=True)
    ] = 0,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Continue a text, or answer it, by the model in a GGUF file, without a runner."""
    pieces = call("generate", locals())
    for piece in itertools.chain([] if chat else [prompt], pieces, ["\n"]):
        write_now(piece)


def compare(
    file: FileArgument,
    model: ModelArgument,
    revision: RevisionOption = None,
    token: TokenOption = None,
    text: Annotated[
        Path | None, option("--text", metavar="TEXT.txt", help="Text to predict, UTF-8. Default: a short one.")
    ] = None,
    window: WindowOption = 256,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a GGUF file and its checkpoint on the same text.

    The checkpoint runs in PyTorch. Exits with 0 where they agree, 1 where not.
    """
    result = call("compare", locals(), doing="comparing", unit="tokens")
    render = partial(print_comparison, file=file, model=model)
    show(result, as_json, render, disagreements=result.disagreements, agrees=result.agrees, quiet=quiet)
    raise typer.Exit(RIGHT if result.agrees else WRONG)


def try_runner(
    file: FileArgument,
    runner: Annotated[
        str | None,
        option(
            "--runner",
            metavar="PATH|URL",
            help="llama-server, llama-cli, llama-completion, llama-perplexity or llama-tokenize of any fork, or a "
            "running server's address. Default: those that bitconv doctor finds.",
        ),
    ] = None,
    model: Annotated[
        str | None, option("--model", metavar="NAME", help="The file's name at a server of several models.")
    ] = None,
    text: Annotated[
        Path | None, option("--text", metavar="TEXT.txt", help="Text to start with, UTF-8. Default: a short one.")
    ] = None,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, help="For each question, and to load the file.")
    ] = 300,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a GGUF file in your own runner, and tell whether it computes the model.

    Where it does not, the known fault that has its numbers is named. Exits with 0 where it is right, 1 where not.
    """
    result = call("try_runner", locals(), doing="looking for the fault", unit="runs")
    show(result, as_json, print_trials, quiet=quiet, right=result.right)
    raise typer.Exit(RIGHT if result.right else WRONG)
