"""What verify checks of one tensor's data: that it is right in itself, and that it is the checkpoint's."""

from __future__ import annotations

import zlib
from dataclasses import replace
from math import lcm

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import TensorType
from bitconv.layouts import FLOATS, QUANTIZED
from bitconv.layouts.dense import decode
from bitconv.layouts.layout import Bytes, Scales, Trits
from bitconv.layouts.scales import Scale, describe
from bitconv.models.quantization import ABSMEAN, ABSMEAN_BF16, ABSMEDIAN, Rule
from bitconv.models.trits import TritReader
from bitconv.packed.digest import TensorHash
from bitconv.packed.ternary_tensor import FaultyTensor, TernaryTensor
from bitconv.system.blocks import BLOCK_WEIGHTS, row_blocks
from bitconv.system.errors import plain
from bitconv.system.jobs import KeepGoing

# What may have made trits of which so few are others than a packed checkpoint's, and none has the other sign.
ANOTHER_ARITHMETIC = "another arithmetic"
_FEW = 0.05
# Kernels pass over a block in tens of microseconds: in smaller ones, many threads would wait for each other's Python.
_BLOCK_WEIGHTS = 2 * BLOCK_WEIGHTS


class OtherTensor(FaultyTensor):
    """It is not the checkpoint's tensor at all."""


class MatrixCheck:
    """One ternary matrix of the file: itself, or of a stack."""

    def __init__(self, file: TernaryTensor, reader: TritReader | None, hasher: TensorHash, *, exact: bool) -> None:
        """exact: the scale stands in a tensor of its own. hasher: takes the rows."""
        self.file = file
        self.reader = reader
        self.hasher = hasher
        self.exact = exact
        self.warnings: list[str] = []
        self.made_by: set[str] = set()

    def check(self, name: str, keep_going: KeepGoing) -> FaultyTensor | None:
        """The first thing that is not the checkpoint's. FaultyTensor where the matrix itself is not right."""
        file, reader = self.file, self.reader
        fault: FaultyTensor | None = None
        others = flipped = 0
        if reader is not None and file.group is None and isinstance(reader.scale, np.ndarray):
            wanted_group = file.columns // reader.scale.shape[1]
            raise FaultyTensor(f"has one scale, the checkpoint's has {describe(wanted_group, file.columns)}")
        x = np.random.default_rng(zlib.crc32(name.encode())).integers(-128, 128, (1, file.columns), np.int8)
        for first, last in row_blocks(
            file.rows, file.columns, lcm(file.layout.row_multiple, reader.row_multiple if reader else 1), _BLOCK_WEIGHTS
        ):
            keep_going()
            rows = file.read(first, last)
            row_scales = rows.scales.T if rows.scales is not None and file.group == file.columns else file.scale
            _compare_products(file.layout.matmul_rows(rows.packed, x), rows.trits, x, row_scales, first)
            self.hasher.update(rows)
            if reader is None:
                continue
            stored = _trits_by_definition(reader, first, last)
            if not np.array_equal(rows.trits, stored):
                if not others:
                    row, column = np.argwhere(rows.trits != stored)[0]
                    fault = OtherTensor(f"row {first + row}, column {column}: the trit is not the checkpoint's")
                others += int(np.count_nonzero(rows.trits != stored))
                flipped += int(np.count_nonzero(rows.trits * stored < 0))
            elif fault is None and rows.scales is not None:
                try:
                    self._compare_scales(reader, rows.trits, rows.scales, first, last)
                except FaultyTensor as found:
                    fault = found
        self.hasher.end_matrix(None if file.group is not None else file.scale)
        if reader is not None and fault is not None and others:
            self.made_by = self._made_by(reader, others, flipped, keep_going)
            by = "".join(f"; none by {name}" for name in sorted(self.made_by) if name != ANOTHER_ARITHMETIC)
            more = f", nor are {others - 1:,} others of {file.rows * file.columns:,}" if others > 1 else ""
            fault = OtherTensor(f"{fault.cause}{more}{by}")
        if reader is not None and fault is None and file.scale is not None:
            assert not isinstance(reader.scale, np.ndarray)
            wanted = reader.scale if self.exact else file.layout.stored_scale(reader.scale)
            if file.scale != wanted:
                said = f"its scale is {plain(file.scale)}, the checkpoint's is {plain(wanted)}"
                if self._is_rounded(file.scale, reader.scale).all():
                    self._warn_of_rounding(said)
                else:
                    fault = FaultyTensor(said)
        return fault

    def _made_by(self, reader: TritReader, others: int, flipped: int, keep_going: KeepGoing) -> set[str]:
        """The other rules that make all trits of the checkpoint's latents; of packed trits, whether one may have."""
        weight, file = reader.weight, self.file
        if not isinstance(weight.scale, Rule):
            few = others <= _FEW * file.rows * file.columns and not flipped
            return {ANOTHER_ARITHMETIC} if few and weight.stored.dtype in ("u8", "i8") else set()
        found = set()
        for rule in (ABSMEAN, ABSMEAN_BF16, ABSMEDIAN):
            if rule != weight.scale:
                other = TritReader(reader.checkpoint, replace(weight, scale=rule), keep_going)
                blocks = row_blocks(file.rows, file.columns, lcm(file.layout.row_multiple, other.row_multiple))
                if all(np.array_equal(file.read(*rows).trits, _trits_by_definition(other, *rows)) for rows in blocks):
                    found.add(rule.name)
        return found

    def _is_rounded(self, scales: Scale, wanted: Scale) -> npt.NDArray[np.bool_]:
        """Whether scales are the checkpoint's as another type has stored them, and then this one."""
        rounded = [np.asarray(wanted, np.float16).astype(np.float32), _bfloat16(np.asarray(wanted, np.float32))]
        one, other = (scales == (r if self.exact else self.file.layout.stored_scale(r)) for r in rounded)
        return np.asarray(one | other)

    def _warn_of_rounding(self, said: str) -> None:
        self.warnings.append(
            f"{said}: every trit is the checkpoint's, the scale its own rounded to a 16-bit float, as by a type that "
            "the file was repacked from"
        )

    def _compare_scales(self, reader: TritReader, trits: Trits, scales: Scales, first: int, last: int) -> None:
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
            said = (
                f"row {first + row}, columns from {group * (trits.shape[1] // groups)}: its scale is "
                f"{plain(scales[row, group])}, the checkpoint's is {plain(wanted[row, group])}"
            )
            if not (self._is_rounded(scales, wanted) | ~wrong).all():
                raise FaultyTensor(said)
            self._warn_of_rounding(said)


