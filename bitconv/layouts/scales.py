"""The scales of a ternary tensor: one for the whole tensor, one a row, or one for each group of columns of a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.layouts.layout import Layout, Scales

# One scale, positive and finite; or float32 (rows, columns / group), 0 where all trits of a group are.
Scale: TypeAlias = np.float32 | Scales

# The fewest columns that share a scale in published models; groups are this, or a power of two times it, or a row.
MIN_GROUP = 32

GROUPS_KEY = "bitconv.scales"
# The names of projections that are not ternary.
FLOATS_KEY = "bitconv.floats"


def group_of(scale: object, columns: int) -> int | None:
    """The columns of a row that share a scale; None where the whole tensor has one, or it is not known yet."""
    return columns // scale.shape[1] if isinstance(scale, np.ndarray) else None


def simplest(scales: Scales) -> Scale:
    """The same scales in as few as there can be: one where all are the same, else one a row, else larger groups.

    A scale of 0 is that of zeros, for which any will do. Scales of nothing but zeros are the one scale 0.
    """
    rows = _merged(scales, scales.shape[1])
    if rows is not None:
        one = _merged(rows.T, len(rows))
        return rows if one is None else np.float32(one[0, 0])
    while scales.shape[1] % 2 == 0 and (pairs := _merged(scales, 2)) is not None:
        scales = pairs
    return scales


def _merged(scales: Scales, count: int) -> Scales | None:
    """One in place of each `count` neighbours in a row; None where they differ."""
    neighbours = scales.reshape(len(scales), -1, count)
    largest: Scales = neighbours.max(axis=2)
    return largest if ((neighbours == 0) | (neighbours == largest[..., None])).all() else None


def group_obstacle(layout: Layout, columns: int, group: int | None) -> str | None:
    """Why a layout has no room for a scale for each `group` columns; None where it has."""
    stored = layout.scale_columns(columns)
    if group is None or (stored is not None and group % stored == 0):
        return None
    has = "one scale" if stored is None else f"a scale for each {stored} columns"
    return f"{layout.name} has {has}, and this tensor has {describe(group, columns)}"


def scale_obstacle(layout: Layout, scale: object, columns: int) -> str | None:
    """Why a layout cannot hold scales; None where it can.

    One scale a tensor may be rounded, which the user is told; of several, every one must be held exactly.
    """
    if not isinstance(scale, np.ndarray):
        return None
    cause = group_obstacle(layout, columns, group_of(scale, columns))
    if cause is None:
        rounded = layout.stored_scale(scale)
        wrong = np.flatnonzero(rounded != scale)
        if wrong.size:
            return f"{layout.name} would round its scales, {scale.flat[wrong[0]]} to {rounded.flat[wrong[0]]}"
    return cause


def describe(group: int, columns: int) -> str:
    return "a scale a row" if group == columns else f"a scale for each {group} columns"


def block_scales(layout: Layout, scale: Scale, first: int, last: int, columns: int) -> Scales:
    """What pack_rows takes for the rows first to last (exclusive)."""
    stored = layout.scale_columns(columns)
    if stored is None:
        return np.empty(0, np.float32)
    if not isinstance(scale, np.ndarray):
        return np.full((last - first, columns // stored), scale)
    return np.repeat(scale[first:last], columns // stored // scale.shape[1], axis=1)


def group_metadata(groups: Mapping[str, int]) -> Metadata:
    """The record of which tensors have several scales: strings like "blk.0.attn_q.weight 128", columns that share one.

    Without it, scales that differ within a tensor are damage.
    """
    return {GROUPS_KEY: [f"{name} {group}" for name, group in groups.items()]}


def groups_from_metadata(metadata: Metadata, file: object) -> dict[str, int]:
    """The groups by tensor name that a GGUF file records. MalformedGGUF for a bad record."""
    record = metadata.get(GROUPS_KEY, [])
    if not isinstance(record, list):
        raise MalformedGGUF(f"{GROUPS_KEY} is no array of strings", file=file)
    groups: dict[str, int] = {}
    for text in record:
        match = re.fullmatch("([^ ]+) ([1-9][0-9]{0,8})", text)
        if match is None or match[1] in groups:
            raise MalformedGGUF(f"{GROUPS_KEY} holds {text!r}, expected each tensor once: 'name 128'", file=file)
        groups[match[1]] = int(match[2])
    return groups


def floats_from_metadata(metadata: Metadata, file: object) -> set[str]:
    """The projections that a GGUF file says are not ternary. MalformedGGUF for a bad record."""
    record = metadata.get(FLOATS_KEY, [])
    if not isinstance(record, list):
        raise MalformedGGUF(f"{FLOATS_KEY} is no array of strings", file=file)
    return set(record)


def check_group(group: int, columns: int) -> str | None:
    """Why no tensor can have a scale for each `group` columns; None where one can."""
    power = group >= MIN_GROUP and group & (group - 1) == 0 and columns % group == 0
    return None if group == columns or power else f"{GROUPS_KEY} says {group} columns share a scale, of {columns}"
