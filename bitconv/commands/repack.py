"""From one layout to another without the checkpoint: the trits and everything else stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitconv import runners
from bitconv.choices import REPACKED_TYPE, RUNNER
from bitconv.gguf import GGUFFile, Metadata, TensorInfo, read_gguf
from bitconv.layouts.registry import check_has_tiles, make_layout, tile_rules
from bitconv.layouts.scales import group_obstacle
from bitconv.layouts.tiles import TILES_KEY, Tile, read_kernel_config
from bitconv.models.architectures import Role, scale_name
from bitconv.packed.structure import Structure, check_structure
from bitconv.packed.ternary_tensor import FaultyTensor, TernaryTensor
from bitconv.planning.placement import DataSection, TernaryPlace
from bitconv.runners import Runner
from bitconv.system import jobs
from bitconv.system.errors import BitconvError, Code, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import check_output, replacing
from bitconv.system.rawio import read_at, write_at
from bitconv.tokenizer.pretokenizers import check_name

# A job copies this many bytes of a tensor that stays as it is, in pieces that fit a core's cache.
COPY_JOB_BYTES = 1 << 25
COPY_PIECE_BYTES = 1 << 20
# The same graph: ik_llama.cpp and bitnet.cpp know both names, the first release of it only the older one.
_NEWER_NAME = {"bitnet-25": "bitnet-b1.58"}


@dataclass(frozen=True)
class RepackedTensor:
    """A ternary tensor. scale: as the input has it. scale_error: how far off the output's is, relative.

    group: the columns of a row that share a scale, of a tensor that has several; scale is None then.
    """

    name: str
    from_type: str
    type: str
    shape: tuple[int, ...]
    scale: float | None
    scale_error: float
    group: int | None


@dataclass(frozen=True)
class Repacking:
    """What a repacking wrote. size in bytes. run: the command that runs the file.

    warnings: what verify calls wrong in the metadata, which is carried over.
    """

    output: str
    architecture: str
    type: str
    runner: str
    size: int
    run: str
    tensors: tuple[RepackedTensor, ...]
    warnings: tuple[str, ...]


class _Planned(NamedTuple):
    """A tensor of the input and where it goes. offset counts from the start of the data section."""

    info: TensorInfo
    offset: int
    nbytes: int
    place: TernaryPlace | None


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
    scale_in_blocks: bool = False,
    pre: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Repacking:
    """Write a GGUF file with its ternary tensors in another layout, or for another runner.

    type, runner, kernel_config, scale_in_blocks, threads, force, progress: as `convert` takes them.
    from_kernel_config: the ini with the tiles of a TL1 or TL2 input that does not record them. from_i2_s_order:
    "arm64" or "row4" for an I2_S input in that byte order. pre: tokenizer.ggml.pre, which published files lack.
    Tensors that are not ternary and all metadata that does not speak of the layout are carried over byte for byte.

    BitconvError where the input is not ternary or not right, or the runner could not compute the output right.
    """
    source, target = Path(file), Path(output)
    check_output(target, force=force, inputs=(source, kernel_config, from_kernel_config))
    type, runner = REPACKED_TYPE.parse(type), RUNNER.optional(runner)
    if kernel_config is not None:
        check_has_tiles([type])
    gguf = read_gguf(source)
    from_tiles = None if from_kernel_config is None else read_kernel_config(Path(from_kernel_config))
    structure = check_structure(gguf, from_tiles, from_i2_s_order)
    structure.check_loads(source, pre)
    _check_input(gguf, structure)

    known = structure.architecture
    chosen = runners.default_runner(type, known.graph) if runner is None else runners.runner(runner)
    lists = structure.sizes.rope_long is not None
    obstacle = runners.graph_obstacle(chosen, known.graph, known.activation, type, rope_lists=lists)
    if obstacle is not None:
        way_out = runners.nearest(chosen, known.graph, known.activation, type, rope_lists=lists)
        raise BitconvError(obstacle, code=Code.RUNNER, way_out=way_out)
    tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config), tile_rules(type))
    section = DataSection(chosen, scale_in_blocks=scale_in_blocks)
    planned = _plan(gguf, structure, section, type, tiles)
    metadata = _metadata(gguf.metadata, structure, chosen, type)
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
        tensors = _write(gguf, structure, header, planned, descriptor, size, threads, progress)
        gguf.check_unchanged()
    architecture = _architecture_name(structure, chosen)
    run = chosen.command(type, target, embedding=f"{structure.architecture_name}.pooling_type" in gguf.metadata)
    warnings = structure.metadata_warnings(pre)
    return Repacking(str(target), architecture, type, chosen.name, size, run, tensors, warnings)


def _check_input(gguf: GGUFFile, structure: Structure) -> None:
    faults = [
        *structure.faults,
        *(f"{name}: {text}" for name, texts in structure.tensor_faults.items() for text in texts),
    ]
    faults += [f"{t.name}: stacked experts cannot be repacked" for t in gguf.tensors if len(t.shape) == 3]
    if faults:
        raise BitconvError(faults[0], code=Code.FAULTY, file=gguf.path, way_out="bitconv verify lists all faults")


def _architecture_name(structure: Structure, runner: Runner) -> str:
    name = structure.architecture_name
    return name if name in runner.activations else _NEWER_NAME.get(name, name)


def _plan(
    gguf: GGUFFile,
    structure: Structure,
    section: DataSection,
    type_name: str,
    tiles: Mapping[tuple[int, int], Tile] | None,
) -> list[_Planned]:
    planned = []
    for info in gguf.tensors:
        role = structure.roles[info.name]
        if role is Role.TERNARY:
            rows, columns = info.shape
            group = structure.groups.get(info.name)
            layout = make_layout(type_name, (rows, columns), tiles, group)
            obstacle = runners.shape_obstacle(section.runner, layout, rows, columns)
            obstacle = obstacle or group_obstacle(layout, columns, group)
            if obstacle is not None:
                raise BitconvError(obstacle, code=Code.LAYOUT, file=gguf.path, tensor=info.name)
            place = section.place_ternary(info.name, (rows, columns), layout, group)
            planned.append(_Planned(info, place.offset, place.nbytes, place))
        elif role is not Role.SCALE:
            nbytes = structure.nbytes[info.name]
            planned.append(_Planned(info, section.place(info.name, info.shape, info.type_id, nbytes), nbytes, None))
    return planned


def _metadata(metadata: Metadata, structure: Structure, runner: Runner, type_name: str) -> Metadata:
    """The input's metadata with the architecture and file type of the output, without tiles."""
    old, new = structure.architecture_name, _architecture_name(structure, runner)
    result: Metadata = {}
    for key, value in metadata.items():
        if key not in (TILES_KEY, "general.alignment"):
            result[new + key.removeprefix(old) if key.startswith(f"{old}.") else key] = value
    result["general.architecture"] = new
    result["general.file_type"] = np.uint32(runner.file_type(type_name))
    return result


