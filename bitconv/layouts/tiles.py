"""The tiles of TL1 and TL2: the block sizes that bitnet.cpp compiles its kernels with, one tile for each shape.

A file packed in other tiles than its runner's is computed to garbage without an error, and nothing but a record of
them tells which ones a file has.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bitconv.gguf import MalformedGGUF, Metadata
from bitconv.system.errors import BitconvError, Code

Shape: TypeAlias = tuple[int, int]  # rows, columns

TILES_KEY = "bitconv.tiles"


@dataclass(frozen=True)
class Tile:
    """Blocks of bm rows and bk columns, and the bmm rows of a block that are computed at a time; all positive.

    The names are those of kernel_config.ini; the code generators call the same three BM, BK and bm.
    """

    bm: int
    bk: int
    bmm: int

    def __str__(self) -> str:
        return f"{self.bm},{self.bk},{self.bmm}"


def tl1_obstacle(rows: int, columns: int, tile: Tile) -> str | None:
    """Why no build of bitnet.cpp computes TL1 of this shape in this tile; None where one can."""
    return _first_broken(
        "tl1",
        rows,
        columns,
        tile,
        (tile.bmm in (32, 64), "bmm must be 32 or 64"),
        (tile.bm % tile.bmm == 0, "bm must be a multiple of bmm"),
        (rows % tile.bm == 0, "the rows must be a multiple of bm"),
        (tile.bk * tile.bmm % 256 == 0, "bk must be a multiple of 256 / bmm"),
        (tile.bk <= 256, "bk must be 256 at most, or the sums of a block, in int16, can overflow"),
        (columns % tile.bk == 0, "the columns must be a multiple of bk"),
        (columns % 16 == 0, "the columns must be a multiple of 16, since lookup tables are made for 16 at a time"),
    )


def tl2_obstacle(rows: int, columns: int, tile: Tile) -> str | None:
    """Why no build of bitnet.cpp computes TL2 of this shape in this tile; None where one can.

    bk being 240 at most, fewer than 256 columns are packed in pairs, and so the data fits the tensor's size.
    """
    return _first_broken(
        "tl2",
        rows,
        columns,
        tile,
        (tile.bmm == 32, "bmm must be 32, the only one that its kernels have"),
        (tile.bm % 32 == 0, "bm must be a multiple of 32"),
        (rows % tile.bm == 0, "the rows must be a multiple of bm"),
        (tile.bk % 24 == 0, "bk must be a multiple of 24"),
        (tile.bk <= 240, "bk must be 240 at most, or the sums of a block, in int16, can overflow"),
        (columns % tile.bk % 32 == 0, "the columns left over by bk must be a multiple of 32"),
        (columns >= 256, "there must be 256 columns or more"),
    )


def _first_broken(type_name: str, rows: int, columns: int, tile: Tile, *rules: tuple[bool, str]) -> str | None:
    for kept, rule in rules:
        if not kept:
            return f"{type_name} cannot have the tile {tile} (bm,bk,bmm) for {rows}x{columns}: {rule}"
    return None


_OBSTACLES: dict[str, Callable[[int, int, Tile], str | None]] = {"tl1": tl1_obstacle, "tl2": tl2_obstacle}

# By type and name of a model: the shapes that bitnet.cpp's code generators know under that name, in their order, and
# the tiles that its setup_env.py passes to them, unchanged from October 2024 to July 2026. The directory
# preset_kernels holds other tiles for some of these shapes, which no build has: with --use-pretuned, setup_env.py
# copies them, and then runs the generator over them all the same. For 2B-4T and the Falcon models it generates
# kernels of the shapes listed here, which those models do not have.
SHIPPED: dict[str, dict[str, dict[Shape, Tile]]] = {
    "tl1": {
        "bitnet_b1_58-large": {
            (1536, 4096): Tile(256, 128, 32),
            (1536, 1536): Tile(128, 64, 64),
            (4096, 1536): Tile(256, 128, 32),
        },
        "bitnet_b1_58-3B": {
            (3200, 8640): Tile(160, 64, 32),
            (3200, 3200): Tile(320, 128, 64),
            (8640, 3200): Tile(320, 64, 32),
        },
        "Llama3-8B-1.58-100B-tokens": {
            (14336, 4096): Tile(256, 128, 32),
            (4096, 14336): Tile(128, 64, 64),
            (1024, 4096): Tile(256, 128, 32),
            (4096, 4096): Tile(128, 64, 64),
        },
    },
    "tl2": {
        "bitnet_b1_58-large": {
            (1536, 4096): Tile(256, 96, 32),
            (1536, 1536): Tile(128, 192, 32),
            (4096, 1536): Tile(256, 96, 32),
        },
        "bitnet_b1_58-3B": {
            (3200, 8640): Tile(160, 96, 32),
            (3200, 3200): Tile(320, 96, 32),
            (8640, 3200): Tile(320, 96, 32),
        },
        "Llama3-8B-1.58-100B-tokens": {
            (14336, 4096): Tile(256, 96, 32),
            (4096, 14336): Tile(128, 96, 32),
            (1024, 4096): Tile(256, 96, 32),
            (4096, 4096): Tile(128, 96, 32),
        },
    },
}


def shipped_tile(type_name: str, rows: int, columns: int) -> Tile | None:
    """The tile that bitnet.cpp's own builds have for a shape; None where they have no kernels for it."""
    return next((tiles[rows, columns] for tiles in SHIPPED[type_name].values() if (rows, columns) in tiles), None)