def _bfloat16(values: Scales) -> Scales:
    """Rounded to the nearest bfloat16."""
    out = np.empty(values.size, "<u2")
    _kernels.convert_floats(np.frombuffer(values.astype("<f4").tobytes(), np.uint8), "f32", out.view(np.uint8), "bf16")
    return (out.astype("<u4") << 16).view("<f4").reshape(values.shape)


def within(fault: FaultyTensor, expert: int, experts: int) -> FaultyTensor:
    return fault if experts == 1 else type(fault)(f"expert {expert}: {fault.cause}", code=fault.code)


def _where(index: int, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(index, shape)]


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


def _trits_by_definition(reader: TritReader, first: int, last: int) -> Trits:
    """The checkpoint's rows in the order of the file, by other code than what wrote them."""
    return reader.stored_trits(first, last)[_stored_rows(reader, last - first)]


def check_finite(raw: Bytes, kind: TensorType, first: int, shape: tuple[int, ...]) -> None:
    """Bytes from element `first` of a tensor on."""
    values, bad = decode(raw, kind.name)
    if bad >= 0:
        what = "is" if kind.name in FLOATS else "stands in a block whose scale is not finite: it is"
        raise FaultyTensor(f"element {_where(first + bad, shape)} {what} {values[bad]}, not finite")


def compare_values(raw: Bytes, wanted: Bytes, kind: TensorType, first: int, shape: tuple[int, ...]) -> None:
    """Bytes from element `first` of a tensor on, and those that its type makes of the checkpoint."""
    if not np.array_equal(raw, wanted):
        block = int((raw != wanted).argmax()) // kind.block_bytes
        where = _where(first + block * kind.block, shape)
        if kind.name in QUANTIZED:
            raise FaultyTensor(f"the {kind.name} block at {where} is not what llama-quantize makes of the checkpoint's")
        raise FaultyTensor(f"element {where} is not the checkpoint's")
