"""The ternary rules: from a checkpoint's bytes to trits, a block of rows at a time.

A trit is an int8 of -1, 0 or +1; a block is an int8 array (rows, columns); a scale that a rule makes is one positive
float32 for the whole tensor.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import ITEMSIZE
from bitconv.layouts.scales import Scale
from bitconv.models.arithmetic import MIN_MEAN, Arithmetic, abs_sum, rounded
from bitconv.models.quantization import ABSMEAN, ABSMEAN_BF16, ABSMEDIAN, Rule
from bitconv.models.weights import TernaryWeight
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code
from bitconv.system.jobs import KeepGoing

Trits = npt.NDArray[np.int8]
Number = TypeVar("Number", np.int8, np.float32)


class TritReader:
    """Reads one projection of an open checkpoint as trits.

    Its scratch memory is a few blocks. Where a rule makes the scale, making a reader reads all weights once, or twice
    for the median of float32. keep_going: called for every block of that; it may raise to give up.
    stored_scale, scale: those of the rows in the order of the checkpoint, and of the GGUF file.
    others: how many of the trits that were read are others by the other rule of ABSMEAN and ABSMEAN_BF16, which
    count_others asks for.
    """

    def __init__(self, checkpoint: Checkpoint, weight: TernaryWeight, keep_going: KeepGoing) -> None:
        self.checkpoint = checkpoint
        self.weight = weight
        self.rows, self.columns = weight.shape
        self.ruled = weight.ruled_with or weight.stored
        self._rows_of = {"u8": self._packed_rows, "i8": self._int2_rows}.get(weight.stored.dtype, self._master_rows)
        if weight.bare:
            self._rows_of = self._bare_rows
        if weight.absmax:
            self._rows_of = self._absmax_rows
        # A head's rows are permuted among themselves, so a block must hold whole heads.
        self.row_multiple = self.rows // weight.rope_heads if weight.rope_heads else 1
        assert weight.scale is not None
        self.others = 0
        self._threshold = 0
        self._other_threshold: int | None = None
        scale: Scale
        if isinstance(weight.scale, Rule):
            scale = self._by_rule(weight.scale, keep_going)
        else:
            scale = weight.scale
            if weight.was_ternary:
                # Of several scales the least tells all of them from zeros.
                least = scale[scale > 0].min() if isinstance(scale, np.ndarray) else scale
                self._threshold = _kernels.threshold(weight.stored.dtype, float(np.float32(1) / least))
        self.stored_scale: Scale = scale
        self.scale: Scale = self.reordered(scale) if isinstance(scale, np.ndarray) else scale

    def count_others(self) -> None:
        """From now on, of master weights that one of the two rules makes trits of."""
        if isinstance(self.weight.scale, Rule) and self.weight.scale != ABSMEDIAN:
            other = ABSMEAN if self.weight.scale == ABSMEAN_BF16 else ABSMEAN_BF16
            # Of a mean whose weights were not rounded before: the last bit of it, once in a while, and no pass more.
            self._other_threshold = Arithmetic(other.arithmetic).threshold(self.weight.stored.dtype, self._mean)

    def stored_trits(self, first: int, last: int) -> Trits:
        """Rows first to last (exclusive) in the order of the checkpoint."""
        return self._rows_of(first, last)

    def trits(self, first: int, last: int) -> Trits:
        """Rows first to last (exclusive), both multiples of row_multiple, in the order of the GGUF file."""
        return self.reordered(self.stored_trits(first, last))

    def reordered(self, block: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Whole heads of rows, from the order of the checkpoint to that of the GGUF file."""
        if self.weight.rope_heads:
            # (head, half, pair) -> (head, pair, half): rows i and i + head_dim/2 become neighbours; or the way back.
            half = self.row_multiple // 2
            order = (2, half) if self.weight.interleave else (half, 2)
            heads = block.reshape(-1, *order, block.shape[1])
            block = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(block.shape)
        return block

    def stored_bytes(self, first: int, last: int, itemsize: int) -> npt.NDArray[np.uint8]:
        """Of rows first to last (exclusive) in the order of the checkpoint."""
        stride = self.columns * itemsize
        raw = np.empty((last - first) * stride, np.uint8)
        self.checkpoint.read(self.weight.stored, first * stride, raw)
        return raw

    def _ruled_bytes(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Of rows first to last (exclusive) of what a rule makes one scale of."""
        stride = self.ruled.shape[1] * ITEMSIZE[self.ruled.dtype]
        raw = np.empty((last - first) * stride, np.uint8)
        self.checkpoint.read(self.ruled, first * stride, raw)
        return raw

    def _by_rule(self, rule: Rule, keep_going: KeepGoing) -> np.float32:
        """The scale of master weights; what rounds to a trit other than 0 is kept in mind."""
        arithmetic = Arithmetic(rule.arithmetic)
        self._mean = self._absmedian(keep_going) if rule == ABSMEDIAN else self._absmean(arithmetic, keep_going)
        inverse = arithmetic.inverse(self._mean)
        self._threshold = arithmetic.threshold(self.weight.stored.dtype, self._mean)
        if rule != ABSMEAN_BF16:
            return max(self._mean, np.float32(MIN_MEAN))
        # onebitllms stores the inverse, by which models divide; the GPU pipeline its inverse once more in bfloat16.
        scale = np.float32(1) / inverse
        return scale if self.weight.divides else rounded(scale, arithmetic.dtype)

    def _absmean(self, arithmetic: Arithmetic, keep_going: KeepGoing) -> np.float32:
        """The mean magnitude, summed in float64, rounded to float32 once.

        Blocks are summed in order, so that the scale does not depend on the number of threads.
        """
        dtype = self.ruled.dtype
        total = 0.0
        for first, last in row_blocks(self.ruled.shape[0], self.columns, 1):
            keep_going()
            block_sum = abs_sum(self._ruled_bytes(first, last), dtype, arithmetic.dtype)
            if not math.isfinite(block_sum):
                raise self._not_finite(first, last)
            total += block_sum
        return np.float32(total / math.prod(self.ruled.shape))

    def _absmedian(self, keep_going: KeepGoing) -> np.float32:
        """The median magnitude, of an even count the lower of the two in the middle, as torch.median takes it.

        Magnitudes order as their bit patterns do: the highest 16 bits that it can have are counted, then in a second
        pass over float32 the lowest 16 of those with the right highest.
        """
        dtype = self.ruled.dtype
        bits = np.dtype(f"<u{ITEMSIZE[dtype]}")
        shift = bits.itemsize * 8 - 16
        infinity = {"f32": 0x7F80, "bf16": 0x7F80, "f16": 0x7C00}[dtype]
        rank = (math.prod(self.ruled.shape) - 1) // 2
        counts = np.zeros(1 << 15, np.int64)
        for first, last in row_blocks(self.ruled.shape[0], self.columns, 1):
            keep_going()
            high = self._ruled_bytes(first, last).view(bits) >> shift & 0x7FFF
            block = np.bincount(high, minlength=counts.size)
            if block[infinity:].any():
                raise self._not_finite(first, last)
            counts += block
        pattern, rank = _at_rank(counts, rank)
        if dtype == "f32":
            counts = np.zeros(1 << 16, np.int64)
            for first, last in row_blocks(self.ruled.shape[0], self.columns, 1):
                keep_going()
                patterns = self._ruled_bytes(first, last).view(bits) & 0x7FFFFFFF
                counts += np.bincount(patterns[patterns >> shift == pattern] & 0xFFFF, minlength=counts.size)
            pattern = pattern << 16 | _at_rank(counts, rank)[0]
        median = np.empty(4, np.uint8)
        _kernels.convert_floats(np.array([pattern], bits).view(np.uint8), dtype, median, "f32")
        return np.float32(median.view("<f4")[0])

    def _not_finite(self, first: int, last: int) -> BitconvError:
        return self.weight.stored.error(f"holds NaN or infinity in rows {first} to {last - 1}", code=Code.TENSOR_VALUE)

    def _master_rows(self, first: int, last: int) -> Trits:
        """The sign of weights from a magnitude on: clip(round_half_even(W * (1 / scale)), -1, 1) in an arithmetic."""
        dtype = self.weight.stored.dtype
        block = np.empty((last - first, self.columns), np.int8)
        raw = self.stored_bytes(first, last, ITEMSIZE[dtype])
        self.others += _kernels.ternarize_from(raw, dtype, self._threshold, block.reshape(-1), self._other_threshold)
        return block

    def _absmax_rows(self, first: int, last: int) -> Trits:
        scale = self.weight.scale
        assert isinstance(scale, np.ndarray)
        return ternarize_absmax(self.checkpoint, self.weight, first, last, np.empty_like(scale[first:last]))

    def _bare_rows(self, first: int, last: int) -> Trits:
        """Trits in floats or int8. BitconvError where a value is none."""
        dtype, count = self.weight.stored.dtype, (last - first) * self.columns
        raw, values = self.stored_bytes(first, last, ITEMSIZE[dtype]), np.empty(count, "<f4")
        if dtype == "i8":
            values[:] = raw.view(np.int8)
        else:
            _kernels.convert_floats(raw, dtype, values.view(np.uint8), "f32")
        trits: Trits = np.sign(np.nan_to_num(values)).astype(np.int8)
        bad = np.flatnonzero(trits != values)
        if bad.size:
            row, column = divmod(int(bad[0]), self.columns)
            raise self.weight.stored.error(
                f"row {first + row}, column {column} holds {values[bad[0]]:g} beside a weight_scale, and is no trit",
                code=Code.TENSOR_VALUE,
                way_out="if the values have their scale in them already (trit * scale), remove the weight_scale "
                "tensors and quantization_config",
            )
        return trits.reshape(last - first, self.columns)

    def _int2_rows(self, first: int, last: int) -> Trits:
        """The GPU pipeline's packing (gpu/pack_weight.py): tiles of 16 rows by 32 columns, one after the other by rows.

        A tile is 32 words of 4 bytes, one for each (row / 8, half of its columns, row % 8); bits 2j and 2j + 1 of a
        word's byte b hold trit + 2 of column 4j + b of that half.
        """
        top = first // 16 * 16
        count = -(-(last - top) // 16) * 16
        raw = np.empty(count * self.columns // 4, np.uint8)
        self.checkpoint.read(self.weight.stored, top * self.columns // 4, raw)
        words = raw.view("<u4").reshape(count // 16, self.columns // 32, 2, 2, 8).transpose(0, 2, 4, 1, 3)
        codes = np.empty((*words.shape, 4), "<u4")
        for j in range(4):
            codes[..., j] = words >> np.uint32(2 * j) & np.uint32(0x03030303)
        block = codes.view(np.int8).reshape(count, self.columns)[first - top : last - top]
        if not block.all():
            r, k = np.argwhere(block == 0)[0]
            raise self.weight.stored.error(
                f"row {first + r}, column {k} holds the code 0, which is no trit: corrupt, or not packed so",
                code=Code.TENSOR_VALUE,
            )
        return block - np.int8(2)

    def _packed_rows(self, first: int, last: int) -> Trits:
        """Hugging Face's packing: byte [r, k] of R = rows/4 rows holds rows r, r+R, r+2R, r+3R, low bits first."""
        stored_rows = self.rows // 4
        block = np.empty((last - first, self.columns), np.int8)
        at = first
        while at < last:
            quarter, row = divmod(at, stored_rows)
            count = min(last - at, stored_rows - row)
            raw = self.stored_bytes(row, row + count, 1)
            bad = _kernels.unpack_hf(raw, quarter, block[at - first : at - first + count].reshape(-1))
            if bad >= 0:
                r, k = divmod(bad, self.columns)
                raise self.weight.stored.error(
                    f"byte [{row + r}, {k}] holds the code 3, which is no trit: corrupt, or not packed ternary weights",
                    code=Code.TENSOR_VALUE,
                )
            at += count
        return block


def ternarize_absmax(
    checkpoint: Checkpoint, weight: TernaryWeight, first: int, last: int, scales: npt.NDArray[np.float32]
) -> Trits:
    """Rows of master weights, each group by its largest magnitude, which is written to scales (rows, groups)."""
    dtype, columns = weight.stored.dtype, weight.shape[1]
    stride = columns * ITEMSIZE[dtype]
    raw = np.empty((last - first) * stride, np.uint8)
    checkpoint.read(weight.stored, first * stride, raw)
    block = np.empty((last - first, columns), np.int8)
    bad = _kernels.ternarize_absmax(raw, dtype, block.reshape(-1), scales)
    if bad >= 0:
        row = first + bad // columns
        raise weight.stored.error(f"holds NaN or infinity in row {row}", code=Code.TENSOR_VALUE)
    return block


def _at_rank(counts: npt.NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Which bin of a histogram holds the value of a rank, from 0, in ascending order, and its rank within the bin."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, rank, side="right"))
    return place, rank - int(ends[place] - counts[place])