# For shapes that bitnet.cpp ships nothing for: sizes of the range of those that it ships.
_CANDIDATES = {
    "tl1": [Tile(bm, bk, 32) for bm in range(32, 321, 32) for bk in range(8, 129, 8)],
    "tl2": [Tile(bm, bk, 32) for bm in range(32, 321, 32) for bk in range(24, 241, 24)],
}
_NEEDS = {
    "tl1": "it needs rows in multiples of 32, columns in multiples of 16",
    "tl2": "it needs rows in multiples of 32, and 256 columns or more that a bk of 24, 48, ... or 240 divides but for "
    "a multiple of 32",
}


def choose(type_name: str, rows: int, columns: int) -> Tile:
    """The tile for a shape of "tl1" or "tl2": the shipped one, or else one that follows from the shape alone.

    BitconvError where no tile is legal.
    """
    shipped = shipped_tile(type_name, rows, columns)
    if shipped is not None:
        return shipped
    legal = [tile for tile in _CANDIDATES[type_name] if _OBSTACLES[type_name](rows, columns, tile) is None]
    if not legal:
        raise BitconvError(f"{type_name} has no legal tile for {rows}x{columns}: {_NEEDS[type_name]}", code=Code.TILES)
    if type_name == "tl1":
        return max(legal, key=lambda tile: (tile.bm, tile.bk))
    # The fewest columns in pairs, which take more of the runner's memory for tables than triples: it sets aside 11
    # bytes a column, which more than columns / 16 in pairs overrun. Then bk closest to 96, the usual one.
    return min(legal, key=lambda tile: (columns % tile.bk, abs(tile.bk - 96), tile.bk, -tile.bm))


def read_kernel_config(file: Path, type_name: str | None = None) -> dict[Shape, Tile]:
    """The tiles in bitnet.cpp's include/kernel_config.ini: a section [Kernels_N] with m, k, bm, bk, bmm for a shape.

    type_name: checks every tile against the rules of "tl1" or "tl2"; the file does not say which one it is for.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BitconvError(f"cannot be read: {error.strerror}", code=Code.READ, file=file) from None
    except (UnicodeDecodeError, configparser.Error) as error:
        raise BitconvError(
            f"not a kernel_config.ini: {' '.join(str(error).split())}", code=Code.MALFORMED, file=file
        ) from None
    if not parser.sections():
        raise BitconvError("not a kernel_config.ini: it has no sections", code=Code.MALFORMED, file=file)
    tiles: dict[Shape, Tile] = {}
    for name in parser.sections():
        rows, columns, bm, bk, bmm = (
            _size(parser[name].get(key), file, f"[{name}]: {key}") for key in ("m", "k", "bm", "bk", "bmm")
        )
        tile = Tile(bm, bk, bmm)
        obstacle = _OBSTACLES[type_name](rows, columns, tile) if type_name in _OBSTACLES else None
        if obstacle is not None:
            raise BitconvError(f"[{name}]: {obstacle}", code=Code.TILES, file=file)
        if (rows, columns) in tiles:
            raise BitconvError(
                f"[{name}]: a second tile for {rows}x{columns}; a runner is built with one", code=Code.TILES, file=file
            )
        tiles[rows, columns] = tile
    return tiles


def _size(text: str | None, file: Path, what: str) -> int:
    if text is None:
        raise BitconvError(f"{what} is missing", code=Code.MALFORMED, file=file)
    if re.fullmatch("[0-9]{1,9}", text) is None or int(text) == 0:
        raise BitconvError(f"{what} is {text!r}, expected a positive integer", code=Code.MALFORMED, file=file)
    return int(text)


def kernel_config_text(tiles: Mapping[Shape, Tile]) -> str:
    """The kernel_config.ini of tiles, byte for byte as the code generators write it."""
    return "".join(
        f"[Kernels_{i}]\nm = {rows}\nk = {columns}\nbm = {tile.bm}\nbk = {tile.bk}\nbmm = {tile.bmm}\n\n"
        for i, ((rows, columns), tile) in enumerate(tiles.items())
    )


def tile_metadata(tiles: Mapping[Shape, Tile]) -> Metadata:
    """The record of a file's tiles: an array of strings like "1024x512 256,96,32", rows x columns and bm,bk,bmm."""
    return {TILES_KEY: [f"{rows}x{columns} {tile}" for (rows, columns), tile in tiles.items()]}


def tiles_from_metadata(metadata: Metadata, file: object) -> dict[Shape, Tile]:
    """The tiles that a GGUF file records, none in files that bitconv did not write. MalformedGGUF for a bad record."""
    record = metadata.get(TILES_KEY, [])
    if not isinstance(record, list):
        raise MalformedGGUF(f"{TILES_KEY} is no array of strings", file=file)
    tiles: dict[Shape, Tile] = {}
    for text in record:
        match = re.fullmatch("{0}x{0} {0},{0},{0}".format("([1-9][0-9]{0,8})"), text)
        if match is None:
            raise MalformedGGUF(f"{TILES_KEY} holds {text!r}, expected the form '1024x512 256,96,32'", file=file)
        rows, columns, *sizes = map(int, match.groups())
        if (rows, columns) in tiles:
            raise MalformedGGUF(f"{TILES_KEY} holds two tiles for {rows}x{columns}", file=file)
        tiles[rows, columns] = Tile(*sizes)
    return tiles
