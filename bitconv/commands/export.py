"""The way back: a GGUF file as a packed Hugging Face checkpoint that transformers loads and `convert` takes again."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.safetensors_files import NewTensor, write_tensors
from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.gguf import GGUFFile, MalformedGGUF, TensorInfo, read_gguf, type_by_name
from bitconv.layouts import PACKED, QUANTIZED
from bitconv.layouts.dense import decode
from bitconv.layouts.layout import Bytes
from bitconv.layouts.registry import make_layout
from bitconv.layouts.scales import Scale
from bitconv.layouts.tiles import read_kernel_config
from bitconv.models.architectures import Role, scale_name
from bitconv.models.config_json import config_json, rope_scaling
from bitconv.models.families import FAMILIES, Family
from bitconv.models.quantization import ScaleConvention
from bitconv.packed.inspection import Inspection, inspect_file
from bitconv.packed.ternary_tensor import FaultyTensor, TernaryTensor, matrices
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, one_line, option, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.output import replacing, replacing_directory, tidy_directory
from bitconv.system.rawio import read_at, write_at
from bitconv.system.results import Result
from bitconv.tokenizer.rebuild import encode_json, token_ids, tokenizer_files

# The names of the files that an export writes.
_WRITTEN = re.compile(
    r"config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer\.model|tokenizer_config\.json"
)
_EXPORTED = {(family.architecture, family.experts): family for family in FAMILIES if family.exported}


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the checkpoint.

    Attributes:
        dtype: As safetensors calls it.
        scale: What multiplies the trits of a packed one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    scale: float | None


@dataclass(frozen=True, repr=False)
class Export(Result):
    """What an export wrote.

    Attributes:
        size: Of all tensors, in bytes.
        dtype: What transformers runs the model in.
        scale_convention: What it does with weight_scale, "multiply" or "divide"; None where ternary weights are floats.
        exact_scales: dtype holds every weight_scale. Where not they are stored in float32, and transformers rounds them
            when it loads the model.
        warnings: What verify calls wrong in the file's metadata, which the checkpoint then has too, and keys that
            runners generate by and the checkpoint lacks.
        dequantized: The types of the embedding and the head where they are no floats in the file, by the checkpoint's
            names.
    """

    directory: Path
    architecture: str
    dtype: str
    scale_convention: str | None
    exact_scales: bool
    size: int
    files: tuple[str, ...]
    tensors: tuple[ExportedTensor, ...]
    warnings: tuple[str, ...]
    dequantized: dict[str, str]


@reports_system_errors
def export(
    file: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    pre: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write the model of a GGUF file as a Hugging Face model directory with packed ternary weights.

    Trits, scales and all other weights are exactly those of the file, from any layout and from floats that are
    nothing but -scale, 0 and +scale. transformers needs all floats in the type that it runs the model in: that is
    bfloat16 where it holds every dense weight exactly, and else float32.

    What packed weights have no place for makes all ternary weights floats, trit times scale, in bfloat16, float16 or
    float32, the first that holds everything: several scales a tensor, projections that are not ternary, experts, and
    biases beside scales that cannot be stored to divide by.

    Args:
        file: The GGUF file.
        directory: The model directory to write. It appears whole or not at all.
        pre: The name of the pre-tokenizer, in place of tokenizer.ggml.pre.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.
        threads: All cores where None. The bytes written do not depend on it.
        force: Replace a directory that holds nothing but files of the names that an export writes.
        progress: Called with the bytes of tensors written so far and in all.

    Returns:
        What was written.

    Raises:
        BitconvError: On anything that cannot be exported right. The directory is as it was before.

    Example:
        >>> bitconv.export("llama.gguf", "model").architecture
        'LlamaForCausalLM'
    """
    source, target = Path(file), Path(directory)
    _check_target(target, force=force)
    header = read_gguf(source)
    tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
    inspection = inspect_file(header, tiles, i2_s_order)
    inspection.check_loads(source, pre)
    inspection.check_known_keys(source)
    for name, faults in inspection.tensor_faults.items():
        raise BitconvError(f"{name}: {faults[0]}", code=Code.FAULTY, file=source)
    files = tokenizer_files(header.metadata, source, pre)
    ids = token_ids(header.metadata, source)
    descriptor = header.open()
    try:
        checkpoint = _Source(header, inspection, descriptor).checkpoint()
        files |= {"config.json": encode_json(checkpoint.config | ids), "generation_config.json": encode_json(ids)}
        with replacing_directory(target, force=force) as temporary:
            write_tensors(temporary, checkpoint.tensors, threads, progress)
            for name, data in files.items():
                with replacing(temporary / name, len(data)) as output:
                    write_at(output, data, 0)
            written = tuple(sorted(path.name for path in temporary.iterdir()))
            header.check_unchanged()
    finally:
        os.close(descriptor)
    return Export(
        directory=target,
        architecture=checkpoint.config["architectures"][0],
        dtype=checkpoint.dtype,
        scale_convention=None if checkpoint.storage is None else checkpoint.storage[0].value,
        exact_scales=checkpoint.storage is None or checkpoint.storage[1] == checkpoint.dtype,
        size=sum(tensor.nbytes for tensor in checkpoint.tensors),
        files=written,
        tensors=tuple(
            ExportedTensor(t.name, t.dtype.upper(), t.shape, t.nbytes, checkpoint.scales.get(t.name))
            for t in checkpoint.tensors
        ),
        warnings=(*inspection.metadata_warnings(pre), *_left_behind(header)),
        dequantized=checkpoint.dequantized,
    )


