"""From one layout to another without the checkpoint: the trits and everything else stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitconv import runners
from bitconv.choices import EMBED_TYPE, HEAD_TYPE, REPACKED_TYPE, RUNNER
from bitconv.gguf import GGUFFile, Metadata, TensorInfo, read_gguf, type_by_name
from bitconv.layouts import PACKED, QUANTIZED
from bitconv.layouts.dense import encode
from bitconv.layouts.i2_s import ORDER_KEY
from bitconv.layouts.layout import Bytes, Trits
from bitconv.layouts.registry import check_has_tiles, make_layout, tile_rules
from bitconv.layouts.scales import Scale, group_obstacle
from bitconv.layouts.tiles import TILES_KEY, Tile, read_kernel_config
from bitconv.models.architectures import Role, scale_name
from bitconv.packed import embeddings
from bitconv.packed.embeddings import HEAD
from bitconv.packed.inspection import Inspection, inspect_file
from bitconv.packed.ternary_tensor import FaultyTensor, TernaryTensor, matrices
from bitconv.planning.placement import DataSection, PlacedMatrix
from bitconv.runners import Runner
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import check_output, replacing
from bitconv.system.rawio import read_at, write_at
from bitconv.system.results import Result
from bitconv.tokenizer.pretokenizers import check_name

# A job copies this many bytes of a tensor that stays as it is, in pieces that fit a core's cache.
COPY_JOB_BYTES = 1 << 25
COPY_PIECE_BYTES = 1 << 20
# A job changes the type of this many values, whole rows.
CHANGE_JOB_VALUES = 1 << 22
# The same graph: ik_llama.cpp and bitnet.cpp know both names, the first release of it only the older one.
_NEWER_NAME = {"bitnet-25": "bitnet-b1.58"}


@dataclass(frozen=True)
class RepackedTensor:
    """A tensor that has its trits in a layout: a projection, an embedding or a head.

    Attributes:
        scale: As the input has it; None where there are several.
        scale_error: How far off the output's is, relative.
        group: The columns of a row that share a scale, of a tensor that has several.
    """

    name: str
    from_type: str
    type: str
    shape: tuple[int, ...]
    scale: float | None
    scale_error: float
    group: int | None


@dataclass(frozen=True)
class RepackedDense:
    """An embedding or a head of another type, which is none of trits."""

    name: str
    from_type: str
    type: str


@dataclass(frozen=True, repr=False)
class Repacking(Result):
    """What a repacking wrote.

    Attributes:
        size: In bytes.
        run: The command that runs the file.
        notes: What the user should know of such a file in this runner, in words.
        warnings: What verify calls wrong in the metadata, which is carried over.
    """

    output: Path
    architecture: str
    type: str
    runner: str
    size: int
    run: str
    tensors: tuple[RepackedTensor, ...]
    dense: tuple[RepackedDense, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


class _Planned(NamedTuple):
    """A tensor of the input and where it goes. offset counts from the start of the data section.

    places: of its ternary matrices, one or one an expert. dense: the new type of floats.
    """

    info: TensorInfo
    offset: int
    nbytes: int
    places: tuple[PlacedMatrix, ...] = ()
    dense: str | None = None


@reports_system_errors
def repack(
    file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    type: str,
    runner: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    from_kernel_config: str | os.PathLike[str] | None = None,
    from_i2_s_order: str | None = None,
    embed_type: str | None = None,
    head_type: str | None = None,
    scale_in_blocks: bool = False,
    pre: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Repacking:
    """Write a GGUF file with its ternary tensors in another layout, or for another runner.

    All else that is not ternary, and all metadata that does not speak of the layout, is carried over byte for byte.

    Args:
        file: The GGUF file to read.
        output: The file to write. It appears whole or not at all.
        type: As `convert` takes it, but not "auto".
        runner: As `convert` takes it.
        kernel_config: As `convert` takes it.
        from_kernel_config: The ini with the tiles of a TL1 or TL2 input that does not record them.
        from_i2_s_order: "arm64" or "row4" for an I2_S input in that byte order that does not record it.
        embed_type: A new type of an embedding and an untied head that are floats or ternary; None to keep it, or where
            the runner does not take what is ternary so, for a type that it takes.
        head_type: Of the head alone.
        scale_in_blocks: As `convert` takes it.
        pre: tokenizer.ggml.pre, which published files lack.
        threads: As `convert` takes it.
        force: Overwrite output.
        progress: Called with the bytes written so far and in all.

    Returns:
        What was written, tensor by tensor.

    Raises:
        BitconvError: Where the input is not ternary or not right, or the runner could not compute the output right.

    Example:
        >>> bitconv.repack("llama.gguf", "other.gguf", type="q2_0").runner
        'llama.cpp'
    """
    source, target = Path(file), Path(output)
    check_output(target, force=force, inputs=(source, kernel_config, from_kernel_config))
    type, runner = REPACKED_TYPE.parse(type), RUNNER.optional(runner)
    if kernel_config is not None:
        check_has_tiles([type])
    opened = read_gguf(source)
    from_tiles = None if from_kernel_config is None else read_kernel_config(Path(from_kernel_config))
    inspection = inspect_file(opened, from_tiles, from_i2_s_order)
    inspection.check_loads(source, pre)
    _check_input(opened, inspection)

    known = inspection.architecture
    chosen = runners.default_runner(type, known.graph) if runner is None else runners.runner(runner)
    lists = inspection.sizes.rope_long is not None
    obstacle = runners.graph_obstacle(chosen, known.graph, known.activation, type, rope_lists=lists)
    if obstacle is not None:
        way_out = runners.nearest(chosen, known.graph, known.activation, type, rope_lists=lists)
        raise BitconvError(obstacle, code=Code.RUNNER, way_out=way_out)
    tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config), tile_rules(type))
    section = DataSection(chosen, scale_in_blocks=scale_in_blocks)
    dense_types = {"embed_type": EMBED_TYPE.optional(embed_type), "head_type": HEAD_TYPE.optional(head_type)}
    if head_type is not None and not _has_head(opened, inspection):
        cause = f"{option('head_type', head_type)}: the model has no head, it multiplies by the embedding"
        raise BitconvError(cause, code=Code.OPTIONS, file=source)
    planned = _plan(opened, inspection, section, type, tiles, dense_types)
    metadata = _metadata(opened.metadata, inspection, chosen, type)
    if pre is not None:
        if metadata.get("tokenizer.ggml.model") == "llama":
            raise BitconvError(
                f"{option('pre', pre)} is for byte-level vocabularies, and this is none", code=Code.OPTIONS, file=source
            )
        metadata["tokenizer.ggml.pre"] = check_name(pre)
    else:
        obstacle = runners.pre_obstacle(chosen, metadata.get("tokenizer.ggml.pre"))
        if obstacle is not None:
            way_out = f"{option('pre', 'falcon')} splits text as Falcon3 and Falcon-E do"
            raise BitconvError(obstacle, code=Code.RUNNER, file=source, way_out=way_out)
    header = section.header(metadata)
    size = len(header) + section.size
    with replacing(target, size, force=force) as descriptor:
        tensors = _write(opened, inspection, header, planned, descriptor, size, threads, progress)
        opened.check_unchanged()
    architecture = _architecture_name(inspection, chosen)
    run = chosen.command(type, target, embedding=f"{inspection.architecture_name}.pooling_type" in opened.metadata)
    warnings = inspection.metadata_warnings(pre)
    dense = tuple(
        RepackedDense(t.info.name, inspection.types[t.info.name], t.dense) for t in planned if t.dense is not None
    )
    return Repacking(
        target, architecture, type, chosen.name, size, run, tensors, dense, warnings, chosen.notes_on(type)
    )


def _check_input(opened: GGUFFile, inspection: Inspection) -> None:
    faults = [
        *inspection.faults,
        *(f"{name}: {text}" for name, texts in inspection.tensor_faults.items() for text in texts),
    ]
    if faults:
        raise BitconvError(faults[0], code=Code.FAULTY, file=opened.path, way_out="bitconv verify lists all faults")


def _architecture_name(inspection: Inspection, runner: Runner) -> str:
    name = inspection.architecture_name
    return name if name in runner.activations else _NEWER_NAME.get(name, name)


def _plan(
    opened: GGUFFile,
    inspection: Inspection,
    section: DataSection,
    type_name: str,
    tiles: Mapping[tuple[int, int], Tile] | None,
    dense_types: Mapping[str, str | None],
) -> list[_Planned]:
    planned = []
    scale_slots = inspection.architecture.scale_slots(inspection.sizes)
    for info in opened.tensors:
        role = inspection.roles[info.name]
        if role is Role.TERNARY and info.name not in inspection.floats:
            *stack, rows, columns = info.shape
            group = inspection.groups.get(info.name)
            layout = runners.layout_for(section.runner, type_name, (rows, columns), tiles, group)
            obstacle = runners.shape_obstacle(section.runner, layout, rows, columns, prod(stack) if stack else 0)
            obstacle = obstacle or group_obstacle(layout, columns, group)
            if obstacle is not None:
                raise BitconvError(obstacle, code=Code.LAYOUT, file=opened.path, tensor=info.name)
            beside = scale_name(info.name) in scale_slots
            if stack:
                shape = (stack[0], rows, columns)
                places = tuple(section.place_experts(info.name, shape, layout, group, beside=beside))
            else:
                places = (section.place_ternary(info.name, (rows, columns), layout, group, beside=beside),)
            planned.append(_Planned(info, places[0].offset, sum(place.nbytes for place in places), places))
        elif role is not Role.SCALE:
            old = inspection.types[info.name]
            new = old
            if role is Role.EMBEDDING:
                new = _embedding_type(opened, inspection, section.runner, info, type_name, dense_types)
            if new in PACKED:
                rows, columns = info.shape
                group = inspection.groups.get(info.name)
                layout = runners.layout_for(section.runner, new)
                beside = scale_name(info.name) in scale_slots
                place = section.place_ternary(info.name, (rows, columns), layout, group, beside=beside)
                planned.append(_Planned(info, place.offset, place.nbytes, (place,)))
            else:
                offset, nbytes = section.place_dense(info.name, info.shape, new)
                planned.append(_Planned(info, offset, nbytes, dense=new if new != old else None))
    return planned


def _embedding_type(
    opened: GGUFFile,
    inspection: Inspection,
    target: Runner,
    info: TensorInfo,
    type_name: str,
    dense_types: Mapping[str, str | None],
) -> str:
    """What an embedding or a head becomes. One that is ternary stays so where the runner has a type for it."""
    has_head, group = _has_head(opened, inspection), inspection.groups.get(info.name)
    old, parameter = inspection.types[info.name], "embed_type"
    if info.name == HEAD and dense_types["head_type"] is not None:
        parameter = "head_type"
    new = dense_types[parameter] or old
    if dense_types[parameter] is None and old in PACKED:
        able = (
            name
            for name in (old, type_name, *PACKED)
            if embeddings.obstacle(target, info.name, name, info.shape, has_head=has_head) is None
            and group_obstacle(runners.layout_for(target, name), info.shape[1], group) is None
        )
        new = next(able, "f16")
    if new != old and old in QUANTIZED:
        raise BitconvError(
            f"it is {old}, and what is quantized is not quantized or widened again",
            code=Code.LAYOUT,
            file=opened.path,
            tensor=info.name,
            way_out="convert the checkpoint",
        )
    embeddings.check(target, info.name, new, info.shape, has_head=has_head, file=opened.path, parameter=parameter)
    return new


def _has_head(opened: GGUFFile, inspection: Inspection) -> bool:
    return inspection.architecture.untied_head and any(tensor.name == HEAD for tensor in opened.tensors)


def _metadata(metadata: Metadata, inspection: Inspection, runner: Runner, type_name: str) -> Metadata:
    """The input's metadata with the architecture and file type of the output, without tiles and byte order."""
    old, new = inspection.architecture_name, _architecture_name(inspection, runner)
    result: Metadata = {}
    for key, value in metadata.items():
        if key not in (TILES_KEY, ORDER_KEY, "general.alignment"):
            result[new + key.removeprefix(old) if key.startswith(f"{old}.") else key] = value
    result["general.architecture"] = new
    result["general.file_type"] = np.uint32(runner.file_type(type_name))
    return result


