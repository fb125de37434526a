"""Proving a file right: alone, or against the checkpoint that it claims to be."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import partial
from math import lcm, prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.dense import dense_values
from bitconv.checkpoint.directory import ITEMSIZE, Checkpoint
from bitconv.checkpoint.hub import local_model
from bitconv.gguf import GGUFFile, MalformedGGUF, TensorInfo, Value, read_gguf
from bitconv.layouts import FLOATS
from bitconv.layouts.layout import Bytes, Layout, Scales, Trits
from bitconv.layouts.scales import Scale, describe
from bitconv.layouts.tiles import read_kernel_config
from bitconv.models import families
from bitconv.models.architectures import Role, scale_name
from bitconv.models.hyperparameters import METADATA_KEYS
from bitconv.models.model import load_model
from bitconv.models.quantization import rule_of, scale_convention_of
from bitconv.models.ternary_floats import settle_scales
from bitconv.models.trits import TritReader
from bitconv.models.weights import DenseWeight, ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.packed.structure import Structure, check_structure
from bitconv.packed.ternary_tensor import FaultyTensor, TernaryTensor, matrices
from bitconv.planning.metadata import build_metadata
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, option, plain, reports_system_errors
from bitconv.system.jobs import KeepGoing, Progress
from bitconv.system.rawio import read_at
from bitconv.tokenizer.special import runner_default

NOT_COVERED = (
    "the graph: whether a runner computes this architecture and these types right",
    "the tokenizer: whether a runner splits text with this vocabulary as the model's own tokenizer does",
)


@dataclass(frozen=True)
class VerifiedTensor:
    """scale: of a ternary tensor that has one. group: the columns of a row that share a scale, where it has several.

    faults: empty where the tensor is right.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    scale: float | None
    group: int | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """faults: those of the file as a whole. checked: what was checked and how many of it. not_covered: what was not."""

    file: str
    against: str | None
    architecture: str | None
    faults: tuple[str, ...]
    tensors: tuple[VerifiedTensor, ...]
    checked: dict[str, int]
    not_covered: tuple[str, ...]

    @property
    def right(self) -> bool:
        return not self.faults and not any(tensor.faults for tensor in self.tensors)


