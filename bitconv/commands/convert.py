"""Writing a plan: one streaming engine for all sources and formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from os import PathLike
from pathlib import Path

from bitconv.checkpoint.dense import dense_values
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import StoredTensor
from bitconv.choices import BACKEND, EMBED_TYPE, FALLBACK, HEAD_TYPE, PRESET, RUNNER, TENSOR_TYPE, TYPE
from bitconv.gguf import type_by_name
from bitconv.layouts import FLOATS
from bitconv.layouts.registry import tile_rules
from bitconv.layouts.scales import Scale
from bitconv.layouts.tiles import kernel_config_text, read_kernel_config
from bitconv.models.architectures import Role
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.quantization import ABSMEAN, ABSMEAN_BF16, Rule, rule_of, scale_convention_of
from bitconv.models.ternary_floats import find_ternary, settle_scales
from bitconv.models.trits import TritReader
from bitconv.models.weights import ComputedWeight, DenseWeight, ExpertsWeight, TernaryWeight, Weight
from bitconv.packed.embeddings import EMBEDDING, HEAD
from bitconv.planning.placement import PlacedMatrix
from bitconv.planning.plan import Options, Plan, PlannedTensor, make_plan
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import check_no_model_file, check_output, replacing
from bitconv.system.rawio import write_at
from bitconv.system.results import Result

# A job converts this many values of a dense tensor, whole blocks of every type: large ones are split, for the threads
# to share.
DENSE_JOB_VALUES = 1 << 22
# The part of the codes that may depend on arithmetic without a note.
MAX_OTHERS = 0.001


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor that was converted.

    Attributes:
        stored_nbytes: Of its weights in the checkpoint.
        offset: In bytes from the start of the file.
        scale: Of a ternary matrix, as the model has it; None where there are several.
        scale_error: How far off the file's scale is, relative, at worst of stacked experts; None in a dry run.
        group: The columns of a row that share a scale, where a matrix has several.
        was_ternary: Of projections: whether they are stored in floats of nothing but -scale, 0 and +scale.
        fallback: Why the tensor does not have the type asked for.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    stored_nbytes: int
    offset: int
    nbytes: int
    scale: float | None
    scale_error: float | None
    group: int | None
    was_ternary: bool | None
    fallback: str | None


@dataclass(frozen=True)
class ConvertedPart:
    """The tensors of a part of the model: "projections", "embedding", "head", "norms", "others".

    Attributes:
        types: In the file.
        stored_nbytes: Of their weights in the checkpoint.
        nbytes: In the file.
        bits: A weight, in the file.
    """

    name: str
    types: tuple[str, ...]
    tensors: int
    stored_nbytes: int
    nbytes: int
    bits: float


@dataclass(frozen=True, repr=False)
class Conversion(Result):
    """What a conversion wrote, or with dry_run would write. Sizes and offsets are in bytes.

    Attributes:
        machines: What the runner runs files of this type on, where it is not every machine, in words.
        exact_scales: Every scale is kept as it is.
        reason: Why this type, where it was "auto".
        run: The command that runs the file.
        notes: What else of the model directory the user should know, in words.
    """

    output: Path
    family: str
    architecture: str
    type: str
    runner: str
    machines: str | None
    exact_scales: bool
    reason: str | None
    size: int
    dry_run: bool
    run: str
    tensors: tuple[ConvertedTensor, ...]
    parts: tuple[ConvertedPart, ...]
    notes: tuple[str, ...] = ()


@reports_system_errors
def convert(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    type: str = "i2_s",
    runner: str | None = None,
    backend: str | None = None,
    preset: str = "exact",
    embed_type: str | None = None,
    head_type: str | None = None,
    fallback: str = "error",
    tensor_types: Sequence[tuple[str, str]] = (),
    kernel_config: str | PathLike[str] | None = None,
    scale_in_blocks: bool = False,
    scale_convention: str | None = None,
    ternarize: str | None = None,
    group: int | None = None,
    pre: str | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    attest: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a Hugging Face model to a GGUF file.

    Words such as types and names of runners may be written in any case, with or without signs: I2_S, i2s.

    Args:
        model: A directory, or an id on the Hub.
        output: The file to write. It appears whole or not at all.
        revision: A branch, tag or commit of the model on the Hub.
        token: To read a private or gated model; None for HF_TOKEN or what `hf auth login` stored.
        type: Of the ternary tensors: a packed layout; "auto" for the smallest that keeps every scale exact; "f32",
            "f16" or "bf16" for the unpacked ternary model in floats.
        runner: A name that `bitconv runners` lists; what it could not compute right is refused. None for the one that
            the type implies.
        backend: The processor that will run the file: "x86", "arm", "cuda", "metal", "vulkan", "sycl" or "webgpu". With
            the type "auto" the fastest exact type there is taken; None for the smallest.
        preset: "exact" for an embedding and an untied head in f16; "small" for a ternary type where they are ternary
            and the runner computes it there, and q6_k where not.
        embed_type: Of the token embedding and of an untied head: "f16", "f32", "bf16"; "q8_0", "q6_k", "q4_k" in the
            bytes that llama-quantize makes; or a packed layout where they are ternary. None for what the preset says.
        head_type: Of an untied head alone.
        fallback: For tensors whose shape or scales the type cannot take: "error", "f16", "bf16", "f32" or "q8_0".
        tensor_types: Pairs of a regular expression and a type, which overrule the type of the tensors whose name the
            expression is found in.
        kernel_config: The ini with TL1's and TL2's tiles that the runner was built with.
        scale_in_blocks: The classic form of TQ1_0, TQ2_0 and Q2_0, with scales rounded to float16.
        scale_convention: "multiply" or "divide": what weight_scale does, in place of what config.json implies.
        ternarize: The rule for float weights that are not ternary already, which a checkpoint without a marker needs:
            "absmean" in float32, as models compute at inference; "absmean-bf16", as onebitllms and bitnet.cpp's GPU
            pipeline export; "absmedian"; "absmax" in groups, as ternary-qat writes.
        group: The columns of a row that share a scale by "absmax"; None for 128.
        pre: tokenizer.ggml.pre, in place of the recognised pre-tokenizer.
        threads: All cores where None. The bytes written do not depend on it.
        force: Overwrite output.
        dry_run: Write nothing, and return what would be written.
        attest: Write OUTPUT.intoto.json too, an in-toto statement of sources and options, and OUTPUT.sha256.
        progress: Called with the bytes so far and in all of each pass: of float weights that are looked at, then of
            the file.

    Returns:
        What was written, tensor by tensor.

    Raises:
        BitconvError: On anything that cannot be converted right. The output is as it was before.

    Example:
        >>> result = bitconv.convert("fixtures/Llama3-1.58-tiny", "new.gguf", type="tq2_0")
        >>> result.runner, result.exact_scales
        ('llama.cpp', True)
    """
    target = Path(output)
    check_output(target, force=force, inputs=(kernel_config,))
    if attest:
        from bitconv.commands import attest as attestation  # which itself converts and verifies

        if dry_run:
            raise BitconvError(
                f"{option('attest')} is of a file, and {option('dry_run')} writes none", code=Code.OPTIONS
            )
        attestation.check_outputs(target, force=force)
    type, preset = TYPE.parse(type), PRESET.parse(preset)
    options = Options(
        type=type,
        runner=RUNNER.optional(runner),
        backend=BACKEND.optional(backend),
        preset=preset,
        embed_type=EMBED_TYPE.optional(embed_type),
        head_type=HEAD_TYPE.optional(head_type),
        fallback=FALLBACK.parse(fallback),
        overrides=tuple((pattern, TENSOR_TYPE.parse(name)) for pattern, name in tensor_types),
        tiles=None if kernel_config is None else read_kernel_config(Path(kernel_config), tile_rules(type)),
        scale_in_blocks=scale_in_blocks,
        pre=pre,
    )
    with open_checkpoint(model, revision, token, sampled=dry_run) as checkpoint:
        check_no_model_file(target, checkpoint.path, b"GGUF")
        convention = scale_convention_of(scale_convention)
        loaded = load_model(checkpoint, convention)
        keep_floats = fallback in FLOATS
        model_with_scales = settle_scales(
            checkpoint,
            loaded,
            rule_of(ternarize, group),
            threads,
            convention,
            keep_floats=keep_floats,
            progress=progress,
        )
        looked_at = find_ternary(checkpoint, model_with_scales, options.ternary_embeddings, threads)
        plan = make_plan(checkpoint, looked_at, options)
        scales: dict[str, list[Scale]] = {}
        others = _Others()
        if not dry_run:
            with replacing(target, plan.size, force=force) as descriptor:
                scales = _write(checkpoint, plan, descriptor, others, threads, progress)
                checkpoint.check_unchanged()
        if attest:
            embedding_types = {t.weight.name: t.type_name for t in plan.tensors if t.weight.name in (EMBEDDING, HEAD)}
            asked = {
                # What a backend chooses is stated itself: a later bitconv may know of a faster type.
                "type": options.type if options.backend is None else plan.type_name,
                "runner": options.runner if options.backend is None else plan.runner.name,
                # What a preset chooses likewise.
                "embed_type": embedding_types[EMBEDDING],
                "head_type": embedding_types.get(HEAD),
                "fallback": options.fallback,
                "tensor_types": [list(pair) for pair in options.overrides],
                "kernel_config": None if options.tiles is None else kernel_config_text(options.tiles),
                "scale_in_blocks": scale_in_blocks,
                "scale_convention": scale_convention,
                "ternarize": ternarize,
                "group": group,
                "pre": pre,
            }
            attestation.attest(target, checkpoint, asked, threads)
    tensors = tuple(_report(plan, t, scales.get(t.weight.name, [])) for t in plan.tensors)
    return Conversion(
        output=target,
        family=plan.model.family.name,
        architecture=plan.model.family.architecture.name,
        type=plan.type_name,
        runner=plan.runner.name,
        machines=plan.runner.machines.get(plan.type_name),
        exact_scales=all(_keeps_scales(t, scales.get(t.weight.name, [])) for t in plan.tensors),
        reason=plan.reason,
        size=plan.size,
        dry_run=dry_run,
        run=plan.runner.command(plan.type_name, target, embedding=plan.model.family.embedding),
        tensors=tensors,
        parts=_parts(plan, tensors),
        notes=(*checkpoint.notes, *plan.notes, *_preset_notes(preset, tensors), *others.notes()),
    )


