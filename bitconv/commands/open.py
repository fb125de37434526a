"""A GGUF file or a checkpoint, open: its tensors by their names in GGUF files, as trits and scales or as floats."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitconv.checkpoint.dense import dense_values
from bitconv.checkpoint.directory import Checkpoint
from bitconv.gguf import GGUFFile, Metadata, TensorInfo, read_gguf, type_by_name
from bitconv.layouts import DENSE_TYPES
from bitconv.layouts.dense import decode
from bitconv.layouts.scales import Scale
from bitconv.layouts.tiles import read_kernel_config
from bitconv.models.architectures import scale_name
from bitconv.models.model import load_model
from bitconv.models.opening import open_checkpoint
from bitconv.models.ternary_floats import in_floats, settle_scales
from bitconv.models.trits import TritReader, Trits
from bitconv.models.weights import ComputedWeight, DenseWeight, ExpertsWeight, Model, TernaryWeight, Weight
from bitconv.packed.inspection import Inspection, inspect_file
from bitconv.packed.tensor_checks import check_finite
from bitconv.packed.ternary_tensor import FaultyTensor, dequantized, matrices
from bitconv.planning.metadata import build_metadata
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code, reports_system_errors
from bitconv.system.jobs import KeepGoing
from bitconv.system.rawio import read_at

_Floats = npt.NDArray[np.float32]


class Matrix(NamedTuple):
    """A ternary matrix, to be read a block of rows at a time in the order of GGUF files.

    row_multiple: of which blocks are. trits: those of rows first to last (exclusive), int8 (last - first, columns).
    scale: what multiplies them, float32, or several as float32 (rows, columns / group); to ask may take a pass.
    """

    row_multiple: int
    trits: Callable[[int, int], Trits]
    scale: Callable[[], Scale]


def _go_on() -> None:
    pass


class OpenTensor(ABC):
    """A tensor of an open model.

    Attributes:
        name: In GGUF files.
        type: Of the file; "u8" and the like are a checkpoint's.
        shape: Rows before columns; of stacked experts their number before both.
        is_ternary: Whether it is trits and scales, and not floats.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    is_ternary: bool

    @abstractmethod
    def matrix(self, index: int, keep_going: KeepGoing = _go_on) -> Matrix:
        """Of a ternary tensor: itself, or that of an expert. keep_going: called for each block."""

    @abstractmethod
    def values(self, first: int, last: int) -> _Floats:
        """Of a tensor of floats values first to last (exclusive) of them all, whole rows."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of one of its matrices; a vector is one row."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[-2], self.shape[-1])

    @property
    def count(self) -> int:
        """Its matrices: 1, or as many as there are experts."""
        return prod(self.shape[:-2])

    def floats(self, index: int, keep_going: KeepGoing = _go_on) -> tuple[int, Callable[[int, int], _Floats]]:
        """Of which rows of a matrix are a multiple when they are read, and how rows first to last (exclusive) are.

        Those are float32 (last - first, columns).
        """
        rows, columns = self.matrix_shape
        if not self.is_ternary:
            start = index * rows

            def values(first: int, last: int) -> _Floats:
                keep_going()
                return self.values((start + first) * columns, (start + last) * columns).reshape(-1, columns)

            return 1, values
        matrix = self.matrix(index, keep_going)
        scale = matrix.scale()

        def products(first: int, last: int) -> _Floats:
            return dequantized(matrix.trits(first, last), scale[first:last] if isinstance(scale, np.ndarray) else scale)

        return matrix.row_multiple, products

    @property
    @reports_system_errors
    def trits(self) -> Trits:
        """int8, in the tensor's shape."""
        trits: Trits = self._stacked(self._whole)
        return trits

    @property
    @reports_system_errors
    def scale(self) -> np.float32 | _Floats:
        """What multiplies the trits: float32; of experts one each, (experts,); of groups (rows, columns / group).

        A tensor of zeros that holds no scale has the scale 1.
        """
        scales: np.float32 | _Floats = self._stacked(lambda matrix: matrix.scale())
        return scales

    @reports_system_errors
    def dequantize(self) -> _Floats:
        """float32, in the tensor's shape: each trit times its scale, or the floats."""
        values = np.empty((self.count, *self.matrix_shape), np.float32)
        for i, matrix in enumerate(values):
            multiple, read = self.floats(i)
            for first, last in row_blocks(*self.matrix_shape, multiple):
                matrix[first:last] = read(first, last)
        return values.reshape(self.shape)

    def _whole(self, matrix: Matrix) -> Trits:
        return np.concatenate([matrix.trits(*rows) for rows in row_blocks(*self.matrix_shape, matrix.row_multiple)])

    def _stacked(self, of: Callable[[Matrix], Any]) -> Any:
        if not self.is_ternary:
            raise BitconvError("is not ternary", code=Code.GGUF_UNSUPPORTED, tensor=self.name)
        parts = [of(self.matrix(i)) for i in range(self.count)]
        return parts[0] if len(self.shape) == 2 else np.stack(parts)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.type}, {'x'.join(map(str, self.shape))}>"