@reports_system_errors
def verify(
    file: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    scale_convention: str | None = None,
    ternarize: str | None = None,
    pre: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a GGUF file of a BitNet model.

    Alone: its structure; every code, scale and float valid; and for every ternary tensor that the kernel's product over
    the packed bytes with random int8 activations equals that of the unpacked matrix, in int32 and scaled to float32,
    bit for bit. against: a Hugging Face model; then also every trit, every scale, every dense value after rounding to
    the file's type, every size and the vocabulary equal the checkpoint's, read with revision, token, scale_convention,
    ternarize and pre as `convert` takes them. kernel_config: the ini with the tiles of a TL1 or TL2 file that does not
    record them. i2_s_order: "arm64" or "row4" for an I2_S file in the byte order of such a build; nothing in a file
    tells which one it is in. threads: all cores where None.

    BitconvError where the file cannot be judged: not GGUF, unreadable, an architecture or type not supported.
    """
    for name, value in (
        ("revision", revision),
        ("token", token),
        ("scale_convention", scale_convention),
        ("ternarize", ternarize),
        ("pre", pre),
    ):
        if against is None and value is not None:
            raise BitconvError(
                f"{option(name)} is for {option('against', 'MODEL')}, which is missing", code=Code.OPTIONS
            )
    path = Path(file)
    try:
        gguf = read_gguf(path)
        tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
        structure = check_structure(gguf, tiles, i2_s_order)
    except MalformedGGUF as fault:
        return Verification(str(path), None, None, (str(fault),), (), {}, NOT_COVERED)
    if against is None:
        return _Verifier(gguf, structure, None, None).run(threads, progress)
    with Checkpoint(local_model(against, revision, token, accept=families.of_class)) as checkpoint:
        convention = scale_convention_of(scale_convention)
        loaded = load_model(checkpoint, convention)
        model = settle_scales(checkpoint, loaded, rule_of(ternarize), threads, convention)
        verifier = _Verifier(gguf, structure, checkpoint, model)
        verifier.compare_metadata(pre)
        return verifier.run(threads, progress)


class _Verifier:
    def __init__(
        self, gguf: GGUFFile, structure: Structure, checkpoint: Checkpoint | None, model: Model | None
    ) -> None:
        self.gguf = gguf
        self.structure = structure
        self.checkpoint = checkpoint
        self.faults = [*structure.faults, *structure.metadata_faults]
        self.expected: dict[str, Weight] = {} if model is None else {w.name: w for w in model.weights}
        self.model = model
        self.scale_tensors = {t.name: t for t in gguf.tensors if structure.roles[t.name] is Role.SCALE}
        self.descriptor = -1

    def compare_metadata(self, pre: str | None) -> None:
        """Sizes and vocabulary: all that a runner computes by must be what bitconv would write."""
        assert self.checkpoint is not None and self.model is not None
        wanted = self.model.family.architecture
        if wanted is not self.structure.architecture:
            self.faults.append(
                f"the architecture is {self.structure.architecture.graph}, the checkpoint's is {wanted.graph}"
            )
            return
        name, found = self.structure.architecture_name, self.gguf.metadata
        stated, wanted_sizes = self.structure.sizes.metadata(name), self.model.sizes.metadata(name)
        for key in sorted(stated.keys() | wanted_sizes.keys()):
            self._compare_key(key, stated.get(key), wanted_sizes.get(key))
        metadata = build_metadata(self.checkpoint, self.model, 0, pre)
        for key, value in metadata.items():
            if key.startswith("tokenizer."):
                self._compare_key(key, found.get(key, runner_default(found, key)), value)
            elif key.endswith(".pooling_type"):
                self._compare_key(key, found.get(key), value)
        for key in self._unknown_keys():
            self.faults.append(f"{key} is a key that the checkpoint does not ask for")
        for name in self.expected.keys() - {tensor.name for tensor in self.gguf.tensors}:
            self.faults.append(f"tensor {name} is missing; the checkpoint has it")

    def _compare_key(self, key: str, value: Value | None, wanted: Value | None) -> None:
        """value: what the file says, or what runners take for it where it says nothing."""
        if value is None or wanted is None or not _same(value, wanted):
            missing = "" if key in self.gguf.metadata else "is missing, and what runners take for it "
            self.faults.append(f"{key} {missing}is not what the checkpoint says")

    def _unknown_keys(self) -> list[str]:
        """Keys of the architecture that change what a runner computes, for all that bitconv knows."""
        prefix = f"{self.structure.architecture_name}."
        known = {*METADATA_KEYS, "pooling_type"}
        return [key for key in self.gguf.metadata if key.startswith(prefix) and key[len(prefix) :] not in known]

    def run(self, threads: int | None, progress: Progress | None) -> Verification:
        work = [partial(self.tensor, tensor) for tensor in self.gguf.tensors]
        total = sum(self.structure.nbytes.values())
        done, results = 0, []
        self.descriptor = self.gguf.open()
        try:
            for result in jobs.run(work, threads):
                results.append(result)
                done += result.nbytes
                if progress is not None:
                    progress(done, total)
        finally:
            os.close(self.descriptor)
        self.gguf.check_unchanged()
        if self.checkpoint is not None:
            self.checkpoint.check_unchanged()
        return Verification(
            str(self.gguf.path),
            None if self.checkpoint is None else str(self.checkpoint.path),
            self.structure.architecture_name,
            tuple(self.faults),
            tuple(results),
            self._checked(results),
            (*NOT_COVERED, *self._not_covered()),
        )

    def _not_covered(self) -> list[str]:
        """Dense tensors of quantized types: runners take them, bitconv does not write them. Keys that are not known."""
        types = self.structure.types
        values = [
            f"the values of {tensor.name}, which is {types[tensor.name]}"
            for tensor in self.gguf.tensors
            if types[tensor.name] not in FLOATS and tensor.name not in self.structure.layouts
        ]
        return values + [f"what a runner makes of the key {key}" for key in self._unknown_keys()]

    def _checked(self, results: list[VerifiedTensor]) -> dict[str, int]:
        ternary = [t for t in results if t.name in self.structure.layouts]
        floats = [t for t in results if t.type in FLOATS and t not in ternary]
        scales = sum(1 if t.group is None else prod(t.shape) // t.group for t in ternary)
        checked = {
            "metadata keys": len(self.gguf.metadata),
            "tensors placed, typed and shaped": len(results),
            "ternary tensors whose kernel product equals the unpacked product": len(ternary),
            "trits valid": sum(prod(t.shape) for t in ternary),
            "scales finite and positive": scales,
            "floats finite": sum(prod(t.shape) for t in floats),
        }
        if self.checkpoint is not None:
            checked["trits equal to the checkpoint's"] = sum(prod(t.shape) for t in ternary)
            checked["scales equal to the checkpoint's"] = scales
            checked["dense values equal to the checkpoint's"] = sum(prod(t.shape) for t in floats)
        return checked

    def tensor(self, tensor: TensorInfo, keep_going: KeepGoing) -> VerifiedTensor:
        """All checks of one tensor's data."""
        type_name = self.structure.types[tensor.name]
        nbytes = self.structure.nbytes[tensor.name]
        faults = list(self.structure.tensor_faults.get(tensor.name, ()))
        if scale_name(tensor.name) in self.structure.tensor_faults:
            faults.append(f"{scale_name(tensor.name)} is faulty")
        scale = None
        if not faults:
            try:
                scale = self._data(tensor, type_name, keep_going)
            except FaultyTensor as fault:
                faults.append(str(fault))
        group = self.structure.groups.get(tensor.name)
        return VerifiedTensor(tensor.name, type_name, tensor.shape, nbytes, scale, group, tuple(faults))

    def _data(self, tensor: TensorInfo, type_name: str, keep_going: KeepGoing) -> float | None:
        if self.structure.roles[tensor.name] is Role.SCALE:  # read with its weight
            return None
        expected = self.expected.get(tensor.name)
        if expected is None and tensor.name == "output.weight":
            expected = self.expected.get("token_embd.weight")
        if self.model is not None and expected is None:
            raise FaultyTensor("the checkpoint has no such tensor")
        if expected is not None and expected.shape != tensor.shape:
            raise FaultyTensor(f"has shape {tensor.shape}, the checkpoint's is {expected.shape}")
        layout = self.structure.layouts.get(tensor.name)
        if layout is not None:
            scale = self._ternary(tensor, layout, expected, keep_going)
            return None if scale is None else float(scale)
        if tensor.name == "output.weight" and not self.structure.architecture.untied_head:
            self._redundant_head(tensor, keep_going)
        if type_name not in FLOATS:
            return None
        self._dense(tensor, type_name, expected, keep_going)
        return None

    def _ternary(
        self, tensor: TensorInfo, layout: Layout, expected: Weight | None, keep_going: KeepGoing
    ) -> np.float32 | None:
        """Returns the scale of a matrix, None of a stack of them."""
        assert expected is None or isinstance(expected, TernaryWeight | ExpertsWeight)
        scale_tensor = self.scale_tensors.get(scale_name(tensor.name))
        group = self.structure.groups.get(tensor.name)
        files = list(matrices(self.descriptor, tensor, layout, scale_tensor, group))
        for i, file in enumerate(files):
            reader = self._reader(None if expected is None else expected.matrices[i], keep_going)
            try:
                self._matrix(tensor, file, reader, exact=scale_tensor is not None, keep_going=keep_going)
            except FaultyTensor as fault:
                if len(files) == 1:
                    raise
                raise FaultyTensor(f"expert {i}: {fault.cause}", code=fault.code) from None
        return files[0].scale if len(files) == 1 else None

    def _matrix(
        self, tensor: TensorInfo, file: TernaryTensor, reader: TritReader | None, *, exact: bool, keep_going: KeepGoing
    ) -> None:
        """exact: the scale stands in a tensor of its own."""
        layout, group = file.layout, file.group
        if reader is not None and group is None and isinstance(reader.scale, np.ndarray):
            wanted_group = file.columns // reader.scale.shape[1]
            raise FaultyTensor(f"has one scale, the checkpoint's has {describe(wanted_group, file.columns)}")
        x = np.random.default_rng(zlib.crc32(tensor.name.encode())).integers(-128, 128, (1, file.columns), np.int8)
        for first, last in row_blocks(
            file.rows, file.columns, lcm(layout.row_multiple, reader.row_multiple if reader else 1)
        ):
            keep_going()
            rows = file.read(first, last)
            row_scales = rows.scales.T if rows.scales is not None and group == file.columns else file.scale
            _compare_products(layout.matmul_rows(rows.packed, x), rows.trits, x, row_scales, first)
            if reader is not None:
                _compare_trits(reader, rows.trits, first, last)
                if rows.scales is not None:
                    _compare_scales(reader, rows.trits, rows.scales, first, last)
        if reader is not None and file.scale is not None:
            assert not isinstance(reader.scale, np.ndarray)
            wanted = reader.scale if exact else layout.stored_scale(reader.scale)
            if file.scale != wanted:
                raise FaultyTensor(f"its scale is {plain(file.scale)}, the checkpoint's is {plain(wanted)}")

    def _redundant_head(self, head: TensorInfo, keep_going: KeepGoing) -> None:
        """A head on a graph that multiplies by the embedding is right only where it is the embedding, byte for byte."""
        embedding = next((t for t in self.gguf.tensors if t.name == "token_embd.weight"), None)
        nbytes = self.structure.nbytes[head.name]
        if embedding is not None and embedding.type_id == head.type_id:
            for first, last in row_blocks(nbytes, 1, 1):
                keep_going()
                if not np.array_equal(
                    self._read(head, first, last - first), self._read(embedding, first, last - first)
                ):
                    break
            else:
                return
        raise FaultyTensor("differs from token_embd.weight, which the graph multiplies by in its place")

    def _dense(self, tensor: TensorInfo, type_name: str, expected: Weight | None, keep_going: KeepGoing) -> None:
        count = prod(tensor.shape)
        itemsize = ITEMSIZE[type_name]
        for first, last in row_blocks(count, 1, 1):
            keep_going()
            raw = self._read(tensor, first * itemsize, (last - first) * itemsize)
            self._finite(raw, type_name, first, tensor.shape)
            if isinstance(expected, DenseWeight):
                assert self.checkpoint is not None
                wanted = dense_values(self.checkpoint, expected.stored, type_name, first, last)
                _compare_floats(raw, wanted, itemsize, first, tensor.shape)
            elif expected is not None:
                assert not isinstance(expected, TernaryWeight | ExpertsWeight)
                _compare_floats(raw, expected.values[first:last].view(np.uint8), itemsize, first, tensor.shape)

    def _reader(self, expected: TernaryWeight | None, keep_going: KeepGoing) -> TritReader | None:
        if expected is None:
            return None
        assert self.checkpoint is not None
        return TritReader(self.checkpoint, expected, keep_going)

    def _read(self, tensor: TensorInfo, start: int, count: int) -> Bytes:
        raw = np.empty(count, np.uint8)
        if not read_at(self.descriptor, raw, tensor.offset + start):
            raise FaultyTensor("the file has become shorter while it was read")
        return raw

    @staticmethod
    def _finite(raw: Bytes, type_name: str, first: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        values = np.empty(raw.size // ITEMSIZE[type_name], "<f4")
        bad = _kernels.convert_floats(raw, type_name, values.view(np.uint8), "f32")
        if bad >= 0:
            raise FaultyTensor(f"element {_where(first + bad, shape)} is {values[bad]}, not finite")
        return values


def _where(index: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(index, shape)]


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


def _compare_products(
    product: npt.NDArray[np.int32], trits: Trits, x: npt.NDArray[np.int8], scale: Scale | None, first: int
) -> None:
    """The kernel's product over the packed bytes against that of the unpacked matrix.

    scale: of the tensor, or (1, rows) of each row; None where neither has one of its own. Scaled, the kernel's integer
    is multiplied once in float32; the unpacked matrix's values are summed as scaled floats, in float64, where every sum
    of int8 x float32 products of this length is exact, and rounded once.
    """
    unpacked = np.empty_like(product)
    _kernels.matmul(trits, x, unpacked)
    scale = np.float32(1) if scale is None else scale
    with np.errstate(over="ignore"):  # damaged scales may be huge; infinity equals infinity
        scaled = product.astype(np.float32) * scale
        wanted = (unpacked.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
    wrong = (product != unpacked) | (scaled != wanted)
    if wrong.any():
        raise FaultyTensor(f"row {first + int(wrong.argmax())}: the kernel's product is not the unpacked matrix's")


def _stored_rows(reader: TritReader, count: int) -> npt.NDArray[np.intp]:
    """Which of the checkpoint's rows of a block is each of the file's, by the definition of the rotation.

    Row i of an interleaved head is row i/2 of the other order where i is even, and row head_dim/2 + (i-1)/2 where it
    is odd.
    """
    rows = np.arange(count)
    if reader.weight.rope_heads:
        head, i = np.divmod(rows, reader.row_multiple)
        other = head * reader.row_multiple + i // 2 + i % 2 * (reader.row_multiple // 2)
        rows = other if reader.weight.interleave else np.argsort(other)
    return rows


def _compare_trits(reader: TritReader, trits: Trits, first: int, last: int) -> None:
    """The file's rows against the checkpoint's."""
    stored = reader.stored_trits(first, last)[_stored_rows(reader, last - first)]
    if not np.array_equal(trits, stored):
        row, column = np.argwhere(trits != stored)[0]
        raise FaultyTensor(f"row {first + row}, column {column}: the trit is not the checkpoint's")


def _compare_scales(reader: TritReader, trits: Trits, scales: Scales, first: int, last: int) -> None:
    """A row's or a group's scales. Where all trits are 0, the file need not have any."""
    stored = reader.stored_scale
    if isinstance(stored, np.ndarray):
        wanted = stored[first:last][_stored_rows(reader, last - first)]
    else:
        wanted = np.full((last - first, 1), stored)
    groups = max(scales.shape[1], wanted.shape[1])
    scales, wanted = (np.repeat(s, groups // s.shape[1], axis=1) for s in (scales, wanted))
    wrong = (scales != wanted) & trits.reshape(last - first, groups, -1).any(axis=2)
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        raise FaultyTensor(
            f"row {first + row}, columns from {group * (trits.shape[1] // groups)}: its scale is "
            f"{plain(scales[row, group])}, the checkpoint's is {plain(wanted[row, group])}"
        )


def _compare_floats(raw: Bytes, wanted: Bytes, itemsize: int, first: int, shape: tuple[int, ...]) -> None:
    """Bytes of floats from element `first` of a tensor on."""
    if not np.array_equal(raw, wanted):
        index = first + int((raw != wanted).argmax()) // itemsize
        raise FaultyTensor(f"element {_where(index, shape)} is not the checkpoint's")