def _preset_notes(preset: str, tensors: Sequence[ConvertedTensor]) -> list[str]:
    """What a preset other than the default did."""
    if preset == "exact":
        return []
    done = [f"{t.name} is {t.type}" for t in tensors if t.name in (EMBEDDING, HEAD)]
    return [f"preset {preset}: {', '.join(done)}"]


class _Others:
    """How many codes another arithmetic makes others."""

    def __init__(self) -> None:
        self.matrices: list[tuple[str, int, int]] = []  # the rule, how many, of how many; lists take from any thread

    def add(self, reader: TritReader) -> None:
        if isinstance(reader.weight.scale, Rule):
            self.matrices.append((reader.weight.scale.name, reader.others, reader.rows * reader.columns))

    def notes(self) -> list[str]:
        others, of = sum(other for _, other, _ in self.matrices), sum(count for *_, count in self.matrices)
        if others <= MAX_OTHERS * of:
            return []
        rule = self.matrices[0][0]
        other = next(name for name in (ABSMEAN.name, ABSMEAN_BF16.name) if name != rule)
        return [
            f"{others / of:.2%} of the codes depend on arithmetic: they are those of {rule}, and {other} makes others; "
            f"if the lab's own packed release must be met, bitconv audit MODEL --against RELEASE tells its rule"
        ]