def _write(
    opened: GGUFFile,
    inspection: Inspection,
    header: bytes,
    planned: list[_Planned],
    descriptor: int,
    size: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[RepackedTensor, ...]:
    scale_tensors = {t.name: t for t in opened.tensors if inspection.roles[t.name] is Role.SCALE}
    repacked: dict[str, RepackedTensor] = {}
    source = opened.open()

    def opened_matrices(info: TensorInfo) -> list[TernaryTensor]:
        layout = inspection.layouts.get(info.name) or make_layout(inspection.types[info.name])
        group = inspection.groups.get(info.name)
        return list(matrices(source, info, layout, scale_tensors.get(scale_name(info.name)), group))

    def ternary(tensor: _Planned, keep_going: KeepGoing) -> int:
        info, first, scales = tensor.info, tensor.places[0], list[Scale]()
        try:
            for file, place in zip(opened_matrices(info), tensor.places, strict=True):
                scale = file.find_scale(keep_going)
                scales.append(scale)
                obstacle = place.obstacle(scale)
                if obstacle is not None:
                    raise FaultyTensor(obstacle, code=Code.LAYOUT)
                read_trits = partial(_trits, file)
                place.write(descriptor, len(header), scale, read_trits, file.layout.row_multiple, keep_going)
        except FaultyTensor as fault:
            raise fault.at(opened.path, info.name) from None
        one = float(scales[0]) if len(scales) == 1 and isinstance(scales[0], np.float32) else None
        error = max(place.scale_error(scale) for place, scale in zip(tensor.places, scales, strict=True))
        old, new = inspection.types[info.name], first.layout.name
        repacked[info.name] = RepackedTensor(info.name, old, new, info.shape, one, error, first.group)
        return tensor.nbytes

    def read(info: TensorInfo, first: int, last: int) -> Bytes:
        piece = np.empty(last - first, np.uint8)
        if not read_at(source, piece, info.offset + first):
            cause = "the file has become shorter while it was read"
            raise BitconvError(cause, code=Code.CHANGED, file=opened.path, tensor=info.name)
        return piece

    def copy(tensor: _Planned, first: int, last: int, keep_going: KeepGoing) -> int:
        for at in range(first, last, COPY_PIECE_BYTES):
            keep_going()
            piece = read(tensor.info, at, min(at + COPY_PIECE_BYTES, last))
            write_at(descriptor, piece, len(header) + tensor.offset + at)
        return last - first

    def change(tensor: _Planned, new: str, first: int, last: int, keep_going: KeepGoing) -> int:
        """Rows first to last (exclusive) of an embedding or a head."""
        info, old = tensor.info, inspection.types[tensor.info.name]
        rows, columns = info.shape
        ternary = opened_matrices(info)[0] if info.name in inspection.layouts else None
        stride, new_stride = inspection.nbytes[info.name] // rows, type_by_name(new).nbytes((columns,))
        for start, end in row_blocks(last - first, columns, 1):
            keep_going()
            if ternary is None:
                raw = read(info, (first + start) * stride, (first + end) * stride)
            else:
                try:
                    old, raw = "f32", ternary.values(first + start, first + end).reshape(-1).view(np.uint8)
                except FaultyTensor as fault:
                    raise fault.at(opened.path, info.name) from None
            data, bad = encode(raw, old, new)
            if bad >= 0:
                where = [first + start + bad // columns, bad % columns]
                cause = f"element {where} is a value that {new} cannot hold, or not finite"
                raise BitconvError(cause, code=Code.LAYOUT, file=opened.path, tensor=info.name)
            write_at(descriptor, data, len(header) + tensor.offset + (first + start) * new_stride)
        return (last - first) * new_stride

    work: list[Callable[[KeepGoing], int]] = []
    for tensor in planned:
        if tensor.places:
            work.append(partial(ternary, tensor))
        elif tensor.dense is not None:
            rows, columns = tensor.info.shape
            step = max(CHANGE_JOB_VALUES // columns, 1)
            work += [partial(change, tensor, tensor.dense, at, min(at + step, rows)) for at in range(0, rows, step)]
        else:
            work += [
                partial(copy, tensor, at, min(at + COPY_JOB_BYTES, tensor.nbytes))
                for at in range(0, tensor.nbytes, COPY_JOB_BYTES)
            ]
    try:
        write_at(descriptor, header, 0)
        done = len(header)
        for written in jobs.run(work, threads):
            done += written
            if progress is not None:
                progress(done, size)
    finally:
        os.close(source)
    return tuple(repacked[t.info.name] for t in planned if t.places)


def _trits(file: TernaryTensor, first: int, last: int) -> Trits:
    return file.read(first, last).trits
