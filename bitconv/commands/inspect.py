"""What is in a GGUF file, bitconv's or another's, or in a checkpoint, without converting it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import gguf as gguf_package
import numpy as np
import numpy.typing as npt

from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.hub import URI, local_model, model_name, on_the_hub, sampled_file
from bitconv.commands.families import runner_types
from bitconv.gguf import GGUFFile, Metadata, TensorInfo, read_gguf, tensor_type
from bitconv.gguf.values import shown
from bitconv.layouts.scales import describe, group_of
from bitconv.layouts.tiles import Tile, read_kernel_config
from bitconv.models.architectures import Role, scale_name
from bitconv.models.families import FAMILIES
from bitconv.models.hyperparameters import Hyperparameters
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.ternary_floats import settle_scales
from bitconv.models.trits import TritReader
from bitconv.models.weights import ComputedWeight, DenseWeight, ExpertsWeight, TernaryWeight, Weight
from bitconv.packed import embeddings
from bitconv.packed.embeddings import EMBEDDING, HEAD
from bitconv.packed.inspection import FOREIGN_TYPES, Inspection, inspect_file
from bitconv.packed.ternary_tensor import FaultyTensor, matrices
from bitconv.runners import RUNNERS, Runner
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, one_line, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.results import Result
from bitconv.tokenizer.chat import chat_metadata
from bitconv.tokenizer.files import read_files


@dataclass(frozen=True)
class InspectedTensor:
    """A tensor.

    Attributes:
        type: Of the file; "u8" and the like are a checkpoint's.
        nbytes: With what follows up to the next tensor, where the type is not known.
        shares: Of -1, 0 and +1 among trits that were counted.
        scale: What multiplies those, or the mean of several.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    shares: tuple[float, float, float] | None = None
    scale: float | None = None


@dataclass(frozen=True)
class InspectedPart:
    """The tensors of a part of the model: "projections", "embedding", "head", "norms", "others".

    Attributes:
        weights: How many.
        bits: A weight.
    """

    name: str
    types: tuple[str, ...]
    tensors: int
    weights: int
    nbytes: int
    bits: float


@dataclass(frozen=True)
class InspectedKind:
    """The ternary tensors of one name in every layer.

    Attributes:
        scales: How many a tensor has, in words.
        minus: The share of -1 among the trits.
        zero: The share of 0.
        plus: The share of +1.
    """

    name: str
    tensors: int
    scales: str
    minus: float
    zero: float
    plus: float


@dataclass(frozen=True, repr=False)
class Overview(Result):
    """What there is in a model.

    Attributes:
        form: "GGUF file" or "checkpoint".
        name: What the model calls itself.
        families: Those that it may be of.
        runners: What computes it, each with the types that it can have, or that it has, there.
        parameters: Of all tensors.
        ternary: Of those in trits.
        size: Of all tensors, in bytes.
        bits: A weight.
        rope: In words.
        vocabulary: In words.
        tensors: In the order of the file.
        metadata: Of a GGUF file, long values cut.
        notes: What could not be told, and why.
    """

    path: str
    form: str
    name: str | None
    architecture: str | None
    families: tuple[str, ...]
    runners: tuple[str, ...]
    parameters: int
    ternary: int
    size: int
    bits: float
    layers: int | None
    context: int | None
    rope: str | None
    vocabulary: str | None
    chat_template: bool
    parts: tuple[InspectedPart, ...]
    kinds: tuple[InspectedKind, ...]
    tensors: tuple[InspectedTensor, ...]
    metadata: dict[str, str]
    notes: tuple[str, ...]