def _left_behind(header: GGUFFile) -> Iterator[str]:
    """What runners generate by, and the checkpoint does not have."""
    for key in sorted(header.metadata):
        if key.startswith("general.sampling.") or key == "tokenizer.ggml.suppress_tokens":
            yield one_line(f"{key} is not carried over: add what it says to generation_config.json")


class _Checkpoint(NamedTuple):
    """storage: which way weight_scale works, and its type; None where ternary weights are floats. scales: by the names
    of the packed tensors. dequantized: the types of those that were quantized."""

    config: dict[str, Any]
    dtype: str
    storage: tuple[ScaleConvention, str] | None
    tensors: list[NewTensor]
    scales: dict[str, float]
    dequantized: dict[str, str]


class _Ternary(NamedTuple):
    """A matrix of the file, and its scale or scales."""

    tensor: TernaryTensor
    scale: Scale


class _Source:
    """An open GGUF file, read as the tensors of a checkpoint."""

    def __init__(self, header: GGUFFile, inspection: Inspection, descriptor: int) -> None:
        self.path = header.path
        self.metadata = header.metadata
        self.infos = {info.name: info for info in header.tensors}
        self.inspection = inspection
        self.descriptor = descriptor
        self.family = self.exported_family()
        self.sizes = inspection.sizes

    def exported_family(self) -> Family:
        """BitconvError where transformers has no class that computes the file."""
        architecture, experts = self.inspection.architecture, bool(self.inspection.sizes.experts)
        pooled = f"{self.inspection.architecture_name}.pooling_type" in self.metadata
        family = None if pooled else _EXPORTED.get((architecture, experts))
        if family is None:
            known = ", ".join(sorted({architecture.graph for architecture, _ in _EXPORTED}))
            what = "an embedding model" if pooled else f"architecture {self.inspection.architecture_name}"
            raise BitconvError(
                f"{what} cannot be exported, only {known}",
                code=Code.GGUF_UNSUPPORTED,
                file=self.path,
                way_out="take the checkpoint that the file was made of",
            )
        return family

    def checkpoint(self) -> _Checkpoint:
        """What there is to write. Reads the scales, and the dense weights to see which float types hold them."""
        ternary: dict[str, _Ternary] = {}
        dense: dict[str, TensorInfo] = {}
        factors: dict[str, npt.NDArray[np.float32]] = {}
        architecture = self.inspection.architecture
        for slot in architecture.slots(self.sizes):
            info = self.infos.get(slot.name)
            if info is None:
                if not slot.optional:
                    raise MalformedGGUF("missing", file=self.path, tensor=slot.name)
            elif slot.role is Role.TERNARY and info.name in self.inspection.floats:
                dense[slot.name] = info
            elif slot.role is Role.TERNARY:
                ternary |= self.ternary(info)
            elif slot.role is Role.ROPE_FACTORS:
                factors[slot.name] = np.concatenate(list(self.values(info)))
            elif slot.role is not Role.SCALE and (architecture.untied_head or slot.name != "output.weight"):
                dense[slot.name] = info

        held = [_held(values) for info in dense.values() for values in self.values(info)]
        able = [dtype for dtype in ("bf16", "f16", "f32") if all(dtype in types for types in held)]
        dtype = "bf16" if "bf16" in able else "f32"
        name, kinds = self.inspection.architecture_name, architecture.rope_scaling
        scaling = rope_scaling(self.metadata, name, self.sizes, factors, kinds, self.path)
        storage = self.packed_storage(ternary, dtype)
        tensors, scales = [], {}
        if storage is None:
            every_scale = np.concatenate([np.ravel(one.scale) for one in ternary.values()]).astype(np.float32)
            dtype = next(dtype for dtype in able if dtype in _held(every_scale))
        for name, one in ternary.items():
            rows, columns = one.tensor.info.shape
            if storage is None:
                tensors.append(NewTensor(name, dtype, (rows, columns), partial(self.floats, one.tensor, dtype)))
                continue
            convention, scale_dtype = storage
            scale = np.float32(one.scale) if isinstance(one.scale, np.floating) else np.float32(0)
            tensors.append(NewTensor(name, "u8", (rows // 4, columns), partial(self.packed, one.tensor)))
            stored = partial(self.weight_scale, one.tensor.info.name, scale, scale_dtype, convention)
            tensors.append(NewTensor(f"{name}_scale", scale_dtype, (1,), stored))
            scales[name] = float(scale)
        for slot_name, info in dense.items():
            name = self.family.source_name(slot_name)
            tensors.append(NewTensor(name, dtype, info.shape, partial(self.dense, info, dtype)))
        tied = "output.weight" not in dense
        stated = None if storage is None else storage[0]
        config = config_json(self.family, self.sizes, scaling, tied=tied, dtype=dtype, convention=stated)
        dequantized = {
            self.family.source_name(name): self.inspection.types[name]
            for name in dense
            if self.inspection.types[name] in (*QUANTIZED, *PACKED)
        }
        return _Checkpoint(config, dtype, storage, tensors, scales, dequantized)

    def packed_storage(self, ternary: Mapping[str, _Ternary], dtype: str) -> tuple[ScaleConvention, str] | None:
        """Which way weight_scale works, and its type; None where the weights are to be floats.

        Packed checkpoints have one scale a tensor and no place for projections of floats, and transformers 5 none for
        packed experts. AutoBitLinear, which multiplies by weight_scale, would multiply biases too.
        """
        several = any(isinstance(one.scale, np.ndarray) for one in ternary.values())
        if several or self.inspection.floats or self.sizes.experts:
            if self.inspection.architecture.input_norms:
                raise BitconvError(
                    "several scales a tensor, or projections of floats, beside norms on the inputs of projections: "
                    "transformers has no form for both",
                    code=Code.GGUF_UNSUPPORTED,
                    file=self.path,
                    way_out="take the checkpoint that the file was made of",
                )
            return None
        for one in ternary.values():
            if one.tensor.rows % 4:
                cause = f"{one.tensor.rows} rows cannot be packed four to a byte"
                raise self.error(one.tensor.info.name, cause, Code.LAYOUT)
        scales = [np.float32(one.scale) for one in ternary.values() if isinstance(one.scale, np.floating)]
        convention, scale_dtype = _scale_storage(scales, dtype)
        if self.inspection.architecture.biases and convention is ScaleConvention.MULTIPLY:
            return None
        return convention, scale_dtype

    def ternary(self, info: TensorInfo) -> dict[str, _Ternary]:
        """The matrices of a ternary tensor by the names that the checkpoint has for them."""
        name, layout = self.family.source_name(info.name), self.inspection.layouts[info.name]
        group, beside = self.inspection.groups.get(info.name), self.infos.get(scale_name(info.name))
        with self.naming(info.name):
            found = list(matrices(self.descriptor, info, layout, beside, group))
            return {name.format(i): _Ternary(one, one.find_scale(lambda: None)) for i, one in enumerate(found)}

    def values(self, info: TensorInfo) -> Iterator[npt.NDArray[np.float32]]:
        """The values of a tensor in row order, a block at a time."""
        if info.name in self.inspection.layouts:
            with self.naming(info.name):
                yield from self.ternary_values(info)
            return
        *rows, columns = info.shape
        row_bytes = type_by_name(self.inspection.types[info.name]).nbytes((columns,))
        for first, last in row_blocks(rows[0] if rows else 1, columns, 1):
            raw = np.empty((last - first, row_bytes), np.uint8)
            if not read_at(self.descriptor, raw, info.offset + first * row_bytes):
                raise self.error(info.name, "the file has become shorter while it was read", Code.CHANGED)
            if self.inspection.types[info.name] not in QUANTIZED:
                floats: npt.NDArray[np.float32] = gguf.dequantize(raw, gguf.GGMLQuantizationType(info.type_id))
                yield floats.reshape(-1)
                continue
            values, bad = decode(raw.reshape(-1), self.inspection.types[info.name])
            if bad >= 0:
                raise self.error(info.name, f"holds {values[bad]}; a weight must be finite", Code.FAULTY)
            yield values

    def ternary_values(self, info: TensorInfo) -> Iterator[npt.NDArray[np.float32]]:
        group = self.inspection.groups.get(info.name)
        tensor = TernaryTensor(self.descriptor, info, self.inspection.layouts[info.name], None, group)
        for first, last in row_blocks(tensor.rows, tensor.columns, tensor.layout.row_multiple):
            yield tensor.values(first, last).reshape(-1)

    def dense(self, info: TensorInfo, dtype: str, keep_going: KeepGoing) -> Iterator[Bytes]:
        if info.name in self.inspection.floats:
            values = np.concatenate(list(self.values(info))).reshape(info.shape)
            ordered = np.empty_like(values)
            ordered[self.checkpoint_rows(info.name, 0, len(values))] = values
            yield self.encoded(info.name, ordered.reshape(-1), dtype)
            return
        for block in self.values(info):
            keep_going()
            yield self.encoded(info.name, block, dtype)

    def floats(self, tensor: TernaryTensor, dtype: str, keep_going: KeepGoing) -> Iterator[Bytes]:
        """Trits times their scales, in the checkpoint's order of rows: whole heads are read at a time."""
        name, multiple = tensor.info.name, lcm(tensor.layout.row_multiple, self.sizes.head_dim)
        if tensor.rows % multiple:
            multiple = tensor.layout.row_multiple  # not of a rotated projection
        for first, last in row_blocks(tensor.rows, tensor.columns, multiple):
            keep_going()
            with self.naming(name):
                values = tensor.values(first, last)
            ordered = np.empty_like(values)
            ordered[self.checkpoint_rows(name, first, last) - first] = values
            yield self.encoded(name, ordered.reshape(-1), dtype)

    def weight_scale(
        self, name: str, scale: np.float32, dtype: str, convention: ScaleConvention, keep_going: KeepGoing
    ) -> Iterator[Bytes]:
        stored = _stored_scale(scale, dtype, convention)
        assert stored is not None
        yield self.encoded(name, np.array([stored]), dtype)

    def encoded(self, name: str, values: npt.NDArray[np.float32], dtype: str) -> Bytes:
        data = np.empty(values.size * ITEMSIZE[dtype], np.uint8)
        bad = _kernels.convert_floats(values.view(np.uint8), "f32", data, dtype)
        if bad >= 0:
            raise self.error(name, f"holds {values[bad]}; a weight must be finite", Code.FAULTY)
        return data

    def packed(self, tensor: TernaryTensor, keep_going: KeepGoing) -> Iterator[Bytes]:
        """Hugging Face's packing: byte [r, k] of R = rows/4 rows holds rows r, r+R, r+2R, r+3R, low bits first."""
        quarter = tensor.rows // 4
        packed = np.zeros((quarter, tensor.columns), np.uint8)
        for first, last in row_blocks(tensor.rows, tensor.columns, tensor.layout.row_multiple):
            keep_going()
            with self.naming(tensor.info.name):
                codes = (tensor.read(first, last).trits + 1).view(np.uint8)
            rows = self.checkpoint_rows(tensor.info.name, first, last)
            for position in range(4):
                here = rows // quarter == position
                packed[rows[here] % quarter] |= codes[here] << 2 * position
        yield packed.reshape(-1)

    def checkpoint_rows(self, name: str, first: int, last: int) -> npt.NDArray[np.intp]:
        """Where the checkpoint has the rows first to last (exclusive) of the file."""
        rows = np.arange(first, last)
        if self.inspection.architecture.interleaved_rope and name.endswith(("attn_q.weight", "attn_k.weight")):
            # Neighbours of a head in the file are half a head apart in the checkpoint.
            size = self.sizes.head_dim
            head, row = np.divmod(rows, size)
            rows = head * size + row // 2 + row % 2 * (size // 2)
        return rows

    @contextlib.contextmanager
    def naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except FaultyTensor as fault:
            raise fault.at(self.path, name) from None

    def error(self, name: str, cause: str, code: Code) -> BitconvError:
        return BitconvError(cause, code=code, file=self.path, tensor=name)


def _stored_scale(scale: np.float32, dtype: str, convention: ScaleConvention) -> np.float32 | None:
    """A weight_scale that `dtype` holds and that stands for exactly this scale; None where there is none."""
    stored = make_layout(dtype).stored_scale(convention.scale(scale))
    return stored if convention.scale(stored) == scale else None


def _scale_storage(scales: Collection[np.float32], dtype: str) -> tuple[ScaleConvention, str]:
    """Which way weight_scale works, and its type: `dtype` if that can be exact, else float32 to multiply by."""
    for convention in ScaleConvention:
        if all(_stored_scale(scale, dtype, convention) is not None for scale in scales):
            return convention, dtype
    return ScaleConvention.MULTIPLY, "f32"


def _held(values: npt.NDArray[np.float32]) -> set[str]:
    """The float types that hold all of these values."""
    types = {"f32"}
    if not (values.view(np.uint32) & 0xFFFF).any():
        types.add("bf16")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if (values.astype(np.float16).astype(np.float32) == values).all():
            types.add("f16")
    return types


def _check_target(path: Path, *, force: bool) -> None:
    if not path.parent.is_dir():
        raise BitconvError(f"the directory {path.parent} does not exist", code=Code.NOT_FOUND, file=path)
    tidy_directory(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise BitconvError("is a file", code=Code.FILE_KIND, file=path, way_out="name a directory")
    names = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in names if not _WRITTEN.fullmatch(name)]
    if foreign:
        raise BitconvError(
            f"holds {foreign[0]}, which is no file of an export",
            code=Code.EXISTS,
            file=path,
            way_out="name another directory",
        )
    if names and not force:
        raise BitconvError(
            "holds files", code=Code.EXISTS, file=path, way_out=f"pass {option('force')} to replace them"
        )
