"""The commands that make, check and change GGUF files: convert, verify, audit, repack, export."""

import itertools
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bitconv import choices
from bitconv.cli.options import (
    AgainstOption,
    BackendOption,
    ConventionOption,
    FilePreOption,
    ForceOption,
    GroupOption,
    I2SOrderOption,
    JsonOption,
    KernelConfigOption,
    ModelArgument,
    PreOption,
    QuietOption,
    RevisionOption,
    RunnerOption,
    ScaleInBlocksOption,
    TernarizeOption,
    ThreadsOption,
    TokenOption,
    one_of,
    option,
)
from bitconv.cli.process import RIGHT, WRONG, as_option
from bitconv.cli.rendering import (
    print_audit,
    print_conversion,
    print_export,
    print_repacking,
    print_verification,
    show,
)
from bitconv.cli.verbs import call
from bitconv.layouts import DENSE_TYPES, FLOATS, PACKED
from bitconv.system.errors import BitconvError, Code
from bitconv.system.errors import option as parameter

# By these verify too decides how a checkpoint is read.
_READ_SO = ("revision", "scale_convention", "ternarize", "pre")


def _pair(text: str) -> tuple[str, str]:
    pattern, equals, type_name = text.rpartition("=")
    if not (pattern and equals):
        raise BitconvError(f"{parameter('tensor_types', text)}: expected PATTERN=TYPE", code=Code.USAGE)
    return pattern, type_name


def convert(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.", show_default=False)],
    type: Annotated[
        str,
        one_of(
            choices.TYPE,
            "--type",
            f"Type of the ternary tensors: {', '.join(PACKED)}; auto for the smallest exact one; {', '.join(FLOATS)} "
            "for the unpacked model.",
            metavar="TYPE",
            show_default=True,
        ),
    ] = "i2_s",
    revision: RevisionOption = None,
    token: TokenOption = None,
    runner: RunnerOption = None,
    backend: BackendOption = None,
    preset: Annotated[
        str,
        one_of(
            choices.PRESET,
            "--preset",
            "Embedding and untied head: "
            + ", ".join(f"{name} is {type}" for name, type in choices.PRESETS.items())
            + ".",
            show_default=True,
        ),
    ] = "exact",
    embed_type: Annotated[
        str | None,
        one_of(
            choices.EMBED_TYPE,
            "--embed-type",
            f"Type of the embedding and an untied head: {', '.join(DENSE_TYPES)}, or a ternary one. Default: the "
            "preset's.",
            metavar="TYPE",
        ),
    ] = None,
    head_type: Annotated[
        str | None,
        one_of(choices.HEAD_TYPE, "--head-type", "Type of an untied head alone.", metavar="TYPE"),
    ] = None,
    fallback: Annotated[
        str,
        one_of(
            choices.FALLBACK,
            "--fallback",
            "For tensors whose shape or scales TYPE cannot take.",
            show_default=True,
        ),
    ] = "error",
    tensor_types: Annotated[
        list[str] | None,
        option(
            "--tensor-type",
            metavar="PATTERN=TYPE",
            help="Type of the tensors whose name the regular expression is found in. Can be given again.",
        ),
    ] = None,
    kernel_config: KernelConfigOption = None,
    scale_in_blocks: ScaleInBlocksOption = False,
    scale_convention: ConventionOption = None,
    ternarize: TernarizeOption = None,
    group: GroupOption = None,
    pre: PreOption = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    attest: Annotated[
        bool,
        typer.Option("--attest", help="Also write OUT.gguf.intoto.json, which names the sources, and OUT.gguf.sha256."),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint to a GGUF file."""
    given = {**locals(), "tensor_types": [_pair(text) for text in tensor_types or ()]}
    read_so = {name: given[name] for name in _READ_SO if given[name] is not None}
    against = " ".join([shlex.quote(model), *itertools.starmap(as_option, read_so.items())])
    begun = time.monotonic()
    result = call("convert", given, doing="converting")
    render = partial(print_conversion, against=against, seconds=time.monotonic() - begun)
    show(result, as_json, render, quiet=quiet)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="File to check.", show_default=False)],
    against: AgainstOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    kernel_config: KernelConfigOption = None,
    i2_s_order: I2SOrderOption = None,
    scale_convention: ConventionOption = None,
    ternarize: TernarizeOption = None,
    group: GroupOption = None,
    pre: PreOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are faults.")] = False,
    threads: ThreadsOption = None,
    attestation: Annotated[
        Path | None,
        option("--attestation", metavar="FILE.json", help="With --against: make the file again, as this says."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every tensor, what was checked, digests.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a GGUF file, alone or against its checkpoint.

    Exits with 0 where it is right, 1 where it is wrong, 2 where it cannot be judged.
    """
    result = call("verify", locals(), doing="verifying")
    show(result, as_json, partial(print_verification, verbose=verbose), right=result.right, quiet=quiet)
    raise typer.Exit(RIGHT if result.right else WRONG)


def audit(
    model: ModelArgument,
    against: Annotated[
        str | None, option("--against", metavar="RELEASE", help="Packed release of MODEL: a model or a GGUF file.")
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    threads: ThreadsOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print one line a tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Count the codes of float latents that depend on arithmetic, and find the one that made a release."""
    show(call("audit", locals(), doing="auditing"), as_json, partial(print_audit, verbose=verbose))


def repack(
    file: Annotated[Path, typer.Argument(metavar="IN.gguf", help="File to read.", show_default=False)],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.", show_default=False)],
    type: Annotated[
        str,
        one_of(
            choices.REPACKED_TYPE,
            "--type",
            "Type of the ternary tensors, as for convert; not auto.",
            metavar="TYPE",
        ),
    ],
    runner: RunnerOption = None,
    kernel_config: KernelConfigOption = None,
    from_kernel_config: Annotated[
        Path | None,
        option(
            "--from-kernel-config",
            metavar="FILE.ini",
            help="The same for a TL1 or TL2 IN.gguf without recorded tiles.",
        ),
    ] = None,
    from_i2_s_order: Annotated[
        str | None,
        one_of(
            choices.I2_S_ORDER,
            "--from-i2-s-order",
            "Byte order of an I2_S IN.gguf that does not record it.",
        ),
    ] = None,
    embed_type: Annotated[
        str | None,
        one_of(
            choices.EMBED_TYPE,
            "--embed-type",
            "New type of an embedding and an untied head that are floats or ternary.",
            metavar="TYPE",
        ),
    ] = None,
    head_type: Annotated[
        str | None,
        one_of(choices.HEAD_TYPE, "--head-type", "The same for an untied head alone.", metavar="TYPE"),
    ] = None,
    scale_in_blocks: ScaleInBlocksOption = False,
    pre: FilePreOption = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Change the layout or the runner of a GGUF file.

    Without the checkpoint, and without a changed trit.
    """
    show(call("repack", locals(), doing="repacking"), as_json, print_repacking, quiet=quiet)


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
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a GGUF file as a packed model directory.

    It is one of Hugging Face, which transformers loads.
    """
    show(call("export", locals(), doing="exporting"), as_json, print_export, quiet=quiet)
