"""A GGUF file of a BitNet model inspected: everything about it but the values of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from bitconv.choices import I2_S_ORDER
from bitconv.gguf import GGUFFile, MalformedGGUF, Metadata, TensorInfo, tensor_type
from bitconv.layouts import EIGHT_BIT, FLOATS, TERNARY_TYPES
from bitconv.layouts.i2_s import ORDER_KEY, order_from_metadata
from bitconv.layouts.layout import Layout
from bitconv.layouts.registry import TILED, make_layout
from bitconv.layouts.scales import (
    FLOATS_KEY,
    GROUPS_KEY,
    check_group,
    floats_from_metadata,
    group_obstacle,
    groups_from_metadata,
)
from bitconv.layouts.tiles import Tile, tiles_from_metadata
from bitconv.models import hyperparameters
from bitconv.models.architectures import Architecture, Role, Slot, architecture, architecture_names, scale_name
from bitconv.models.hyperparameters import Hyperparameters, UnsupportedMetadata
from bitconv.packed.embeddings import HEAD, takes
from bitconv.packed.keys import Finding, Level, key_findings
from bitconv.packed.vocabulary import vocabulary_findings
from bitconv.runners import RUNNERS, file_types, layout_name
from bitconv.system.errors import BitconvError, Code, one_line, option, plain

MAX_WARNINGS = 20
_TERNARY = {*TERNARY_TYPES, EIGHT_BIT}
# What is known of numbers that bitconv does not read: those of ik_llama.cpp's ggml.h, and of others.
_ROTATED = "that of PrismML's fork for Bonsai 2, whose weights are rotated; without the rotation they run, and wrong"
FOREIGN_TYPES = {
    136: "q8_k64 of ik_llama.cpp, of activations alone",
    137: "iq2_k of ik_llama.cpp",
    142: _ROTATED,
    143: _ROTATED,
}
_STACKED = {name for runner in RUNNERS for name in runner.expert_types}
# Which types runners load in each role. Those of norms depend on the architecture: bitnet.cpp to May 2026 aborts on
# norms that are not F32.
_ALLOWED = {
    Role.TERNARY: _TERNARY,
    Role.BIAS: {"f32"},
    Role.ROUTER: {"f32"},
    Role.SCALE: {"f32"},
    Role.ROPE_FACTORS: {"f32"},
}


@dataclass
class Inspection:
    """What a file holds, as its header says, and what is wrong with it.

    types, roles and nbytes: of every tensor listed. layouts: of the ternary ones, an embedding or a head in a packed
    layout among them. groups: the columns of a row that
    share a scale, of ternary tensors that have several. floats: the projections that are not ternary.

    faults: of the set of tensors and their places; tensor_faults: by tensor name; metadata: what is to be said of its
    keys, on which no tensor depends.
    """

    architecture: Architecture
    architecture_name: str
    sizes: Hyperparameters
    types: dict[str, str] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    floats: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    metadata: list[Finding] = field(default_factory=list)
    tensor_faults: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, tensor: TensorInfo, text: str) -> None:
        self.tensor_faults.setdefault(tensor.name, []).append(text)

    def check_loads(self, file: object, pre: str | None = None) -> None:
        """BitconvError where a runner would refuse the file for its metadata.

        pre: what takes the place of tokenizer.ggml.pre.
        """
        for finding in self.metadata:
            if finding.level is Level.REFUSED and not (pre and finding.key == "tokenizer.ggml.pre"):
                raise BitconvError(
                    f"{finding.key} {finding.text}",
                    code=Code.FAULTY,
                    file=file,
                    way_out="no runner loads such a file; bitconv verify lists all that is wrong with it",
                )

    def check_known_keys(self, file: object) -> None:
        """BitconvError where it has keys by which runners may compute otherwise than bitconv does."""
        for finding in self.metadata:
            if finding.key.startswith(f"{self.architecture_name}.") and finding.level is Level.WARNING:
                raise BitconvError(f"{finding.key} {finding.text}", code=Code.GGUF_UNSUPPORTED, file=file)

    def metadata_warnings(self, pre: str | None = None) -> tuple[str, ...]:
        """What is wrong with the metadata or not known, in lines for those who carry it over, who write
        general.file_type anew. pre: as check_loads has it.
        """
        mended = ("general.file_type", *(["tokenizer.ggml.pre"] if pre else []))
        return tuple(one_line(f"{f.key} {f.text}") for f in self.metadata if f.key not in mended)[:MAX_WARNINGS]


def inspect_file(
    opened: GGUFFile, tiles: Mapping[tuple[int, int], Tile] | None = None, i2_s_order: str | None = None
) -> Inspection:
    """Check sizes, offsets, alignment, types, the architecture's tensor set, dimensions, and vocabulary counts.

    tiles: of TL1 and TL2 by (rows, columns), and i2_s_order: one of I2_S_ORDERS, in place of those that the file's
    metadata records. Nothing else in a file tells them.

    BitconvError where the architecture or a tensor's type is not one that bitconv knows; MalformedGGUF where the
    metadata lacks what the rest is checked by.
    """
    name = opened.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise MalformedGGUF("general.architecture is missing", file=opened.path)
    known = architecture(name, [tensor.name for tensor in opened.tensors])
    if known is None:
        raise BitconvError(
            f"architecture {plain(name)} is not supported ({', '.join(architecture_names())} are)",
            code=Code.GGUF_UNSUPPORTED,
            file=opened.path,
        )
    sizes = hyperparameters.from_metadata(opened.metadata, name, opened.path)
    if sizes.rope_long is not None and "longrope" not in known.rope_scaling:
        cause = f"{name}.rope.scaling.type is longrope, and the graph of {known.graph} loads no lists of rope factors"
        raise UnsupportedMetadata(cause, code=Code.GGUF_UNSUPPORTED, file=opened.path)
    inspection = Inspection(known, name, sizes)
    if sizes.layers > len(opened.tensors):
        raise MalformedGGUF(f"{name}.block_count is {sizes.layers}, more than there are tensors", file=opened.path)
    slots = {slot.name: slot for slot in known.slots(sizes)}
    _check_types(opened, inspection)
    _check_set(opened, inspection, slots)
    _find_layouts(opened, inspection, tiles, i2_s_order)
    _check_places(opened, inspection)
    _check_file_type(opened.metadata, inspection)
    inspection.metadata += key_findings(opened.metadata, name)
    inspection.metadata += vocabulary_findings(opened.metadata, sizes.vocab)
    return inspection


def _check_types(opened: GGUFFile, inspection: Inspection) -> None:
    file_type = opened.metadata.get("general.file_type")
    for tensor in opened.tensors:
        plain = tensor_type(tensor.type_id)
        layout = layout_name(tensor.type_id, int(file_type) if isinstance(file_type, np.integer) else None)
        name = plain.name if plain is not None else layout
        if name is None:
            known = FOREIGN_TYPES.get(tensor.type_id)
            raise BitconvError(
                f"tensor type {tensor.type_id} is not supported{f': {known}' if known else ''}",
                code=Code.GGUF_UNSUPPORTED,
                file=opened.path,
                tensor=tensor.name,
            )
        inspection.types[tensor.name] = name
        if plain is not None:
            try:
                inspection.nbytes[tensor.name] = plain.nbytes(tensor.shape)
            except ValueError as error:
                raise MalformedGGUF(str(error), file=opened.path, tensor=tensor.name) from None


def _check_places(opened: GGUFFile, inspection: Inspection) -> None:
    """Tensors follow each other in the order listed, with no gap but alignment padding: llama.cpp refuses others."""
    end = opened.data_offset
    for tensor in opened.tensors:
        place = -(-end // opened.alignment) * opened.alignment
        if tensor.offset != place:
            inspection.fault(tensor, f"lies at byte {tensor.offset}; after the tensor before it, it must be {place}")
        end = tensor.offset + inspection.nbytes[tensor.name]
        if end > opened.size:
            inspection.fault(tensor, f"truncated: it ends at byte {end}, the file at byte {opened.size}")
    if opened.size > end and opened.size != -(-end // opened.alignment) * opened.alignment:
        inspection.faults.append(f"{opened.size - end} bytes follow the last tensor")


def _check_set(opened: GGUFFile, inspection: Inspection, slots: Mapping[str, Slot]) -> None:
    listed = {tensor.name for tensor in opened.tensors}
    has_head = inspection.architecture.untied_head and HEAD in listed
    for tensor in opened.tensors:
        slot = slots.get(tensor.name)
        if slot is None:
            # Its role does not matter any more: the tensor is a fault, and its data is not looked at.
            inspection.roles[tensor.name] = Role.EMBEDDING
            inspection.fault(tensor, f"is no tensor of the architecture {inspection.architecture_name}")
            continue
        inspection.roles[tensor.name] = slot.role
        if tensor.shape != slot.shape:
            inspection.fault(tensor, f"has shape {tensor.shape}, the metadata implies {slot.shape}")
        type_name = inspection.types[tensor.name]
        if slot.role is Role.EMBEDDING:
            taken = any(takes(runner, tensor.name, type_name, has_head=has_head) for runner in RUNNERS)
        else:
            allowed = inspection.architecture.norm_types if slot.role is Role.NORM else _ALLOWED[slot.role]
            taken = type_name in allowed
        if not taken:
            inspection.fault(tensor, f"is {type_name}, in which no runner takes this tensor")
    for slot in slots.values():
        if slot.name not in listed and not slot.optional:
            inspection.faults.append(f"tensor {slot.name} is missing")


def _find_layouts(
    opened: GGUFFile, inspection: Inspection, tiles: Mapping[tuple[int, int], Tile] | None, i2_s_order: str | None
) -> None:
    """The layout of every ternary or packed tensor, its size, and whether it can take the tensor's shape."""
    recorded_order = order_from_metadata(opened.metadata, opened.path)
    i2_s_order = recorded_order if i2_s_order is None else I2_S_ORDER.parse(i2_s_order)
    if tiles is None:
        tiles = tiles_from_metadata(opened.metadata, opened.path)
    groups = groups_from_metadata(opened.metadata, opened.path)
    floats = floats_from_metadata(opened.metadata, opened.path)
    for tensor in opened.tensors:
        name = inspection.types[tensor.name]
        ternary = inspection.roles[tensor.name] is Role.TERNARY
        if ternary and name in FLOATS and len(tensor.shape) == 2 and tensor.name in floats:
            inspection.floats.add(tensor.name)
            continue
        if tensor.name in inspection.nbytes and not (ternary and name in _TERNARY):
            continue
        if len(tensor.shape) not in (2, 3):
            raise MalformedGGUF(
                f"{name} holds matrices, not shape {tensor.shape}", file=opened.path, tensor=tensor.name
            )
        *stack, rows, columns = tensor.shape
        if stack and name not in _STACKED:
            inspection.fault(tensor, f"is {name}, in which no runner computes stacked experts")
        if name in TILED and (rows, columns) not in tiles:
            raise BitconvError(
                f"the file does not say the {name} tile of {rows}x{columns}",
                code=Code.TILES,
                file=opened.path,
                tensor=tensor.name,
                way_out=f"pass {option('kernel_config')} with the ini that its runner was built with",
            )
        group = groups.get(tensor.name)
        if group is not None:
            obstacle = check_group(group, columns)
            if obstacle is not None:
                raise MalformedGGUF(obstacle, file=opened.path, tensor=tensor.name)
            inspection.groups[tensor.name] = group
        layout = make_layout(name, (rows, columns), tiles, group).in_byte_order(i2_s_order)
        obstacle = layout.obstacle(rows, columns) or group_obstacle(layout, columns, group)
        if obstacle is not None:
            inspection.fault(tensor, obstacle)
        if scale_name(tensor.name) in inspection.roles and not any(
            r.scale_tensors and name in r.computes for r in RUNNERS
        ):
            inspection.fault(tensor, f"is {name} beside a .scale tensor, and no runner of {name} multiplies by one")
        inspection.nbytes[tensor.name] = prod(stack) * layout.nbytes(rows, columns)
        inspection.layouts[tensor.name] = layout
    for name in groups.keys() - inspection.groups.keys():
        inspection.faults.append(f"{GROUPS_KEY} names {name}, which is no ternary tensor of the file")
    if recorded_order is not None and "i2_s" not in {layout.name for layout in inspection.layouts.values()}:
        inspection.faults.append(f"{ORDER_KEY} says {recorded_order}, and no tensor of the file is i2_s")
    for name in sorted(floats - inspection.floats):
        inspection.faults.append(f"{FLOATS_KEY} names {name}, which is no projection of floats")


def _check_file_type(metadata: Metadata, inspection: Inspection) -> None:
    """general.file_type is what people see; a file of floats that says I2_S misleads them."""
    key = "general.file_type"
    number = metadata.get(key)
    if not isinstance(number, np.uint32):
        return
    named = file_types(int(number))
    found = {inspection.types[name] for name, role in inspection.roles.items() if role is Role.TERNARY}
    if not named:
        inspection.metadata.append(Finding(key, f"is {number}, which is no runner's"))
    elif found and not named & found:
        said = f"says {' or '.join(sorted(named))}, the ternary tensors are {', '.join(sorted(found))}"
        inspection.metadata.append(Finding(key, said))
