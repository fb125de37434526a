"""Layouts by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module

from bitconv.layouts import EIGHT_BIT, FLOATS, PACKED
from bitconv.layouts.floats import Floats
from bitconv.layouts.layout import Layout
from bitconv.layouts.tiled import TiledLayout
from bitconv.layouts.tiles import Tile, TileRules
from bitconv.system.errors import BitconvError, Code, option

_CLASSES: dict[str, type[Layout]] = {
    name: import_module(f"bitconv.layouts.{name}").LAYOUT for name in (*PACKED, EIGHT_BIT)
}
# Layouts whose bytes depend on tile sizes, which the runner has compiled in for each shape.
TILED = tuple(name for name, layout in _CLASSES.items() if issubclass(layout, TiledLayout))


def make_layout(
    name: str,
    shape: tuple[int, int] | None = None,
    tiles: Mapping[tuple[int, int], Tile] | None = None,
    group: int | None = None,
) -> Layout:
    """The layout of a name. A tiled one needs a tensor's shape: its tile is that of `tiles`, or else bitconv's choice.

    group: the columns of a row that share a scale, where that are not all; none but floats depend on it.

    BitconvError where there is no tile for the shape.
    """
    if name in FLOATS:
        return Floats(name, group)
    layout = _CLASSES[name]
    if not issubclass(layout, TiledLayout):
        return layout()
    if shape is None:
        raise ValueError(f"{name} depends on a tensor's shape")
    if tiles is not None and shape not in tiles:
        raise BitconvError(
            f"the kernel configuration has no section for {shape[0]}x{shape[1]}, and a runner built with it cannot "
            "run this shape",
            code=Code.TILES,
            way_out="build one with the ini that bitconv kernel-config writes",
        )
    return layout(layout.tile_rules.choose(*shape) if tiles is None else tiles[shape])


def tile_rules(name: str) -> TileRules | None:
    """Which tiles a tiled layout can have; None of any other type."""
    layout = _CLASSES.get(name)
    return layout.tile_rules if layout is not None and issubclass(layout, TiledLayout) else None


def max_batch(name: str) -> int | None:
    """The most tokens at a time that a runner computes right in a type; None where any number is."""
    return _CLASSES[name].max_batch if name in _CLASSES else None


def check_has_tiles(types: Collection[str]) -> None:
    """BitconvError where none of the types asked for heeds a kernel configuration."""
    if not set(TILED) & set(types):
        raise BitconvError(
            f"{option('kernel_config')} is for {' and '.join(TILED)}, and none is asked for", code=Code.OPTIONS
        )
