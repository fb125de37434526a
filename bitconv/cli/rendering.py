"""Results as people read them: a function for each kind, which prints."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bitconv.cli.streams import print_json, print_wrapped
from bitconv.layouts import FLOATS

if TYPE_CHECKING:
    from bitconv.commands.audit import Audit
    from bitconv.commands.compare import Comparison
    from bitconv.commands.convert import Conversion, ConvertedPart
    from bitconv.commands.diff import Difference
    from bitconv.commands.doctor import Surroundings
    from bitconv.commands.dummy import Dummy
    from bitconv.commands.evaluate import Evaluation
    from bitconv.commands.export import Export
    from bitconv.commands.families import Catalogue
    from bitconv.commands.inspect import Overview
    from bitconv.commands.kernel_config import KernelConfig
    from bitconv.commands.repack import Repacking
    from bitconv.commands.reporting import Report
    from bitconv.commands.trial import Trials
    from bitconv.commands.verify import Verification
    from bitconv.runners import Runner

Shown = TypeVar("Shown")


def show(result: Shown, as_json: bool, render: Callable[[Shown], None], *, quiet: bool = False, **more: Any) -> None:
    """Print a result, or nothing. more: what its JSON has beside its fields."""
    if quiet:
        return
    if as_json:
        print_json({**dataclasses.asdict(result), **more})  # type: ignore[call-overload]
    else:
        render(result)


def print_conversion(result: Conversion, *, against: str, seconds: float) -> None:
    """against: the model, and the options by which verify reads it as it was converted, as arguments."""
    if result.dry_run:
        for tensor in result.tensors:
            shape = "x".join(map(str, tensor.shape))
            print(f"{tensor.name:32} {tensor.type:>6} {shape:>14} {tensor.nbytes:>12,} bytes")
    print(f"{result.family}, architecture {result.architecture}, for {result.runner}")
    if result.machines is not None:
        print(f"runs on {result.machines}")
    if result.reason is not None:
        print(result.reason)
    counts = Counter(tensor.type for tensor in result.tensors)
    print(", ".join(f"{type_name}: {_tensors(count)}" for type_name, count in counts.items()))
    _print_parts(result.parts)
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
        print("scales: exact, several a tensor" if several else "scales: exact")
    elif result.dry_run:
        print("scales: rounded to the type's own floats")
    else:
        print(_rounded(max((tensor.scale_error or 0.0 for tensor in result.tensors), default=0.0)))
    for note in result.notes:
        print(f"note: {note}")
    if result.dry_run:
        print(f"{result.output}: {result.size:,} bytes would be written")
    else:
        before = f" of {sum(part.stored_nbytes for part in result.parts):,}"
        took = f", in {seconds:.0f} s" if seconds >= 1 else ""
        _print_output(result.output, f"{result.size:,} bytes{before}{took}", result, f" --against {against}")


def _print_parts(parts: tuple[ConvertedPart, ...]) -> None:
    print(f"{'':12}{'tensors':>8}{'bytes before':>17}{'after':>17}{'bits a weight':>15}  types")
    for part in parts:
        sizes = f"{part.tensors:8}{part.stored_nbytes:17,}{part.nbytes:17,}{part.bits:15.4g}"
        print(f"{part.name:12}{sizes}  {', '.join(part.types)}")


def print_overview(result: Overview, *, tensors: bool, metadata: bool) -> None:
    print(f"{result.path}: {result.form}{'' if result.name is None else f', {result.name}'}")
    told = {
        "architecture": result.architecture,
        "families": " or ".join(result.families),
        "runners": ", ".join(result.runners),
        "layers": result.layers,
        "context": None if result.context is None else f"{result.context:,} tokens",
        "rope": result.rope,
        "vocabulary": result.vocabulary,
        "chat template": "yes" if result.chat_template else "no",
        "parameters": f"{result.parameters:,}, {result.ternary:,} of them ternary",
        "size": f"{result.size:,} bytes, {result.bits:.4g} bits a weight",
    }
    for what, value in told.items():
        if value not in (None, ""):
            print(f"{what + ':':15}{value}")
    print(f"{'':12}{'tensors':>8}{'weights':>17}{'bytes':>17}{'bits a weight':>15}  types")
    for part in result.parts:
        sizes = f"{part.tensors:8}{part.weights:17,}{part.nbytes:17,}{part.bits:15.4g}"
        print(f"{part.name:12}{sizes}  {', '.join(part.types)}")
    if result.kinds:
        print(f"{'':20}{'tensors':>8}{'-1':>9}{'0':>9}{'+1':>9}  scales")
        for kind in result.kinds:
            shares = f"{kind.minus:9.1%}{kind.zero:9.1%}{kind.plus:9.1%}"
            print(f"{kind.name:20}{kind.tensors:8}{shares}  {kind.scales}")
    for tensor in result.tensors if tensors else ():
        shape = "x".join(map(str, tensor.shape))
        print(f"{tensor.name:32} {tensor.type:>6} {shape:>14} {tensor.nbytes:>12,} bytes")
    for key, text in result.metadata.items() if metadata else ():
        print(f"{key} = {text}")
    for note in result.notes:
        print(f"note: {note}")


def print_verification(result: Verification, *, verbose: bool) -> None:
    """One line where the file is right. verbose: every tensor, what was checked and what not, and digests before it."""
    if verbose:
        for tensor in result.tensors:
            shape = "x".join(map(str, tensor.shape))
            scale = "" if tensor.scale is None else f"scale {tensor.scale:.9g}"
            scale = scale if tensor.group is None else f"a scale for {tensor.group} columns"
            verdict = "; ".join(tensor.faults) or "ok"
            print(f"{tensor.name:32} {tensor.type:>5} {shape:>14}  {scale:24} {verdict}")
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


def print_difference(result: Difference, *, verbose: bool) -> None:
    for (before, after), count in result.retyped.items():
        print(f"{_tensors(count)} {before} and {after}")
    changed = [tensor for tensor in result.tensors if not tensor.same_values]
    lines = []
    for tensor in changed:
        told = [f"shape {' and '.join('x'.join(map(str, shape)) for shape in tensor.shapes)}"]
        if tensor.shapes[0] == tensor.shapes[1]:
            told = [f"{tensor.trits:,} of {tensor.values:,} trits"] if tensor.trits else []
            told += [f"scales off by {tensor.scale:.2g}"] if tensor.scale else []
            told += [f"{tensor.others:,} of {tensor.values:,} values, by {tensor.largest:.2g}"] if tensor.others else []
        lines.append(f"{tensor.name:32} {', '.join(told)}")
    keys = [f"{key}: {_or_none(one)} and {_or_none(other)}" for key, (one, other) in result.metadata.items()]
    alone = [f"{name}: in {(result.first, result.second)[i]} alone" for name, i in result.missing.items()]
    for kind in (keys, alone, lines):
        _print_first("", kind, all_of_them=verbose)
    print(f"{result.first} and {result.second}: {result.verdict}")


def _or_none(value: str | None) -> str:
    return "none" if value is None else value


def print_audit(result: Audit, *, verbose: bool) -> None:
    from bitconv.commands.audit import DISTANCES

    def line(head: str, count: int, end: str = "") -> None:
        print(f"  {head:32} {count:>14,}  {count / result.codes:>7.3%}{end}")

    if verbose:
        for tensor in result.tensors:
            others = tensor.differ["bfloat16"]
            print(f"{tensor.name:48} {tensor.type:>8}  scale {tensor.scale:.9g}  {others:,} others in bfloat16")
    print(f"{result.codes:,} codes; others than in float32:")
    for name, count in result.differ.items():
        if name != "float32":
            line(name, count)
    line("next to the threshold, by one ulp", result.near)
    print("latents by their magnitude, in thresholds:")
    steps = [*(1 - d for d in DISTANCES), 1.0, *(1 + d for d in reversed(DISTANCES))]
    largest = max(result.distances)
    for low, high, count in zip([None, *steps], [*steps, None], result.distances, strict=True):
        head = f"to {high:.4g}" if low is None else f"from {low:.4g}" if high is None else f"{low:.4g} to {high:.4g}"
        line(head, count, f"  {'#' * round(30 * count / largest)}".rstrip())
    if result.against is not None:
        print(f"others than in {result.release}:")
        for name, count in result.against.items():
            line(name, count)
    for text in result.verdict:
        print(text)


def print_repacking(result: Repacking) -> None:
    changes = sorted({f"{tensor.from_type} to {tensor.type}" for tensor in result.tensors})
    print(f"{_tensors(len(result.tensors))}, {', '.join(changes)}, architecture {result.architecture}")
    print(_rounded(max((tensor.scale_error for tensor in result.tensors), default=0.0)))
    for note in result.notes:
        print(f"note: {note}")
    for tensor in result.dense:
        print(f"{tensor.name}: {tensor.from_type} to {tensor.type}")
    _print_first("warning  ", [f"the input's {line}" for line in result.warnings])
    _print_output(result.output, f"{result.size:,} bytes", result)


def print_report(result: Report) -> None:
    verdict = {None: "cannot be judged", True: "is right", False: "is WRONG"}[result.right]
    print(f"{result.output}: {result.size:,} bytes; the file {verdict}")


def print_export(result: Export) -> None:
    print(f"{result.architecture}, {len(result.tensors)} tensors, to be run in {result.dtype}")
    if result.scale_convention is None:
        print("ternary weights are floats, trit times scale: the packed form has no place for what this file holds")
    if not result.exact_scales:
        print(f"scales: exact in the files; {result.dtype} cannot hold them, so transformers rounds them when it loads")
    for name, type_name in result.dequantized.items():
        print(f"{name}: dequantized from {type_name}, which the checkpoint it was made of is not")
    _print_first("warning  ", [f"the input's {line}" for line in result.warnings])
    print(f"{result.directory}: {result.size:,} bytes of tensors; {', '.join(result.files)}")


def print_evaluation(result: Evaluation) -> None:
    print(f"perplexity {result.perplexity:.4f}, {result.nll:.6f} nats a token")
    print(f"{result.scored} of {result.tokens} tokens scored, {result.tokens_per_second:.1f} a second")


def print_comparison(result: Comparison, file: object, model: str) -> None:
    print(f"tokens: {result.tokens}")
    for name, value in dataclasses.asdict(result).items():
        if isinstance(value, float):
            print(f"{name.replace('_', ' ')}: {value:.6g}")
    for disagreement in result.disagreements:
        print(f"WRONG  {disagreement}")
    print(f"{file}: {'agrees with' if result.agrees else 'DISAGREES with'} {model}")


def print_trials(result: Trials) -> None:
    for trial in result.trials:
        named = " ".join(filter(None, [trial.project, trial.version]))
        about = f" ({named})" if named else ""
        for cause in trial.causes:
            print_wrapped("  ", cause)
        measured = ""
        if trial.measured is not None:
            measured = f"; {trial.measured} off by {trial.difference:.3g}, {trial.limit:g} is the limit"
        print(f"{result.file} in {trial.runner}{about}: {trial.verdict}{measured}")


def print_kernel_config(result: KernelConfig) -> None:
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
    for note in result.notes:
        print(f"note: {note}")
    print("not with its setup_env.py, which would put the kernels of its own list of models over these")


def print_dummy(result: Dummy) -> None:
    print(f"{result.family}, {result.parameters:,} random parameters, {result.stored}")
    print(f"{result.directory}: {result.size:,} bytes of tensors; {', '.join(result.files)}")


def print_runner(runner: Runner) -> None:
    print_wrapped("", f"{runner.name} ({runner.versions}; {runner.home})")
    _print_told("architectures:", ", ".join(f"{name} ({does})" for name, does in runner.activations.items()))
    _print_told("types:", ", ".join(runner.types))
    for type_name, columns in runner.min_columns.items():
        _print_told(f"{type_name}:", f"{columns} columns or more")
    for what, types in (("embedding:", runner.lookups), ("head:", runner.heads)):
        _print_told(what, ", ".join((*FLOATS, *types)))
    if runner.scale_tensors:
        from bitconv.layouts.registry import make_layout

        beside = [name for name in runner.type_ids if make_layout(name, (3072, 3072)).scale_beside]
        _print_told("exact scales:", f"in float32 .scale tensors beside {', '.join(beside)}")
    if runner.expert_types:
        _print_told("experts:", f"stacked, in {', '.join(runner.expert_types)}")
    for type_name, machines in runner.machines.items():
        _print_told(f"{type_name}:", f"for {machines}")
    for note in (*runner.notes, *runner.type_notes.values()):
        _print_told("note:", note)


def print_backends() -> None:
    from bitconv.backends import BACKENDS, sources, table_rows

    print_wrapped(
        "", "what each has for a type on which processor (fast: a kernel for it; none on a GPU: the CPU computes it)"
    )
    for runner, name, *cells in (("", "", *BACKENDS), *table_rows()):
        print(f"  {runner:16} {name:6} {''.join(f'{cell:11}' for cell in cells)}".rstrip())
    for number, source in enumerate(sources(), 1):
        print_wrapped(f"  {number:2}  ", source)


def print_catalogue(listed: Catalogue) -> None:
    for family in listed.families:
        print_wrapped("", f"{family.name} ({family.checkpoints})")
        _print_told("recognised by:", family.recognised)
        _print_told("weights:", family.weights)
        _print_told("lab's codes:", family.codes)
        _print_told("architecture:", family.architecture)
        for runner, types in family.types.items():
            _print_told(f"{runner}:", ", ".join(types))
    for refusal in listed.refusals:
        print_wrapped("", f"refused: {refusal.name}")
        _print_told("recognised by:", refusal.recognised)
        _print_told("because:", f"{refusal.reason}; {refusal.way_out}")


def _print_told(what: str, text: str) -> None:
    print_wrapped(f"  {what:16} ", text)


def print_surroundings(result: Surroundings) -> None:
    print(f"bitconv {result.version}, Python {result.python}")
    print(f"{result.machine}, {result.threads} threads")
    others = ", ".join(name for name in result.instruction_sets if name != result.instruction_set)
    _print_told("kernels:", f"{result.instruction_set}{f'; also {others}' if others else ''}")
    _print_told("packages:", _versions(result.packages))
    for extra in result.extras:
        missing = "" if extra.installed else f"; pip install 'bitconv[{extra.name}]'"
        _print_told(f"extra {extra.name}:", f"for {extra.needed_by}: {_versions(extra.versions)}{missing}")
    for found in result.runners:
        version = "" if found.version is None else f" {found.version}"
        where = "a Python package" if found.path is None else found.path
        _print_told("runner:", f"{found.runner or 'of a project not known'}: {found.name}{version}, {where}")
    if not result.runners:
        _print_told("runner:", "none on PATH, and no package")
    for what, directory in result.caches.items():
        _print_told("cache:", f"{what}: {directory}")


def _versions(packages: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())


def _print_first(head: str, lines: list[str], *, all_of_them: bool = False) -> None:
    from bitconv.system.errors import MAX_FAULTS

    most = len(lines) if all_of_them else MAX_FAULTS
    for line in lines[:most]:
        print(f"{head}{line}")
    if len(lines) > most:
        print(f"{head}and {len(lines) - most:,} more")


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _rounded(worst: float) -> str:
    return f"scales: rounded to the type's own floats, off by {worst:.2g} at most" if worst else "scales: exact"


def _print_output(output: Path, size: str, result: Conversion | Repacking, against: str = "") -> None:
    from bitconv.runners import runner

    print(f"{output}: {size}")
    print(f"check it:  bitconv verify {shlex.quote(str(output))}{against}")
    print(f"run it:    {result.run}")
    program = result.run.partition(" ")[0]
    print(f"           by {result.runner}'s own {program}: {runner(result.runner).home}")