def _report(plan: Plan, tensor: PlannedTensor, scales: list[Scale]) -> ConvertedTensor:
    """scales: of the matrices of a ternary tensor, empty in a dry run."""
    group = tensor.places[0].group if tensor.places else None
    errors = [place.scale_error(scale) for place, scale in zip(tensor.places, scales, strict=bool(scales))]
    projections: tuple[TernaryWeight, ...] = ()
    if isinstance(tensor.weight, TernaryWeight | ExpertsWeight) and tensor.weight.name not in (EMBEDDING, HEAD):
        projections = tensor.weight.matrices
    return ConvertedTensor(
        tensor.weight.name,
        tensor.type_name,
        tensor.weight.shape,
        _stored_nbytes(tensor.weight),
        plan.data_offset + tensor.offset,
        tensor.nbytes,
        float(scales[0]) if len(scales) == 1 and group is None else None,
        max(errors, default=None),
        group,
        all(matrix.was_ternary for matrix in projections) if projections else None,
        tensor.fallback,
    )


def _keeps_scales(tensor: PlannedTensor, scales: list[Scale]) -> bool:
    """Whether the type holds the scales of a ternary tensor, or every one at least that has been written."""
    written = [place.scale_error(scale) == 0 for place, scale in zip(tensor.places, scales, strict=bool(scales))]
    return all(place.exact for place in tensor.places) or (bool(written) and all(written))


