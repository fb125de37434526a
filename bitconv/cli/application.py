"""The typer app: its group of commands, and the options before them.

Annotations here and in the commands' files are evaluated at once and not by typer again and again, and what takes long
to import is imported late: both make --help fast.
"""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import typer

from bitconv.cli.converting import audit, convert, export, repack, verify
from bitconv.cli.help import Group
from bitconv.cli.listing import diff, doctor, families, inspect, report, runners
from bitconv.cli.preparing import dummy, kernel_config
from bitconv.cli.process import failures_end_in_one_line
from bitconv.cli.running import compare, evaluate, generate, try_runner
from bitconv.system.errors import BitconvError, Code

# Of a command line that does not parse; typer exports no name for it.
_UsageError: Any = typer.BadParameter.__base__


class _Group(Group):
    functions: ClassVar = {
        "convert": (convert, "bitconv convert microsoft/bitnet-b1.58-2B-4T-bf16 bitnet.gguf --type tq2_0"),
        "verify": (verify, "bitconv verify bitnet.gguf --against microsoft/bitnet-b1.58-2B-4T-bf16"),
        "inspect": (inspect, "bitconv inspect hf://microsoft/bitnet-b1.58-2B-4T-gguf/ggml-model-i2_s.gguf"),
        "report": (report, "bitconv report bitnet.gguf -o bitnet.html"),
        "diff": (diff, "bitconv diff bitnet-i2_s.gguf bitnet-tq2_0.gguf"),
        "audit": (audit, "bitconv audit microsoft/bitnet-b1.58-2B-4T-bf16 --against microsoft/bitnet-b1.58-2B-4T"),
        "repack": (repack, "bitconv repack bitnet-i2_s.gguf bitnet-tq1_0.gguf --type tq1_0"),
        "export": (export, "bitconv export bitnet.gguf model_dir"),
        "eval": (evaluate, "bitconv eval bitnet.gguf --text wiki.test.raw --max-tokens 4096"),
        "compare": (compare, "bitconv compare bitnet.gguf microsoft/bitnet-b1.58-2B-4T-bf16"),
        "generate": (generate, "bitconv generate bitnet.gguf -p 'The capital of France is' -n 16"),
        "try": (try_runner, "bitconv try bitnet.gguf --runner llama.cpp/build/bin/llama-server"),
        "kernel-config": (kernel_config, "bitconv kernel-config microsoft/bitnet-b1.58-2B-4T-bf16 --type tl2"),
        "dummy": (dummy, "bitconv dummy model_dir --shape 2b-4t --stored packed"),
        "runners": (runners, "bitconv runners"),
        "families": (families, "bitconv families"),
        "doctor": (doctor, "bitconv doctor"),
    }

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args:
            return super().parse_args(ctx, args)  # prints the help
        ctx.meta["json"] = "--json" in args
        with _failures(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        with _failures(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _failures(ctx: typer.Context) -> Iterator[None]:
    """What ends in one line does so before typer prints it in several."""
    with failures_end_in_one_line(ctx.meta["json"]):
        try:
            yield
        except _UsageError as error:
            command = error.ctx.command_path if error.ctx else "bitconv"
            cause = error.format_message().removesuffix(".")
            raise BitconvError(cause, code=Code.USAGE, way_out=f"see {command} --help") from None


app = typer.Typer(
    cls=_Group,
    help="Convert BitNet b1.58 checkpoints to GGUF with packed ternary weights, and prove the file right.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # to draw boxes around the help would take longer than all else that --help does
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from bitconv import __version__

        print(f"bitconv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
