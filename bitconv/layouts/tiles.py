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
from bitconv.system.files import MAX_KERNEL_CONFIG, read_text

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


def first_broken_rule(type_name: str, rows: int, columns: int, tile: Tile, *rules: tuple[bool, str]) -> str | None:
    """The first of (kept, rule) that a tile breaks, as an obstacle."""
    for kept, rule in rules:
        if not kept:
            return f"{type_name} cannot have the tile {tile} (bm,bk,bmm) for {rows}x{columns}: {rule}"
    return None


@dataclass(frozen=True)
class TileRules:
    """Which tiles a layout can have, and which it has where nobody says.

    obstacle: why no build of bitnet.cpp computes the layout of a shape in a tile. shipped: by the name of a model, what
    bitnet.cpp's own builds have. candidates: for other shapes, sizes of the range of those that it ships. preference:
    of columns and a tile, the least is best. needs: of a shape, in words. build_option: of bitnet.cpp's CMake build,
    which compiles the layout's kernels.

    shipped has the shapes that bitnet.cpp's code generators know under that name, in their order, and the tiles that
    its setup_env.py passes to them, unchanged from October 2024 to July 2026. The directory preset_kernels holds other
    tiles for some of these shapes, which no build has: with --use-pretuned, setup_env.py copies them, and then runs the
    generator over them all the same. For 2B-4T and the Falcon models it generates kernels of the shapes listed, which
    those models do not have.
    """

    type_name: str
    obstacle: Callable[[int, int, Tile], str | None]
    shipped: Mapping[str, Mapping[Shape, Tile]]
    candidates: tuple[Tile, ...]
    preference: Callable[[int, Tile], tuple[int, ...]]
    needs: str
    build_option: str

    def shipped_tile(self, rows: int, columns: int) -> Tile | None:
        """The tile that bitnet.cpp's own builds have for a shape; None where they have no kernels for it."""
        return next((tiles[rows, columns] for tiles in self.shipped.values() if (rows, columns) in tiles), None)

    def choose(self, rows: int, columns: int) -> Tile:
        """The tile for a shape: the shipped one, or else one that follows from the shape alone.

        BitconvError where no tile is legal.
        """
        shipped = self.shipped_tile(rows, columns)
        if shipped is not None:
            return shipped
        legal = [tile for tile in self.candidates if self.obstacle(rows, columns, tile) is None]
        if not legal:
            cause = f"{self.type_name} has no legal tile for {rows}x{columns}: {self.needs}"
            raise BitconvError(cause, code=Code.TILES)
        return min(legal, key=lambda tile: self.preference(columns, tile))


def read_kernel_config(file: Path, rules: TileRules | None = None) -> dict[Shape, Tile]:
    """The tiles in bitnet.cpp's include/kernel_config.ini: a section [Kernels_N] with m, k, bm, bk, bmm for a shape.

    rules: of the layout that it is for, which every tile is checked by; the file does not say which layout that is.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(file, limit=MAX_KERNEL_CONFIG))
    except OSError as error:
        raise BitconvError(f"cannot be read: {error.strerror}", code=Code.READ, file=file) from None
    except configparser.Error as error:
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
        obstacle = None if rules is None else rules.obstacle(rows, columns, tile)
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