def _stored_nbytes(weight: Weight) -> int:
    """0 of what follows from config.json."""
    if isinstance(weight, TernaryWeight | ExpertsWeight):
        return sum(matrix.stored.file_nbytes for matrix in weight.matrices)
    return weight.stored.file_nbytes if isinstance(weight, DenseWeight) else 0


def _parts(plan: Plan, tensors: tuple[ConvertedTensor, ...]) -> tuple[ConvertedPart, ...]:
    by_part: dict[str, list[ConvertedTensor]] = {}
    for planned, tensor in zip(plan.tensors, tensors, strict=True):
        by_part.setdefault(_part(planned.weight), []).append(tensor)
    return tuple(
        ConvertedPart(
            name,
            tuple(sorted({tensor.type for tensor in found})),
            len(found),
            sum(tensor.stored_nbytes for tensor in found),
            sum(tensor.nbytes for tensor in found),
            8 * sum(tensor.nbytes for tensor in found) / sum(prod(tensor.shape) for tensor in found),
        )
        for name in ("projections", "embedding", "head", "norms", "others")
        if (found := by_part.get(name))
    )


def _part(weight: Weight) -> str:
    if weight.name in (EMBEDDING, HEAD):
        return "head" if weight.name == HEAD else "embedding"
    if isinstance(weight, TernaryWeight | ExpertsWeight):
        return "projections"
    return "norms" if isinstance(weight, DenseWeight) and weight.role is Role.NORM else "others"


def _write(
    checkpoint: Checkpoint,
    plan: Plan,
    descriptor: int,
    others: _Others,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, list[Scale]]:
    """Write every byte of the plan. Returns the scales of the matrices of the ternary tensors by name."""
    write_at(descriptor, plan.header, 0)
    scales: dict[str, list[Scale]] = {}

    def ternary(weight: TernaryWeight | ExpertsWeight, tensor: PlannedTensor, keep_going: KeepGoing) -> int:
        scales[weight.name] = [
            _write_ternary(checkpoint, plan, matrix, place, descriptor, others, keep_going)
            for matrix, place in zip(weight.matrices, tensor.places, strict=True)
        ]
        return tensor.nbytes

    work: list[Callable[[KeepGoing], int]] = []
    for tensor in plan.tensors:
        weight = tensor.weight
        if isinstance(weight, TernaryWeight | ExpertsWeight):
            work.append(partial(ternary, weight, tensor))
        elif isinstance(weight, DenseWeight):
            part = partial(_write_dense, checkpoint, plan, tensor, weight.stored, descriptor)
            count = prod(weight.shape)
            work += [partial(part, at, min(at + DENSE_JOB_VALUES, count)) for at in range(0, count, DENSE_JOB_VALUES)]
        else:
            work.append(partial(_write_computed, plan, tensor, weight, descriptor))

    done = len(plan.header)
    for written in jobs.run(work, threads):
        done += written
        if progress is not None:
            progress(done, plan.size)
    return scales


def _write_ternary(
    checkpoint: Checkpoint,
    plan: Plan,
    weight: TernaryWeight,
    place: PlacedMatrix,
    descriptor: int,
    others: _Others,
    keep_going: KeepGoing,
) -> Scale:
    reader = TritReader(checkpoint, weight, keep_going)
    reader.count_others()
    obstacle = place.obstacle(reader.scale)
    if obstacle is not None:
        raise weight.stored.error(obstacle, code=Code.LAYOUT)
    place.write(descriptor, plan.data_offset, reader.scale, reader.trits, reader.row_multiple, keep_going)
    others.add(reader)
    return reader.scale


def _write_dense(
    checkpoint: Checkpoint,
    plan: Plan,
    tensor: PlannedTensor,
    stored: StoredTensor,
    descriptor: int,
    first: int,
    last: int,
    keep_going: KeepGoing,
) -> int:
    written = 0
    start = plan.data_offset + tensor.offset + type_by_name(tensor.type_name).nbytes((first,))
    for at, end in row_blocks(last - first, 1, type_by_name(tensor.type_name).block):
        keep_going()
        data = dense_values(checkpoint, stored, tensor.type_name, first + at, first + end)
        write_at(descriptor, data, start + written)
        written += data.size
    return written


def _write_computed(
    plan: Plan, tensor: PlannedTensor, weight: ComputedWeight, descriptor: int, keep_going: KeepGoing
) -> int:
    write_at(descriptor, weight.values, plan.data_offset + tensor.offset)
    return tensor.nbytes
