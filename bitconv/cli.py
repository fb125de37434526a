"""The command line: arguments, printing, exit codes.

What is imported late, and annotations that are evaluated at once and not by typer again and again, make --help fast.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from bitconv.system.errors import BitconvError, Code, option

if TYPE_CHECKING:
    from bitconv.commands.convert import Conversion
    from bitconv.commands.verify import Verification

RIGHT, WRONG, ERROR = 0, 1, 2


# Of a command line that does not parse; typer exports no name for it.
_UsageError: Any = typer.BadParameter.__base__


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """An error that a user can cause is one line on stderr and exit code 2."""
    try:
        yield
    except BitconvError as error:
        _fail(error.line(_as_option))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "bitconv"
        _fail(f"{error.format_message().removesuffix('.')}; see {command} --help")
    except KeyboardInterrupt:
        _fail("interrupted")


# The parameters of the Python API that the command line calls otherwise.
_NAMES = {"tensor_types": "tensor-type"}


def _as_option(name: str, value: Any) -> str:
    """How users of the command line write a parameter."""
    flag = f"--{_NAMES.get(name, name.replace('_', '-'))}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(str(value))}"


class _Group(TyperGroup):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args:
            return super().parse_args(ctx, args)  # prints the help
        with _one_line_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        with _one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    help="Convert BitNet b1.58 checkpoints to GGUF with packed ternary weights, and prove the file right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # to draw boxes around the help would take longer than all else that --help does
    context_settings={"help_option_names": ["-h", "--help"]},
)


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Hugging Face model: a directory, or an id on the Hub.", show_default=False),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of MODEL on the Hub. Default: main.", show_default=False),
]
TokenOption = Annotated[
    str | None,
    typer.Option(help="For a private or gated MODEL. Default: HF_TOKEN, or hf auth login's.", show_default=False),
]
TernarizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="absmean|absmedian",
        help="Rule for float weights that are not ternary already; a checkpoint without a marker needs it.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", "-t", min=1, help="Threads to use. Default: all cores.", show_default=False)
]
ConventionOption = Annotated[
    str | None,
    typer.Option(
        metavar="multiply|divide",
        help="What weight_scale does to the output, in place of what config.json implies.",
        show_default=False,
    ),
]
KernelConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.ini",
        help="TL1 and TL2: the kernel_config.ini that the runner was built with.",
        show_default=False,
    ),
]
I2SOrderOption = Annotated[
    str | None,
    typer.Option(
        metavar="arm64|row4",
        help="The file is I2_S in the byte order of such a build; nothing in a file tells.",
        show_default=False,
    ),
]
RunnerOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Runner to write for; see bitconv runners. Default: the type's.", show_default=False
    ),
]
ScaleInBlocksOption = Annotated[
    bool, typer.Option("--scale-in-blocks", help="tq1_0, tq2_0, q2_0: scales rounded to float16, no .scale tensors.")
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite OUT.gguf.")]
PreOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="tokenizer.ggml.pre, in place of the pre-tokenizer recognised from tokenizer.json.",
        show_default=False,
    ),
]
FilePreOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Pre-tokenizer's name, in place of IN.gguf's tokenizer.ggml.pre.", show_default=False
    ),
]
WindowOption = Annotated[int, typer.Option(min=2, help="Tokens predicted from each other, a window at a time.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def convert(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.", show_default=False)],
    type: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Type of the ternary tensors: i2_s, tl1, tl2, tq1_0, tq2_0, q2_0, iq2_bn, iq1_bn; auto for the "
            "smallest exact one; f32, f16, bf16 for the unpacked model.",
        ),
    ] = "i2_s",
    revision: RevisionOption = None,
    token: TokenOption = None,
    runner: RunnerOption = None,
    embed_type: Annotated[
        str, typer.Option(metavar="f16|f32|bf16", help="Type of the embedding and an untied head.")
    ] = "f16",
    fallback: Annotated[
        str, typer.Option(metavar="error|f16|bf16|f32|q8_0", help="For tensors whose shape or scales TYPE cannot take.")
    ] = "error",
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Type of the tensors whose name the regular expression is found in. Can be given again.",
            show_default=False,
        ),
    ] = None,
    kernel_config: KernelConfigOption = None,
    scale_in_blocks: ScaleInBlocksOption = False,
    scale_convention: ConventionOption = None,
    ternarize: TernarizeOption = None,
    pre: PreOption = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint to a GGUF file."""
    from bitconv.commands.convert import convert as run

    with _progress("converting") as progress:
        result = run(
            model,
            output,
            revision=revision,
            token=token,
            type=type,
            runner=runner,
            embed_type=embed_type,
            fallback=fallback,
            tensor_types=[_pair(text) for text in tensor_type or ()],
            kernel_config=kernel_config,
            scale_in_blocks=scale_in_blocks,
            scale_convention=scale_convention,
            ternarize=ternarize,
            pre=pre,
            threads=threads,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        _print_json(dataclasses.asdict(result))
    else:
        _print_conversion(result)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to check.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Checkpoint that the file must equal.", show_default=False),
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    scale_convention: ConventionOption = None,
    ternarize: TernarizeOption = None,
    pre: PreOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are faults.")] = False,
    threads: ThreadsOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print one line a tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a GGUF file: exit 0 if it is right, 1 if it is wrong, 2 if it cannot be judged."""
    from bitconv.commands.verify import verify as run

    with _progress("verifying") as progress:
        result = run(
            file,
            against=against,
            revision=revision,
            token=token,
            scale_convention=scale_convention,
            ternarize=ternarize,
            pre=pre,
            kernel_config=kernel_config,
            i2_s_order=i2_s_order,
            strict=strict,
            threads=threads,
            progress=progress,
        )
    if as_json:
        _print_json({**dataclasses.asdict(result), "right": result.right})
    else:
        _print_verification(result, verbose=verbose)
    raise typer.Exit(RIGHT if result.right else WRONG)


@app.command()
def repack(
    file: Annotated[Path, typer.Argument(metavar="IN.gguf", help="File to read.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.", show_default=False)],
    type: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Type of the ternary tensors, as for convert; not auto.", show_default=False),
    ],
    runner: RunnerOption = None,
    kernel_config: KernelConfigOption = None,
    from_kernel_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.ini", help="The same for a TL1 or TL2 IN.gguf without recorded tiles.", show_default=False
        ),
    ] = None,
    from_i2_s_order: Annotated[
        str | None,
        typer.Option(
            metavar="arm64|row4", help="IN.gguf is I2_S in the byte order of such a build.", show_default=False
        ),
    ] = None,
    scale_in_blocks: ScaleInBlocksOption = False,
    pre: FilePreOption = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change the layout or the runner of a GGUF file, without the checkpoint and without a changed trit."""
    from bitconv.commands.repack import repack as run

    with _progress("repacking") as progress:
        result = run(
            file,
            output,
            type=type,
            runner=runner,
            kernel_config=kernel_config,
            from_kernel_config=from_kernel_config,
            from_i2_s_order=from_i2_s_order,
            scale_in_blocks=scale_in_blocks,
            pre=pre,
            threads=threads,
            force=force,
            progress=progress,
        )
    if as_json:
        _print_json(dataclasses.asdict(result))
        return
    changes = sorted({f"{tensor.from_type} to {tensor.type}" for tensor in result.tensors})
    print(f"{len(result.tensors)} tensors, {', '.join(changes)}, architecture {result.architecture}")
    worst = max((tensor.scale_error for tensor in result.tensors), default=0.0)
    print("scales: exact" if worst == 0 else f"scales: rounded, off by {worst:.2g} at most")
    _print_first("warning  ", [f"the input's {line}" for line in result.warnings])
    _print_output(result.output, result.size, result.run, result.runner)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="IN.gguf", help="File to read.", show_default=False)],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Model directory to write.", show_default=False)],
    pre: FilePreOption = None,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a DIR that holds nothing but an export.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a GGUF file as a packed Hugging Face model directory, which transformers loads."""
    from bitconv.commands.export import export as run

    with _progress("exporting") as progress:
        result = run(
            file,
            directory,
            pre=pre,
            kernel_config=kernel_config,
            i2_s_order=i2_s_order,
            threads=threads,
            force=force,
            progress=progress,
        )
    if as_json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"{result.architecture}, {len(result.tensors)} tensors, to be run in {result.dtype}")
    if not result.exact_scales:
        print(f"scales: exact in the files; {result.dtype} cannot hold them, so transformers rounds them when it loads")
    _print_first("warning  ", [f"the input's {line}" for line in result.warnings])
    print(f"{result.directory}: {result.size:,} bytes of tensors; {', '.join(result.files)}")


@app.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to run.", show_default=False)],
    text: Annotated[Path, typer.Option(metavar="TEXT.txt", help="Text to predict, UTF-8.", show_default=False)],
    window: WindowOption = 256,
    batch: Annotated[int, typer.Option(min=1, help="Tokens computed at once; 1 is as slow as generating.")] = 256,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Stop after so many tokens of the text.", show_default=False)
    ] = None,
    float_activations: Annotated[
        bool, typer.Option("--float-activations", help="What a runner computes that does not round activations.")
    ] = False,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of a GGUF file on a text, in exact BitNet arithmetic over its packed bytes."""
    from bitconv.commands.evaluate import evaluate as run

    with _progress("evaluating", unit="tokens") as progress:
        result = run(
            file,
            text,
            window=window,
            batch=batch,
            max_tokens=max_tokens,
            float_activations=float_activations,
            kernel_config=kernel_config,
            i2_s_order=i2_s_order,
            threads=threads,
            progress=progress,
        )
    if as_json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"perplexity {result.perplexity:.4f}, {result.nll:.6f} nats a token")
    print(f"{result.scored} of {result.tokens} tokens scored, {result.tokens_per_second:.1f} a second")


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to run.", show_default=False)],
    model: ModelArgument,
    revision: RevisionOption = None,
    token: TokenOption = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="TEXT.txt", help="Text to predict, UTF-8. Default: a short one.", show_default=False),
    ] = None,
    window: WindowOption = 256,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a GGUF file and its checkpoint (in PyTorch) on the same text: exit 0 if they agree, 1 if not."""
    from bitconv.commands.compare import compare as run

    with _progress("comparing", unit="tokens") as progress:
        result = run(
            file,
            model,
            revision=revision,
            token=token,
            text=text,
            window=window,
            kernel_config=kernel_config,
            i2_s_order=i2_s_order,
            threads=threads,
            progress=progress,
        )
    if as_json:
        _print_json({**dataclasses.asdict(result), "disagreements": result.disagreements, "agrees": result.agrees})
    else:
        for name, value in dataclasses.asdict(result).items():
            print(f"{name.replace('_', ' ')}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
        for disagreement in result.disagreements:
            print(f"WRONG  {disagreement}")
        print(f"{file}: {'agrees with' if result.agrees else 'DISAGREES with'} {model}")
    raise typer.Exit(RIGHT if result.agrees else WRONG)


@app.command("kernel-config")
def kernel_config(
    model: ModelArgument,
    type: Annotated[str, typer.Option(metavar="tl1|tl2", help="Layout to build kernels for.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.ini", help="File to write.")] = Path(
        "kernel_config.ini"
    ),
    revision: RevisionOption = None,
    token: TokenOption = None,
    leave_out: Annotated[bool, typer.Option("--leave-out", help="Leave out shapes that have no legal tile.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite FILE.ini.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the kernel_config.ini that bitnet.cpp must be built with to run TL1 or TL2 files of a model."""
    from bitconv.commands.kernel_config import kernel_config as run

    result = run(model, output, type=type, revision=revision, token=token, leave_out=leave_out, force=force)
    if as_json:
        _print_json(dataclasses.asdict(result))
        return
    for shape in result.shapes:
        rows, columns = shape.shape
        print(f"{rows}x{columns}: {shape.tile}{'' if shape.shipped else ', chosen by bitconv'}")
    for left_out, reason in result.left_out.items():
        print(f"{left_out}: left out: {reason}")
    print(f"{result.output}: for --kernel-config. In the directory of bitnet.cpp, build a runner with the same tiles:")
    if result.generator_entry is not None:
        print(f"  add to ModelShapeDict in utils/codegen_{result.type}.py:  {result.generator_entry}")
    for command in (result.generator, *result.build):
        print(f"  {command}")
    print("not with its setup_env.py, which would put the kernels of its own list of models over these")