class _InFile(OpenTensor):
    def __init__(self, opened: GGUFFile, inspection: Inspection, descriptor: int, info: TensorInfo) -> None:
        self.name, self.shape, self.type = info.name, info.shape, inspection.types[info.name]
        self.is_ternary = info.name in inspection.layouts
        self._info = info
        self._opened = opened
        self._inspection = inspection
        self._descriptor = descriptor

    def matrix(self, index: int, keep_going: KeepGoing = _go_on) -> Matrix:
        found = self._inspection
        beside = next((t for t in self._opened.tensors if t.name == scale_name(self.name)), None)
        layout, group = found.layouts[self.name], found.groups.get(self.name)
        with self._faults():
            stack = matrices(self._descriptor, self._info, layout, beside, group)
            matrix = next(islice(stack, index, None))

        def trits(first: int, last: int) -> Trits:
            keep_going()
            with self._faults():
                return matrix.read(first, last).trits

        def scale() -> Scale:
            with self._faults():
                return matrix.find_scale(keep_going)

        return Matrix(layout.row_multiple, trits, scale)

    def values(self, first: int, last: int) -> _Floats:
        if self.type not in DENSE_TYPES:
            cause = f"is {self.type}, whose values bitconv does not read"
            raise BitconvError(cause, code=Code.GGUF_UNSUPPORTED, file=self._opened.path, tensor=self.name)
        kind = type_by_name(self.type)
        raw = np.empty(kind.nbytes((last - first,)), np.uint8)
        with self._faults():
            if not read_at(self._descriptor, raw, self._info.offset + kind.nbytes((first,))):
                raise FaultyTensor("truncated")
            check_finite(raw, kind, first, self.shape)
        return decode(raw, self.type)[0]

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """What is wrong with it is an error that names it."""
        try:
            for fault in self._inspection.tensor_faults.get(self.name, ())[:1]:
                raise FaultyTensor(fault)
            yield
        except FaultyTensor as fault:
            raise fault.at(self._opened.path, self.name, "bitconv verify lists all that is wrong") from None


class _InCheckpoint(OpenTensor):
    def __init__(self, checkpoint: Checkpoint, weight: Weight) -> None:
        self.name, self.shape = weight.name, weight.shape
        self.is_ternary = isinstance(weight, TernaryWeight | ExpertsWeight)
        self._checkpoint = checkpoint
        self._weight = weight
        if isinstance(weight, TernaryWeight | ExpertsWeight):
            self.type = weight.matrices[0].stored.dtype
        else:
            self.type = weight.stored.dtype if isinstance(weight, DenseWeight) else "f32"

    def matrix(self, index: int, keep_going: KeepGoing = _go_on) -> Matrix:
        assert isinstance(self._weight, TernaryWeight | ExpertsWeight)
        reader = TritReader(self._checkpoint, self._weight.matrices[index], keep_going)

        def trits(first: int, last: int) -> Trits:
            keep_going()
            return reader.trits(first, last)

        return Matrix(reader.row_multiple, trits, lambda: reader.scale)

    def values(self, first: int, last: int) -> _Floats:
        if isinstance(self._weight, ComputedWeight):
            return self._weight.values.reshape(-1)[first:last]
        assert isinstance(self._weight, DenseWeight)
        return dense_values(self._checkpoint, self._weight.stored, "f32", first, last).view("<f4")


