"""The layouts of ternary tensors, one file each, and the registry of them by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from bitconv.layouts import tiles as _tiles
from bitconv.layouts.floats import Floats
from bitconv.layouts.i2_s import I2_S_ARM64, I2_S_ROW4, I2S
from bitconv.layouts.iq1_bn import IQ1_BN
from bitconv.layouts.iq2_bn import IQ2_BN
from bitconv.layouts.layout import Bytes, InvalidCode, Layout, Region, Scales, ScaleT, Trits
from bitconv.layouts.q2_0 import Q2_0
from bitconv.layouts.q8_0 import Q8_0
from bitconv.layouts.tiles import Tile
from bitconv.layouts.tl1 import TL1
from bitconv.layouts.tl2 import TL2
from bitconv.layouts.tq1_0 import TQ1_0
from bitconv.layouts.tq2_0 import TQ2_0
from bitconv.system.errors import BitconvError, Code, option

FLOATS = ("f32", "f16", "bf16")
_PLAIN: dict[str, Layout] = {f.name: f for f in (I2S(), TQ1_0(), TQ2_0(), Q2_0(), IQ2_BN(), IQ1_BN(), Q8_0())}
# Layouts whose bytes depend on tile sizes, which the runner has compiled in for each shape.
TILED: dict[str, Callable[[Tile], Layout]] = {"tl1": TL1, "tl2": TL2}
# Layouts whose float16 scale in each block can be 1, with the exact scale in a float32 tensor beside the weight.
BLOCK_SCALED = ("tq1_0", "tq2_0", "q2_0")
# What keeps a scale in float32.
EXACT_SCALE = ("i2_s", "tl1", "tl2", "iq2_bn", "f32")
# What the ternary tensors of a file can be asked to be.
TERNARY_TYPES = ("i2_s", "tl1", "tl2", *BLOCK_SCALED, "iq2_bn", "iq1_bn", *FLOATS)
# I2_S in the byte orders of other builds of bitnet.cpp.
I2_S_ORDERS: dict[str, Layout] = {"arm64": I2_S_ARM64, "row4": I2_S_ROW4}


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
    if name not in TILED:
        return _PLAIN[name]
    if shape is None:
        raise ValueError(f"{name} depends on a tensor's shape")
    if tiles is not None and shape not in tiles:
        raise BitconvError(
            f"the kernel configuration has no section for {shape[0]}x{shape[1]}, and a runner built with it cannot "
            "run this shape",
            code=Code.TILES,
            way_out="build one with the ini that bitconv kernel-config writes",
        )
    return TILED[name](_tiles.choose(name, *shape) if tiles is None else tiles[shape])


def check_has_tiles(types: Collection[str]) -> None:
    """BitconvError where none of the types asked for heeds a kernel configuration."""
    if not TILED.keys() & types:
        raise BitconvError(
            f"{option('kernel_config')} is for {' and '.join(TILED)}, and none is asked for",
            code=Code.OPTIONS,
        )


__all__ = [
    "BLOCK_SCALED",
    "EXACT_SCALE",
    "FLOATS",
    "I2_S_ORDERS",
    "TERNARY_TYPES",
    "TILED",
    "Bytes",
    "InvalidCode",
    "Layout",
    "Region",
    "ScaleT",
    "Scales",
    "Trits",
    "check_has_tiles",
    "make_layout",
]