def _write(
    gguf: GGUFFile,
    structure: Structure,
    header: bytes,
    planned: list[_Planned],
    descriptor: int,
    size: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[RepackedTensor, ...]:
    scale_tensors = {t.name: t for t in gguf.tensors if structure.roles[t.name] is Role.SCALE}
    repacked: dict[str, RepackedTensor] = {}
    source = gguf.open()

    def ternary(info: TensorInfo, place: TernaryPlace, keep_going: KeepGoing) -> int:
        name = info.name
        try:
            scale_tensor = scale_tensors.get(scale_name(name))
            file = TernaryTensor(source, info, structure.layouts[name], scale_tensor, place.group)
            scale = file.find_scale(keep_going)
            obstacle = place.obstacle(scale)
            if obstacle is not None:
                raise FaultyTensor(obstacle, code=Code.LAYOUT)
            multiple = file.layout.row_multiple
            place.write(descriptor, len(header), scale, lambda *rows: file.read(*rows).trits, multiple, keep_going)
        except FaultyTensor as fault:
            raise fault.at(gguf.path, name) from None
        one = None if isinstance(scale, np.ndarray) else float(scale)
        error = place.scale_error(scale)
        from_type = structure.types[name]
        repacked[name] = RepackedTensor(name, from_type, place.layout.name, place.shape, one, error, place.group)
        return place.nbytes

    def copy(tensor: _Planned, first: int, last: int, keep_going: KeepGoing) -> int:
        for at in range(first, last, COPY_PIECE_BYTES):
            keep_going()
            piece = np.empty(min(COPY_PIECE_BYTES, last - at), np.uint8)
            if not read_at(source, piece, tensor.info.offset + at):
                raise BitconvError(
                    "the file has become shorter while it was read",
                    code=Code.CHANGED,
                    file=gguf.path,
                    tensor=tensor.info.name,
                )
            write_at(descriptor, piece, len(header) + tensor.offset + at)
        return last - first

    work: list[Callable[[KeepGoing], int]] = []
    for tensor in planned:
        if tensor.place is not None:
            work.append(partial(ternary, tensor.info, tensor.place))
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
    return tuple(repacked[t.info.name] for t in planned if t.place is not None)