@reports_system_errors
def inspect(
    path: str | os.PathLike[str],
    *,
    headers: bool = False,
    revision: str | None = None,
    token: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Overview:
    """Look into a GGUF file or a checkpoint.

    Any GGUF file is shown, types and architectures that bitconv does not know included; nothing is proven of it, which
    `verify` does. The shares of -1, 0 and +1 are counted where the trits are known, which reads all of them. Of what is
    on the Hub headers are read, and it is not downloaded.

    Args:
        path: A GGUF file, a model directory, an id on the Hub, or hf://OWNER/NAME/FILE.gguf (or OWNER/NAME@REVISION).
        headers: Count nothing: headers are read alone.
        revision: As `convert` takes it.
        token: As `convert` takes it.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None.
        progress: Called with the tensors counted so far and in all.

    Returns:
        What there is.

    Raises:
        BitconvError: Where it is neither, or cannot be read.

    Example:
        >>> bitconv.inspect("llama.gguf").architecture
        'llama'
    """
    asked = os.fspath(path)
    count = None if headers else partial(_counted, threads=threads, progress=progress)
    tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
    with contextlib.ExitStack() as stack:
        if asked.startswith(URI) and not on_the_hub(asked.removeprefix(URI)):
            file, fetch = stack.enter_context(sampled_file(asked, revision, token))
            return replace(_of_file(read_gguf(file, fetch), tiles, i2_s_order, None), path=asked)
        model = asked.removeprefix(URI)
        if Path(model).is_dir() or on_the_hub(model):
            checkpoint = stack.enter_context(open_checkpoint(model, revision, token, sampled=True))
            return replace(_of_checkpoint(checkpoint, None if checkpoint.sampled else count), path=asked)
        return _of_file(read_gguf(local_model(model, revision)), tiles, i2_s_order, count)


class _Trits(NamedTuple):
    """How many are -1, 0 and +1, the scales of their tensor in words, and the sum and number of those above 0."""

    counts: npt.NDArray[np.int64]
    scales: str
    total: float
    several: int

    @property
    def shares(self) -> tuple[float, float, float]:
        minus, zero, plus = self.counts / max(self.counts.sum(), 1)
        return float(minus), float(zero), float(plus)

    def with_those_of(self, other: _Trits) -> _Trits:
        scales = self.scales if other.scales in self.scales else f"{self.scales} or {other.scales}"
        return _Trits(self.counts + other.counts, scales, self.total + other.total, self.several + other.several)


# _counted with all but the tensors, how each is counted, and notes.
_Count: TypeAlias = Callable[[list[str], Sequence[Callable[[KeepGoing], _Trits]], list[str]], dict[str, _Trits]]


def _of_file(
    opened: GGUFFile, tiles: Mapping[tuple[int, int], Tile] | None, i2_s_order: str | None, count: _Count | None
) -> Overview:
    metadata = opened.metadata
    inspection, notes = None, list[str]()
    try:
        inspection = inspect_file(opened, tiles, i2_s_order)
    except BitconvError as error:
        notes.append(one_line(error.cause))
    tensors = tuple(InspectedTensor(*one) for one in _listed(opened, inspection))
    ternary = set() if inspection is None else set(inspection.layouts)
    counted: dict[str, _Trits] = {}
    if inspection is not None:
        faults = [*inspection.faults, *(f"{n}: {text[0]}" for n, text in inspection.tensor_faults.items())]
        if faults:
            notes.append(f"{faults[0]}; bitconv verify lists what is wrong")
        elif count is not None:
            descriptor = opened.open()
            try:
                infos = {info.name: info for info in opened.tensors}
                work = [partial(_count_file, descriptor, infos, inspection, name) for name in inspection.layouts]
                counted = count(list(inspection.layouts), work, notes)
            finally:
                os.close(descriptor)
            opened.check_unchanged()
    architecture = metadata.get("general.architecture")
    roles = {} if inspection is None else inspection.roles
    known = () if inspection is None else (f for f in FAMILIES if f.architecture is inspection.architecture)
    able = () if inspection is None or notes else _able(opened, inspection)
    return _overview(
        path=str(opened.path),
        form="GGUF file",
        name=_text(metadata.get("general.name")),
        architecture=_text(architecture),
        families=tuple(family.name for family in known),
        runners=tuple(able),
        sizes=None if inspection is None else inspection.sizes,
        vocabulary=_vocabulary(metadata),
        chat_template="tokenizer.chat_template" in metadata,
        tensors=tensors,
        ternary=ternary,
        part=lambda tensor: _part(tensor.name, roles.get(tensor.name), tensor.shape),
        counted=counted,
        metadata={key: shown(value) for key, value in metadata.items()},
        notes=notes,
    )


def _of_checkpoint(checkpoint: Checkpoint, count: _Count | None) -> Overview:
    notes = list(checkpoint.notes)
    model = load_model(checkpoint)
    try:
        model = settle_scales(checkpoint, model, None, None, keep_floats=True)
    except BitconvError as error:
        notes.append(one_line(error.cause))
    weights = {weight.name: weight for weight in model.weights}
    known = [w for w in model.matrices if w.scale is not None]
    names = [weight.name for weight in known]
    work = [partial(_count_stored, checkpoint, weight) for weight in known]
    counted = count(names, work, notes) if count is not None and len(known) == len(model.matrices) else {}
    checkpoint.check_unchanged()
    config = model.config
    return _overview(
        path=str(checkpoint.path),
        form="checkpoint",
        name=model_name(checkpoint.path),
        architecture=model.family.architecture.name,
        families=(model.family.name,),
        runners=tuple(
            f"{runner.name} ({', '.join(types)})" for runner in RUNNERS if (types := runner_types(model.family, runner))
        ),
        sizes=model.sizes,
        vocabulary=f"{model.sizes.vocab:,} tokens",
        chat_template=bool(chat_metadata(read_files(checkpoint.path, dict(config)))),
        tensors=tuple(_stored(weight) for weight in model.weights),
        ternary={name for name, weight in weights.items() if isinstance(weight, TernaryWeight | ExpertsWeight)},
        part=lambda tensor: _part(tensor.name, _role(weights[tensor.name]), tensor.shape),
        counted=counted,
        metadata={key: shown(value) for key, value in config.items()},
        notes=notes,
    )


def _overview(
    *,
    sizes: Hyperparameters | None,
    tensors: tuple[InspectedTensor, ...],
    ternary: set[str],
    part: Callable[[InspectedTensor], str | None],
    counted: Mapping[str, _Trits],
    notes: Iterable[str],
    **told: Any,
) -> Overview:
    by_part: dict[str, list[InspectedTensor]] = {}
    for tensor in tensors:
        by_part.setdefault(part(tensor) or "others", []).append(tensor)
    parts = tuple(
        _summed(name, by_part[name])
        for name in ("projections", "embedding", "head", "norms", "others")
        if name in by_part
    )
    parameters, size = sum(p.weights for p in parts), sum(p.nbytes for p in parts)
    return Overview(
        parameters=parameters,
        ternary=sum(prod(tensor.shape) for tensor in tensors if tensor.name in ternary),
        size=size,
        bits=8 * size / max(parameters, 1),
        layers=None if sizes is None else sizes.layers,
        context=None if sizes is None else sizes.context,
        rope=None if sizes is None else _rope(sizes),
        parts=parts,
        kinds=_kinds(counted),
        tensors=tuple(_with_trits(tensor, counted.get(tensor.name)) for tensor in tensors),
        notes=tuple(notes),
        **told,
    )


def _summed(name: str, tensors: list[InspectedTensor]) -> InspectedPart:
    weights, nbytes = sum(prod(tensor.shape) for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
    types = tuple(sorted({tensor.type for tensor in tensors}))
    return InspectedPart(name, types, len(tensors), weights, nbytes, 8 * nbytes / max(weights, 1))


def _listed(opened: GGUFFile, inspection: Inspection | None) -> Iterable[tuple[str, str, tuple[int, ...], int]]:
    """Name, type, shape and bytes of every tensor; of unknown types those to the next tensor."""
    starts = sorted({info.offset for info in opened.tensors} | {opened.size})
    until = {start: end - start for start, end in pairwise(starts)}
    for info in opened.tensors:
        type_name = _type_name(info, inspection)
        nbytes = None if inspection is None else inspection.nbytes.get(info.name)
        yield info.name, type_name, info.shape, until.get(info.offset, 0) if nbytes is None else nbytes


def _type_name(info: TensorInfo, inspection: Inspection | None) -> str:
    """Of a number that means several things, all of them with the runner that means it."""
    if inspection is not None and info.name in inspection.types:
        return inspection.types[info.name]
    kind = tensor_type(info.type_id)
    if kind is not None:
        return kind.name
    meant = [f"{name} of {r.name}" for r in RUNNERS for name, number in r.type_ids.items() if number == info.type_id]
    ggml = {kind.value: kind.name.lower() for kind in gguf_package.GGMLQuantizationType}
    if info.type_id in ggml:
        meant.append(f"{ggml[info.type_id]} of ggml")
    if info.type_id in FOREIGN_TYPES:
        meant.append(FOREIGN_TYPES[info.type_id])
    return f"type {info.type_id}{': ' if meant else ''}{' or '.join(meant)}"


def _able(opened: GGUFFile, inspection: Inspection) -> Iterable[str]:
    """The runners that compute a file without faults as it is."""
    infos = {info.name: info for info in opened.tensors}
    architecture = inspection.architecture
    has_head = architecture.untied_head and HEAD in infos
    for runner in RUNNERS:
        if runner.activations.get(architecture.graph) != architecture.activation:
            continue
        if all(_takes(runner, infos[name], inspection, has_head=has_head) for name in inspection.types):
            yield runner.name


def _takes(runner: Runner, info: TensorInfo, inspection: Inspection, *, has_head: bool) -> bool:
    role, type_name = inspection.roles[info.name], inspection.types[info.name]
    if role is Role.EMBEDDING:
        return embeddings.takes(runner, info.name, type_name, has_head=has_head)
    if role is Role.SCALE:
        return runner.scale_tensors
    if role is not Role.TERNARY:
        return True
    layout = inspection.layouts.get(info.name)
    in_order = type_name != "i2_s" or (layout is not None and layout.byte_order == runner.i2_s_order)
    stacked = len(info.shape) == 2 or type_name in runner.expert_types
    return type_name in runner.computes and runner.type_id(type_name) == info.type_id and in_order and stacked


def _part(name: str, role: Role | None, shape: tuple[int, ...]) -> str:
    """role: None where the architecture is not known; then the name and the shape tell."""
    if name in (EMBEDDING, HEAD):
        return "head" if name == HEAD else "embedding"
    if role is Role.TERNARY or (role is None and len(shape) > 1):
        return "projections"
    return "norms" if role is Role.NORM or "norm" in name else "others"


def _role(weight: Weight) -> Role | None:
    if isinstance(weight, DenseWeight):
        return weight.role
    return Role.NORM if isinstance(weight, ComputedWeight) and "norm" in weight.name else Role.TERNARY


def _stored(weight: Weight) -> InspectedTensor:
    if isinstance(weight, ComputedWeight):
        return InspectedTensor(weight.name, "computed", weight.shape, 0)
    stored = [m.stored for m in weight.matrices] if isinstance(weight, ExpertsWeight) else [weight.stored]
    return InspectedTensor(weight.name, stored[0].dtype, weight.shape, sum(tensor.file_nbytes for tensor in stored))


def _counted(
    names: list[str],
    work: Sequence[Callable[[KeepGoing], _Trits]],
    notes: list[str],
    *,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, _Trits]:
    """By name, of which experts have one. work: counts those of each. Where one is faulty nothing, and a note."""
    counted: dict[str, _Trits] = {}
    try:
        for done, (name, found) in enumerate(zip(names, jobs.run(work, threads), strict=True), 1):
            counted[name] = counted[name].with_those_of(found) if name in counted else found
            if progress is not None:
                progress(done, len(names))
    except BitconvError as error:
        notes.append(one_line(str(error)))
        return {}
    return counted


def _kinds(counted: Mapping[str, _Trits]) -> tuple[InspectedKind, ...]:
    kinds: dict[str, list[_Trits]] = {}
    for name, found in counted.items():
        kinds.setdefault(kind_of(name), []).append(found)
    summed = {kind: (len(found), reduce(_Trits.with_those_of, found)) for kind, found in kinds.items()}
    return tuple(InspectedKind(kind, tensors, all_.scales, *all_.shares) for kind, (tensors, all_) in summed.items())


def kind_of(name: str) -> str:
    """A tensor's name without its layer's number: attn_q of blk.0.attn_q.weight."""
    return name.removesuffix(".weight").split(".", 2)[-1] if name.startswith("blk.") else name


def _with_trits(tensor: InspectedTensor, trits: _Trits | None) -> InspectedTensor:
    if trits is None:
        return tensor
    return replace(tensor, shares=trits.shares, scale=trits.total / trits.several if trits.several else None)


def _counts(trits: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    minus, plus = np.count_nonzero(trits < 0), np.count_nonzero(trits > 0)
    return np.array([minus, trits.size - minus - plus, plus], np.int64)


def _count_file(
    descriptor: int, infos: dict[str, TensorInfo], inspection: Inspection, name: str, keep_going: KeepGoing
) -> _Trits:
    layout, group = inspection.layouts[name], inspection.groups.get(name)
    counts, total, several = np.zeros(3, np.int64), 0.0, 0
    try:
        for matrix in matrices(descriptor, infos[name], layout, infos.get(scale_name(name)), group):
            for first, last in row_blocks(matrix.rows, matrix.columns, layout.row_multiple):
                keep_going()
                rows = matrix.read(first, last)
                counts += _counts(rows.trits)
                if rows.scales is not None:
                    total += float(rows.scales.sum(dtype=np.float64))
                    several += int(np.count_nonzero(rows.scales))
            if matrix.scale is not None:
                total, several = total + float(matrix.scale), several + 1
    except FaultyTensor as fault:
        raise fault.at(infos, name, "see bitconv verify") from None
    return _Trits(counts, _scales(group, infos[name].shape[-1]), total, several)


def _count_stored(checkpoint: Checkpoint, weight: TernaryWeight, keep_going: KeepGoing) -> _Trits:
    reader = TritReader(checkpoint, replace(weight, rope_heads=0), keep_going)
    counts = np.zeros(3, np.int64)
    for first, last in row_blocks(reader.rows, reader.columns, reader.row_multiple):
        keep_going()
        counts += _counts(reader.stored_trits(first, last))
    scale, words = reader.stored_scale, _scales(group_of(reader.stored_scale, reader.columns), reader.columns)
    return _Trits(counts, words, float(np.sum(scale, dtype=np.float64)), int(np.count_nonzero(scale)))


def _scales(group: int | None, columns: int) -> str:
    return "one scale" if group is None else describe(group, columns)


def _rope(sizes: Hyperparameters) -> str:
    base = f"base {sizes.rope_base:g}, {sizes.head_dim} dimensions a head"
    return base if sizes.rope_scaling is None else f"{base}, scaled by {sizes.rope_scaling}"


def _vocabulary(metadata: Metadata) -> str | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return None
    stated = [metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    return ", ".join([f"{len(tokens):,} tokens", *(one_line(text) for text in stated if isinstance(text, str))])


def _text(value: object) -> str | None:
    return one_line(value) if isinstance(value, str) else None