@app.command()
def dummy(
    directory: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Model directory to write.", show_default=False)],
    shape: Annotated[
        str,
        typer.Option(
            metavar="SHAPE",
            help="2b-4t, llama3-8b, large, 3b, falcon3-10b, 100b, or LAYERSxHIDDENxFFN[xHEADS[xKV_HEADS[xVOCAB]]] "
            "for a model like 2b-4t, with a vocabulary of 1024 tokens where none is given.",
            show_default=False,
        ),
    ],
    stored: Annotated[
        str, typer.Option(metavar="bf16|f32|packed", help="How the ternary matrices are stored.", show_default=False)
    ],
    seed: Annotated[int, typer.Option(min=0, help="Other random weights.")] = 0,
    layers: Annotated[int | None, typer.Option(min=1, help="In place of the shape's.", show_default=False)] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint of a real model's exact sizes with random weights, for benchmarks and planning."""
    from bitconv.commands.dummy import dummy as run

    with _progress("writing") as progress:
        result = run(
            directory, shape=shape, stored=stored, seed=seed, layers=layers, threads=threads, progress=progress
        )
    if as_json:
        _print_json(dataclasses.asdict(result))
        return
    print(f"{result.family}, {result.parameters:,} random parameters, {result.stored}")
    print(f"{result.directory}: {result.size:,} bytes of tensors; {', '.join(result.files)}")


@app.command()
def runners(as_json: JsonOption = False) -> None:
    """List the runners: the architectures and types that each one computes right."""
    from bitconv.runners import RUNNERS

    if as_json:
        _print_json([dataclasses.asdict(runner) for runner in RUNNERS])
        return
    for runner in RUNNERS:
        print(f"{runner.name} ({runner.versions})")
        graphs = ", ".join(f"{name} ({activation})" for name, activation in runner.activations.items())
        print(f"  architectures: {graphs}")
        print(f"  types:         {', '.join(runner.types)}")
        for type_name, columns in runner.min_columns.items():
            print(f"  {type_name + ':':14} {columns} columns or more")
        if runner.scale_tensors:
            print("  exact scales:  in float32 .scale tensors beside tq1_0, tq2_0, q2_0")
        if runner.expert_types:
            print(f"  experts:       stacked, in {', '.join(runner.expert_types)}")
        for note in runner.notes:
            print(f"  note:          {note}")


@app.command()
def families(as_json: JsonOption = False) -> None:
    """List the model families with the types and runners of each, and what is refused and why."""
    from bitconv.commands.families import catalogue

    listed = catalogue(_as_option)
    if as_json:
        _print_json(dataclasses.asdict(listed))
        return
    for family in listed.families:
        print(f"{family.name} ({family.checkpoints})")
        print(f"  recognised by:   {family.recognised}")
        print(f"  weights:         {family.weights}")
        print(f"  architecture:    {family.architecture}")
        for runner, types in family.types.items():
            print(f"  {runner + ':':16} {', '.join(types)}")
    for refusal in listed.refusals:
        print(f"refused: {refusal.name}")
        print(f"  recognised by:   {refusal.recognised}")
        print(f"  because:         {refusal.reason}; {refusal.way_out}")


def _pair(text: str) -> tuple[str, str]:
    pattern, equals, type_name = text.rpartition("=")
    if not (pattern and equals):
        raise BitconvError(f"{option('tensor_types', text)}: expected PATTERN=TYPE", code=Code.USAGE)
    return pattern, type_name


def _version(value: bool) -> None:
    if value:
        from bitconv import __version__

        print(f"bitconv {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _interrupt)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            app()
    finally:
        # When all is done, so that nothing about stdout can stop the work. Only a result that is lost is an error.
        cause = _write(sys.stdout, printed.getvalue())
        if cause is not None:
            _fail(f"stdout: {cause}")


def _interrupt(number: int, frame: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a closed terminal sends several, and one must not end the cleaning up
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    _write(sys.stderr, f"bitconv: error: {' '.join(message.split())}\n")
    sys.exit(ERROR)


def _write(stream: TextIO | None, text: str) -> str | None:
    """Write to stdout or stderr. Returns why the text is lost, if it is.

    What the stream cannot encode is escaped, and a reader that has gone, as `head` does, has read all that it wants.
    """
    if stream is None:
        return None
    try:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        stream.flush()
        return None
    except KeyboardInterrupt:
        cause: str | None = "interrupted"
    except OSError as error:
        cause = None if isinstance(error, BrokenPipeError) else error.strerror
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # where the rest goes when Python ends
    return cause


@contextlib.contextmanager
def _progress(what: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr where that is a terminal, once there is progress: a download shows its own."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

    counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what)

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()

    try:
        yield progress
    finally:
        bar.stop()


def _print_json(value: object) -> None:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))  # in ASCII, which every stdout takes as it is


def _finite(value: Any) -> Any:
    """With None, which is null, for the floats that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_conversion(result: "Conversion") -> None:
    by_type: dict[str, list[int]] = {}
    for tensor in result.tensors:
        by_type.setdefault(tensor.type, []).append(tensor.nbytes)
    if result.dry_run:
        for tensor in result.tensors:
            shape = "x".join(map(str, tensor.shape))
            print(f"{tensor.name:32} {tensor.type:>6} {shape:>14} {tensor.nbytes:>12,} bytes")
    print(f"{result.family}, architecture {result.architecture}, for {result.runner}")
    if result.reason is not None:
        print(result.reason)
    for type_name, sizes in by_type.items():
        print(f"{type_name:>6}: {len(sizes)} tensors, {sum(sizes):,} bytes")
    for tensor in result.tensors:
        if tensor.fallback is not None:
            print(f"fell back to {tensor.type}: {tensor.name}: {tensor.fallback}")
    was_ternary = [tensor.was_ternary for tensor in result.tensors if tensor.was_ternary is not None]
    if any(was_ternary):
        others = "" if all(was_ternary) else "; the others were made so, and a checkpoint of both kinds is unusual"
        count = f"{sum(was_ternary)} of {len(was_ternary)} projections"
        print(f"{count} are stored as floats that are ternary already, and are kept as they are{others}")
    if result.exact_scales:
        several = any(tensor.group is not None for tensor in result.tensors)
        print("scales: exact, several a tensor" if several else "scales: exact, in float32")
    else:
        worst = max((tensor.scale_error or 0.0 for tensor in result.tensors), default=0.0)
        print(f"scales: rounded to the type's own floats{'' if result.dry_run else f', off by {worst:.2g} at most'}")
    if result.dry_run:
        print(f"{result.output}: {result.size:,} bytes would be written")
    else:
        _print_output(result.output, result.size, result.run, result.runner)


def _print_output(output: str, size: int, run: str, runner: str) -> None:
    print(f"{output}: {size:,} bytes")
    print(f"check it:  bitconv verify {shlex.quote(output)}")
    print(f"run it:    {run}   ({runner})")


def _print_verification(result: "Verification", *, verbose: bool) -> None:
    if verbose:
        for tensor in result.tensors:
            shape = "x".join(map(str, tensor.shape))
            scale = "" if tensor.scale is None else f"scale {tensor.scale:.9g}"
            scale = scale if tensor.group is None else f"a scale for {tensor.group} columns"
            verdict = "; ".join(tensor.faults) or "ok"
            print(f"{tensor.name:32} {tensor.type:>5} {shape:>14}  {scale:24} {verdict}")
    if result.checked:
        print("checked:")
        for what, count in result.checked.items():
            of = "" if count.passed == count.of else f" of {count.of:,}"
            print(f"  {f'{count.passed:,}{of}':>27}  {what}")
    if result.digests is not None:
        print("sha256, the same in every layout:")
        print(f"  {result.digests.trits}  trits")
        print(f"  {result.digests.trits_and_scales}  trits and scales")
    print("not covered:")
    for what in result.not_covered:
        print(f"  {what}")
    _print_first("warning  ", [*result.warnings, *(f"{t.name}: {text}" for t in result.tensors for text in t.warnings)])
    _print_first("WRONG  ", [*result.faults, *(f"{t.name}: {text}" for t in result.tensors for text in t.faults)])
    against = f", equal to {result.against}" if result.against else ""
    print(f"{result.file}: {f'right{against}' if result.right else 'WRONG'}")


def _print_first(head: str, lines: list[str]) -> None:
    from bitconv.commands.verify import MAX_FAULTS

    for line in lines[:MAX_FAULTS]:
        print(f"{head}{line}")
    if len(lines) > MAX_FAULTS:
        print(f"{head}and {len(lines) - MAX_FAULTS:,} more")
