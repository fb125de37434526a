"""A page about a GGUF file, in one file that needs nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path

from bitconv import __version__
from bitconv.commands.inspect import InspectedTensor, Overview, inspect
from bitconv.commands.verify import Verification, verify
from bitconv.gguf import read_gguf
from bitconv.system.errors import BitconvError, Code, one_line, reports_system_errors
from bitconv.system.jobs import Progress
from bitconv.system.output import check_output, replacing
from bitconv.system.rawio import write_at
from bitconv.system.results import Result


@dataclass(frozen=True, repr=False)
class Report(Result):
    """What was written.

    Attributes:
        size: In bytes.
        right: What verify says of the file; None where it cannot judge it.
    """

    output: Path
    size: int
    right: bool | None


@reports_system_errors
def report(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a page about a GGUF file: what `inspect` tells, the verdict of `verify`, and plots.

    It is one HTML file that loads nothing from anywhere.

    Args:
        file: A GGUF file, bitconv's or another's.
        output: The file to write.
        against: As `verify` takes it.
        revision: As `verify` takes it.
        token: As `verify` takes it.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None.
        force: Overwrite output.
        progress: Called with what is done and all there is of each pass: tensors that are counted, bytes that are
            checked.

    Returns:
        What was written.

    Raises:
        BitconvError: Where the file is no GGUF file, or the checkpoint cannot be read.

    Example:
        >>> bitconv.report("llama.gguf", "llama.html").right
        True
    """
    target = Path(output)
    check_output(target, force=force, inputs=(file, kernel_config))
    read_gguf(Path(file))  # of no model directory is there a verdict
    try:
        from jinja2 import Environment

        from bitconv.commands.reporting import plots
    except ImportError as error:
        raise BitconvError(
            f"{error.name} is missing, which report needs", code=Code.PACKAGE, way_out="pip install 'bitconv[report]'"
        ) from None
    overview = inspect(file, kernel_config=kernel_config, i2_s_order=i2_s_order, threads=threads, progress=progress)
    verdict, obstacle = None, None
    try:
        verdict = verify(
            file,
            against=None if against is None else os.fspath(against),
            revision=revision,
            token=token,
            kernel_config=kernel_config,
            i2_s_order=i2_s_order,
            threads=threads,
            progress=progress,
        )
    except BitconvError as error:
        if against is not None:
            raise
        obstacle = one_line(str(error))
    counted = [tensor for tensor in overview.tensors if tensor.shares and tensor.name.startswith("blk.")]
    drawn = {"Size by part": plots.size_by_part(overview.parts)} if overview.parts else {}
    if counted:
        drawn |= {
            "Share of zeros": plots.heat_map(counted, _zeros, "viridis"),
            "More +1 than -1": plots.heat_map(counted, _balance, "RdBu", centred=True),
            "Scales by layer": plots.scales_by_layer(counted),
        }
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        resources.files("bitconv.commands.reporting").joinpath("page.html").read_text("utf-8")
    )
    text = page.render(
        overview=overview,
        verdict=verdict,
        obstacle=obstacle,
        plots=drawn,
        rows=_rows(overview, verdict),
        version=__version__,
    ).encode("utf-8", "replace")
    with replacing(target, len(text), force=force) as descriptor:
        write_at(descriptor, text, 0)
    return Report(target, len(text), None if verdict is None else verdict.right)


def _zeros(tensor: InspectedTensor) -> float:
    assert tensor.shares is not None
    return 100 * tensor.shares[1]


def _balance(tensor: InspectedTensor) -> float:
    """Of the trits that are not 0, in percent."""
    assert tensor.shares is not None
    minus, _, plus = tensor.shares
    return 100 * (plus - minus) / max(plus + minus, 1e-9)


def _rows(overview: Overview, verdict: Verification | None) -> list[tuple[InspectedTensor, int, tuple[str, ...]]]:
    """Tensors, how many weights they have, and their faults."""
    faults = {} if verdict is None else {tensor.name: tensor.faults for tensor in verdict.tensors}
    return [(tensor, prod(tensor.shape), faults.get(tensor.name, ())) for tensor in overview.tensors]
