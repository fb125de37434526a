"""Writing a made-up checkpoint: the right files, names, types and sizes, and random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from bitconv.checkpoint.safetensors_files import NewTensor, write_tensors
from bitconv.choices import STORED
from bitconv.commands.dummy.noise import Noise, Stream
from bitconv.commands.dummy.shapes import Shape, find_shape
from bitconv.layouts.layout import Bytes
from bitconv.models.architectures import Role, Slot
from bitconv.models.config_json import config_json
from bitconv.models.quantization import ScaleConvention
from bitconv.system.errors import BitconvError, Code, check_number, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import replacing_directory, tidy_directory
from bitconv.system.results import Result
from bitconv.tokenizer.rebuild import encode_json, token_ids, tokenizer_files

_NORM_SPREAD = 0.1


@dataclass(frozen=True, repr=False)
class Dummy(Result):
    """What was written.

    Attributes:
        parameters: Weights of the model, scales not counted.
        size: Of all tensors, in bytes.
    """

    directory: Path
    family: str
    architecture: str
    stored: str
    parameters: int
    size: int
    files: tuple[str, ...]


@reports_system_errors
def dummy(
    directory: str | os.PathLike[str],
    *,
    shape: str,
    stored: str,
    seed: int = 0,
    layers: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Dummy:
    """Write a model directory of a real model's exact sizes with random weights, a few blocks of them at a time.

    The bytes depend on shape, stored, seed and layers alone.

    Args:
        directory: The model directory to write, which does not exist or is empty.
        shape: A name that `bitconv dummy --help` lists, or LAYERSxHIDDENxFFN[xHEADS[xKV_HEADS[xVOCAB]]].
        stored: How the ternary matrices are: "bf16" or "f32" master weights, or "packed". All else is bf16 but for
            "f32".
        seed: Other random weights.
        layers: In place of the shape's.
        threads: All cores where None.
        progress: Called with the bytes of tensors written so far and in all.

    Returns:
        What was written.

    Raises:
        BitconvError: Where nothing stores such a model so, where the directory holds anything, and where the disk has
            too little room. Then nothing is written.

    Example:
        >>> bitconv.dummy("dummy", shape="1x256x512", stored="packed").parameters > 0
        True
    """
    target = Path(directory)
    made = find_shape(shape, layers)
    stored = STORED.parse(stored)
    check_number("seed", seed, 0)
    if stored == "packed" and made.convention is None:
        sizes = made.sizes
        numbers = (sizes.layers, sizes.hidden, sizes.ffn, sizes.heads, sizes.kv_heads, sizes.vocab)
        raise BitconvError(
            f"{option('shape', shape)} {option('stored', 'packed')}: no checkpoint of {made.family.name} is packed",
            code=Code.OPTIONS,
            way_out="take bf16 or f32, or a model of this size in another family: "
            + option("shape", "x".join(map(str, numbers))),
        )
    tensors = _tensors(made, stored, Noise(seed))
    size = sum(tensor.nbytes for tensor in tensors)
    _check_target(target, size)
    metadata = made.vocabulary()
    files = tokenizer_files(metadata, target, None)
    ids = token_ids(metadata, target)
    files |= {"config.json": encode_json(_config(made, stored) | ids), "generation_config.json": encode_json(ids)}
    with replacing_directory(target) as temporary:
        write_tensors(temporary, tensors, threads, progress)
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        written = tuple(sorted(path.name for path in temporary.iterdir()))
    slots = [slot for slot in made.family.architecture.slots(made.sizes) if _is_stored(slot, made)]
    return Dummy(
        directory=target,
        family=made.family.name,
        architecture=made.family.hf_architecture,
        stored=stored,
        parameters=sum(prod(slot.shape) for slot in slots),
        size=size,
        files=written,
    )


def _config(shape: Shape, stored: str) -> dict[str, Any]:
    convention = shape.convention or ScaleConvention.MULTIPLY
    dtype = "f32" if stored == "f32" else "bf16"
    config = config_json(shape.family, shape.sizes, None, tied=shape.tied, dtype=dtype, convention=convention)
    if shape.convention is None:
        del config["quantization_config"]  # the class ternarises its weights by itself
    elif stored != "packed":
        config["quantization_config"] |= {"linear_class": "autobitlinear", "quantization_mode": "online"}
    return config


def _is_stored(slot: Slot, shape: Shape) -> bool:
    if slot.role in (Role.SCALE, Role.ROPE_FACTORS):
        return False
    return not (shape.tied and slot.name == "output.weight")


def _tensors(shape: Shape, stored: str, noise: Noise) -> list[NewTensor]:
    dtype = "f32" if stored == "f32" else "bf16"
    tensors = []
    for number, slot in enumerate(shape.family.architecture.slots(shape.sizes)):
        if not _is_stored(slot, shape):
            continue
        name, stream = shape.family.source_name(slot.name), partial(noise.stream, number)
        if slot.role is Role.TERNARY and stored == "packed" and shape.convention is not None:
            rows, columns = slot.shape
            if rows % 4:
                raise BitconvError(
                    f"{option('stored', 'packed')}: {name}: {rows} rows cannot be packed four to a byte",
                    code=Code.OPTIONS,
                )
            data = partial(_packed, rows // 4 * columns, stream)
            tensors.append(NewTensor(name, "u8", (rows // 4, columns), data))
            scale = partial(_weight_scale, shape.convention, stream)
            tensors.append(NewTensor(f"{name}_scale", "bf16", (1,), scale))
        else:
            make = _norm if slot.role is Role.NORM else _weights
            tensors.append(NewTensor(name, dtype, slot.shape, partial(make, prod(slot.shape), dtype, stream)))
    return tensors


def _weights(count: int, dtype: str, stream: Callable[[], Stream], keep_going: KeepGoing) -> Iterator[Bytes]:
    numbers = stream()
    return _checked(numbers.floats(count, dtype, numbers.magnitude()), keep_going)


def _norm(count: int, dtype: str, stream: Callable[[], Stream], keep_going: KeepGoing) -> Iterator[Bytes]:
    return _checked(stream().floats(count, dtype, _NORM_SPREAD, center=1.0), keep_going)


def _packed(count: int, stream: Callable[[], Stream], keep_going: KeepGoing) -> Iterator[Bytes]:
    return _checked(stream().packed_trits(count), keep_going)


def _weight_scale(convention: ScaleConvention, stream: Callable[[], Stream], keep_going: KeepGoing) -> Iterator[Bytes]:
    scale = stream().magnitude()
    stored = scale if convention is ScaleConvention.MULTIPLY else 1 / scale
    return stream().floats(1, "bf16", 0.0, center=stored)


def _checked(blocks: Iterator[Bytes], keep_going: KeepGoing) -> Iterator[Bytes]:
    for block in blocks:
        keep_going()
        yield block


def _check_target(path: Path, size: int) -> None:
    if not path.parent.is_dir():
        raise BitconvError(f"the directory {path.parent} does not exist", code=Code.NOT_FOUND, file=path)
    tidy_directory(path)
    if path.exists() and not path.is_dir():
        raise BitconvError("is a file", code=Code.FILE_KIND, file=path, way_out="name a directory")
    if path.exists() and any(path.iterdir()):
        raise BitconvError("is not empty", code=Code.EXISTS, file=path, way_out="name another directory")
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < size:
        raise BitconvError(f"would take {size:,} bytes, and the disk has {free:,} left", code=Code.WRITE, file=path)
