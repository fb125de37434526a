"""What a user builds bitnet.cpp's TL1 or TL2 kernels with, for the shapes of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from bitconv.checkpoint.directory import Checkpoint
from bitconv.choices import TILED_TYPE
from bitconv.layouts.registry import tile_rules
from bitconv.layouts.tiles import Shape, Tile, TileRules, kernel_config_text
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.quantization import ScaleConvention
from bitconv.runners import default_runner
from bitconv.system.errors import BitconvError, Code, option, reports_system_errors
from bitconv.system.output import check_no_model_file, check_output, replacing
from bitconv.system.rawio import write_at
from bitconv.system.results import Result

# A name for a model in the code generator's list, where it stands in for shapes that no model there has.
_CUSTOM = "custom"


@dataclass(frozen=True)
class TiledShape:
    """shipped: bitnet.cpp's own builds for some model have this tile for this shape."""

    shape: Shape
    tile: Tile
    shipped: bool


@dataclass(frozen=True, repr=False)
class KernelConfig(Result):
    """A kernel_config.ini, and how to build a runner with kernels of its tiles.

    Attributes:
        left_out: Why shapes are not in it, by "rows x columns".
        generator_entry: What must be added to ModelShapeDict in the code generator first; None where the generator
            knows the shapes.
        generator: The command that makes the kernels, in the directory of bitnet.cpp.
        build: The commands after it.
        notes: What else to do, and what is known to go wrong, in words.
    """

    output: Path
    type: str
    shapes: tuple[TiledShape, ...]
    left_out: dict[str, str]
    generator_entry: str | None
    generator: str
    build: tuple[str, ...]
    notes: tuple[str, ...]


@reports_system_errors
def kernel_config(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    type: str,
    revision: str | None = None,
    token: str | None = None,
    leave_out: bool = False,
    force: bool = False,
) -> KernelConfig:
    """Write the kernel_config.ini for the projections of a Hugging Face model.

    Args:
        model: As `convert` takes it.
        output: The ini to write.
        type: "tl1" or "tl2".
        revision: As `convert` takes it.
        token: As `convert` takes it.
        leave_out: Leave out shapes that have no legal tile, which is an error otherwise.
        force: Overwrite output.

    Returns:
        The tiles, and how to build a runner with them.

    Raises:
        BitconvError: Where a shape has no legal tile, or the model cannot be read.

    Example:
        >>> result = bitconv.kernel_config("fixtures/Llama3-1.58-tiny", "kernel_config.ini", type="tl2")
        >>> len(result.shapes)
        4
    """
    type = TILED_TYPE.parse(type)
    rules = tile_rules(type)
    assert rules is not None
    target = Path(output)
    check_output(target, force=force)
    with open_checkpoint(model, revision, token, sampled=True) as checkpoint:
        check_no_model_file(target, checkpoint.path, b"[Kernels_")
        tiles, left_out = _tiles(checkpoint, rules, leave_out)
    entry, name = None, _generator_model(rules, tiles)
    if name is None:
        entry, name = f'"{_CUSTOM}": {[list(shape) for shape in tiles]},', _CUSTOM
    else:
        tiles = {shape: tiles[shape] for shape in rules.shipped[name]}
    text = kernel_config_text(tiles).encode()
    with replacing(target, len(text), force=force) as descriptor:
        write_at(descriptor, text, 0)
    return KernelConfig(
        output=target,
        type=type,
        shapes=tuple(TiledShape(shape, tile, rules.shipped_tile(*shape) is not None) for shape, tile in tiles.items()),
        left_out=left_out,
        generator_entry=entry,
        generator=_generator(type, name, tiles),
        build=(
            f"cmake -B build -D{rules.build_option}=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++",
            "cmake --build build --config Release",
        ),
        notes=default_runner(type, "llama").notes_on(type),
    )


def _tiles(checkpoint: Checkpoint, rules: TileRules, leave_out: bool) -> tuple[dict[Shape, Tile], dict[str, str]]:
    """The tiles of a checkpoint's shapes in the order of its tensors, and why shapes have none."""
    tiles: dict[Shape, Tile] = {}
    left_out: dict[str, str] = {}
    # The scales play no part here, and so neither does what config.json says about them.
    loaded = load_model(checkpoint, ScaleConvention.MULTIPLY)
    if loaded.sizes.experts:
        raise BitconvError(
            f"a mixture of experts, which bitnet.cpp does not compute in {rules.type_name}",
            code=Code.RUNNER,
            file=checkpoint.path,
        )
    for weight in loaded.matrices:
        try:
            tiles[weight.shape] = rules.choose(*weight.shape)
        except BitconvError as error:
            if not leave_out:
                way_out = (
                    f"pass {option('leave_out')} here and {option('fallback', 'f16')} to convert, and this tensor "
                )
                raise weight.stored.error(error.cause, code=error.code, way_out=f"{way_out}stays in floats") from None
            left_out["{}x{}".format(*weight.shape)] = str(error)
    if not tiles:
        raise BitconvError(
            f"no shape of this model has a legal tile of {rules.type_name}", code=Code.TILES, file=checkpoint.path
        )
    return tiles, left_out


def _generator_model(rules: TileRules, tiles: Mapping[Shape, Tile]) -> str | None:
    """The name under which the code generator knows exactly these shapes."""
    return next((name for name, shapes in rules.shipped.items() if shapes.keys() == tiles.keys()), None)


def _generator(type_name: str, name: str, tiles: Mapping[Shape, Tile]) -> str:
    """The code generator's command line. It takes the sizes in the order of the shapes that it has under the name."""
    sizes = {
        "BM": [tile.bm for tile in tiles.values()],
        "BK": [tile.bk for tile in tiles.values()],
        "bm": [tile.bmm for tile in tiles.values()],
    }
    options = " ".join(f"--{option} {','.join(map(str, values))}" for option, values in sizes.items())
    return f"python utils/codegen_{type_name}.py --model {name} {options}"
