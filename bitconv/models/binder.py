"""The tensors of a checkpoint, bound to the slots of an architecture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import FLOAT_DTYPES, ITEMSIZE, StoredTensor
from bitconv.layouts.scales import Scale, simplest
from bitconv.models.architectures import Slot
from bitconv.models.quantization import ABSMEAN, ScaleConvention, Storage
from bitconv.models.weights import ComputedWeight, DenseWeight, ExpertsWeight, TernaryWeight
from bitconv.system.errors import BitconvError, Code

# In which trits may be stored as they are.
BARE_DTYPES = (*FLOAT_DTYPES, "i8")


class Binder:
    """Finds the tensors of slots in a checkpoint, checks them, and keeps count of what was used.

    modules: which projections each stored matrix holds, one after the other. one_layer: these are one ternary layer.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored_as: Storage,
        convention: ScaleConvention,
        modules: dict[str, list[Slot]],
        *,
        one_layer: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.stored_as = stored_as
        self.convention = convention
        self.modules = modules
        self.one_layer = one_layer
        self.used: set[str] = set()
        self.scales: list[Scale] = []

    def find(self, name: str, shape: tuple[int, ...], dtypes: Iterable[str]) -> StoredTensor:
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None:
            raise BitconvError(
                "missing; config.json asks for this tensor",
                code=Code.INCOMPLETE,
                file=self.checkpoint.path,
                tensor=name,
            )
        if tensor.dtype not in dtypes:
            raise tensor.error(
                f"stored as {tensor.dtype}, expected {' or '.join(dtypes)} ({self.stored_as.value})",
                code=Code.TENSOR_FORM,
            )
        if tensor.shape != shape:
            raise tensor.error(f"has shape {tensor.shape}, config.json implies {shape}", code=Code.TENSOR_FORM)
        self.used.add(name)
        return tensor

    def dense(self, slot: Slot, name: str) -> DenseWeight:
        return DenseWeight(slot.name, slot.shape, self.find(name, slot.shape, FLOAT_DTYPES), slot.role)

    def bias(self, slot: Slot, name: str, weight: object) -> ComputedWeight:
        """In float32. weight: the projection whose output it is added to.

        AutoBitLinear in transformers' integrations/bitnet.py (4.52 to 5.24) multiplies by a stored weight_scale after
        it has added the bias.
        """
        values = self.checkpoint.values(self.find(name, slot.shape, FLOAT_DTYPES)).astype(np.float32)
        stored = isinstance(weight, TernaryWeight) and weight.has_scale
        if stored and self.stored_as is Storage.PACKED and self.convention is ScaleConvention.MULTIPLY:
            assert isinstance(weight, TernaryWeight)
            values = values * np.float32(weight.scale) if isinstance(weight.scale, np.floating) else values
        return ComputedWeight(slot.name, values)

    def experts(self, slot: Slot, name: str) -> ExpertsWeight:
        count, *shape = slot.shape
        matrix = Slot(slot.name, tuple(shape), slot.role)
        names = [name.format(i) for i in range(count)]
        self.modules.update({expert: [matrix] for expert in names})
        return ExpertsWeight(slot.name, tuple(self.ternary(matrix, expert, 0, interleave=False) for expert in names))

    def ternary(self, slot: Slot, name: str, rope_heads: int, interleave: bool) -> TernaryWeight:
        rows, columns = slot.shape
        scale_name = name.removesuffix("weight") + "weight_scale"
        if self.stored_as in (Storage.MASTER, Storage.UNMARKED):
            self.refuse_scale(scale_name)
            stored = self.part(slot, name, columns, FLOAT_DTYPES)
            rule = ABSMEAN if self.stored_as is Storage.MASTER else None
            divides = self.convention is ScaleConvention.DIVIDE
            whole = self.checkpoint.tensors[name] if self.one_layer and len(self.modules[name]) > 1 else None
            weight = TernaryWeight(slot.name, (rows, columns), stored, rule, rope_heads, interleave, divides=divides)
            return replace(weight, ruled_with=whole)
        if self.stored_as is Storage.INT2:
            if rows % 16 or columns % 32:
                raise BitconvError(
                    f"{slot.name}, {rows}x{columns}, has no 16x32 tiles",
                    code=Code.TENSOR_FORM,
                    file=self.checkpoint.path,
                    tensor=name,
                )
            stored = self.part(slot, name, columns // 4, ["i8"])
            scale = self.int2_scale(scale_name, self.modules[name].index(slot))
        elif self.is_unpacked(name, scale_name):
            # As transformers saves a packed model again that it has unpacked to run it (AutoBitLinear, 4.52 and later).
            stored = self.find(name, (rows, columns), BARE_DTYPES)
            scale = self.scale(scale_name, rows)
            return TernaryWeight(slot.name, (rows, columns), stored, scale, rope_heads, interleave, bare=True)
        else:
            if rows % 4:
                raise BitconvError(
                    f"{rows} rows cannot be packed four to a byte",
                    code=Code.TENSOR_FORM,
                    file=self.checkpoint.path,
                    tensor=name,
                )
            stored = self.find(name, (rows // 4, columns), ["u8"])
            scale = self.scale(scale_name, rows)
        return TernaryWeight(slot.name, (rows, columns), stored, scale, rope_heads, interleave)

    def is_unpacked(self, name: str, scale_name: str) -> bool:
        """Whether a projection lies beside its scale without being packed. BitconvError where it has no scale."""
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None or tensor.dtype not in BARE_DTYPES:
            return False
        if scale_name in self.checkpoint.tensors or tensor.dtype not in FLOAT_DTYPES:
            return True
        raise tensor.error(
            f"stored as {tensor.dtype} without a weight_scale, and quantization_config in config.json says "
            f"{self.stored_as.value}",
            code=Code.CONTRADICTION,
            way_out="if the floats are ternary (trit * scale), remove quantization_config; if they are master weights, "
            'write "linear_class": "autobitlinear", "quantization_mode": "online" in it',
        )

    def refuse_scale(self, name: str) -> None:
        """A scale beside weights of which config.json does not say that they have any."""
        tensor = self.checkpoint.tensors.get(name)
        if tensor is not None:
            raise tensor.error(
                f"is the scale of trits, and config.json's quantization_config makes weights {self.stored_as.value}",
                code=Code.CONTRADICTION,
                way_out='write "quantization_config": {"quant_method": "bitnet"} where the model divides by it, with '
                '"linear_class": "autobitlinear", "quantization_mode": "offline" where it multiplies',
            )

    def part(self, slot: Slot, name: str, columns: int, dtypes: Iterable[str]) -> StoredTensor:
        """The rows of a stored matrix that are those of a slot: all, unless it is fused with others."""
        fused = self.modules[name]
        ends = list(accumulate(other.shape[0] for other in fused))
        stored = self.find(name, (ends[-1], columns), dtypes)
        if len(fused) == 1:
            return stored
        end = ends[fused.index(slot)]
        first = end - slot.shape[0]
        offset = stored.offset + first * columns * ITEMSIZE[stored.dtype]
        return replace(stored, name=f"{name}[{first}:{end}]", shape=(end - first, columns), offset=offset)

    def scale(self, name: str, rows: int) -> Scale:
        """Stored as a scalar, in shape (1,), or one a row in shape (rows,) or (rows, 1)."""
        tensor = self.checkpoint.tensors.get(name)
        possible = tensor is not None and tensor.shape in ((), (rows,), (rows, 1))
        tensor = self.find(name, tensor.shape if tensor is not None and possible else (1,), FLOAT_DTYPES)
        return self.multiplier(tensor, self.checkpoint.values(tensor).reshape(-1, 1))

    def int2_scale(self, name: str, part: int) -> Scale:
        """part: which of the fused projections; the GPU pipeline has room for four scales, unused ones are 0."""
        tensor = self.find(name, (4,), FLOAT_DTYPES)
        return self.multiplier(tensor, self.checkpoint.values(tensor)[part].reshape(1, 1))

    def multiplier(self, tensor: StoredTensor, stored: npt.NDArray[np.float32]) -> Scale:
        """What multiplies the trits, from the values (rows, 1) or (1, 1) of a weight_scale."""
        bad = stored[~(np.isfinite(stored) & (stored > 0))]
        if bad.size:
            raise tensor.error(f"is {bad[0]}; a scale must be finite and positive", code=Code.TENSOR_VALUE)
        scales = self.convention.scale(stored)
        bad = stored[~np.isfinite(scales)]
        if bad.size:
            raise tensor.error(f"is {bad[0]}, whose inverse overflows float32", code=Code.TENSOR_VALUE)
        scale = simplest(scales)
        self.scales.append(scale)
        return scale

    def check_all_used(self) -> None:
        """A tensor that nothing reads is a part of the model that would be lost in silence."""
        for name, tensor in self.checkpoint.tensors.items():
            # Buffers that older transformers saved carry nothing of their own.
            if name not in self.used and not name.endswith("rotary_emb.inv_freq"):
                raise tensor.error("is no part of this architecture as config.json describes it", code=Code.TENSOR_FORM)