class OpenModel(Mapping[str, OpenTensor]):
    """The tensors of an open GGUF file or checkpoint by name, with or without ".weight"; a context manager.

    Attributes:
        path: What was opened.
        architecture: The name in general.architecture.
        family: Of a checkpoint; else None.
    """

    def __init__(
        self,
        path: str,
        architecture: str,
        family: str | None,
        tensors: Mapping[str, OpenTensor],
        metadata: Callable[[], Metadata],
        check_unchanged: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self.path = path
        self.architecture = architecture
        self.family = family
        self._tensors = tensors
        self._metadata = metadata
        self.check_unchanged = check_unchanged
        self.close = close

    @cached_property
    @reports_system_errors
    def metadata(self) -> Metadata:
        """Keys and values as in a GGUF file; numbers are numpy's scalars. Of a checkpoint those that it would have."""
        return self._metadata()

    def __getitem__(self, name: str) -> OpenTensor:
        return self._tensors[name if name in self._tensors else f"{name}.weight"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.path}: {self.architecture}, {len(self)} tensors>"


@reports_system_errors
def open(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    kernel_config: str | os.PathLike[str] | None = None,
    i2_s_order: str | None = None,
) -> OpenModel:
    """Open a GGUF file or a checkpoint to read its tensors.

    Nothing is read but headers until a tensor is asked for, and what does not fit in memory is not read: a tensor's
    trits take a byte each. Rows are in the order of GGUF files, of a checkpoint too.

    Args:
        path: A GGUF file, a model directory, or an id on the Hub.
        revision: As `convert` takes it.
        token: As `convert` takes it.
        kernel_config: As `verify` takes it.
        i2_s_order: As `verify` takes it.

    Returns:
        The model, to be closed, or used in a with statement.

    Raises:
        BitconvError: Where it is neither, or of no known family or architecture; and by its tensors, where they are
            faulty, or where their trits are asked for and they are floats.

    Example:
        >>> with bitconv.open("llama.gguf") as model:
        ...     tensor = model["blk.0.attn_q"]
        ...     print(tensor, tensor.trits.dtype, tensor.scale.dtype, tensor.dequantize().shape)
        <blk.0.attn_q.weight: i2_s, 512x512> int8 float32 (512, 512)
    """
    with contextlib.ExitStack() as stack:
        if Path(path).is_file():
            tiles = None if kernel_config is None else read_kernel_config(Path(kernel_config))
            opened = read_gguf(Path(path))
            inspection = inspect_file(opened, tiles, i2_s_order)
            descriptor = opened.open()
            stack.callback(os.close, descriptor)
            beside = {scale_name(name) for name in inspection.layouts}
            in_file = [
                _InFile(opened, inspection, descriptor, info) for info in opened.tensors if info.name not in beside
            ]
            return OpenModel(
                str(path),
                inspection.architecture.name,
                None,
                {tensor.name: tensor for tensor in in_file},
                lambda: opened.metadata,
                opened.check_unchanged,
                stack.pop_all().close,
            )
        checkpoint = stack.enter_context(open_checkpoint(path, revision, token))
        model = _with_scales(checkpoint)
        return OpenModel(
            str(path),
            model.family.architecture.name,
            model.family.name,
            {weight.name: _InCheckpoint(checkpoint, weight) for weight in model.weights},
            lambda: build_metadata(checkpoint, model, 0, None),
            checkpoint.check_unchanged,
            stack.pop_all().close,
        )


def _with_scales(checkpoint: Checkpoint) -> Model:
    """Float weights for which nothing states a rule stay floats, where most are not ternary."""
    model = load_model(checkpoint)
    try:
        return settle_scales(checkpoint, model, None, None, keep_floats=True)
    except BitconvError:
        if any(isinstance(weight, ExpertsWeight) for weight in model.weights):
            raise
        left = [w for w in model.weights if isinstance(w, TernaryWeight) and w.scale is None]
        return replace(model, weights=tuple(in_floats(w) if w in left else w for w in model.weights))
