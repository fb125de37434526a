"""The weights of a GGUF file to be made, each with where its values come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bitconv.checkpoint.stored_tensor import FLOAT_DTYPES, StoredTensor
from bitconv.layouts.scales import Scale
from bitconv.models.architectures import Role
from bitconv.models.families import Family
from bitconv.models.hyperparameters import Hyperparameters
from bitconv.models.quantization import Rule


@dataclass(frozen=True)
class TernaryWeight:
    """A projection: rows x columns trits and their scales.

    scale: those of the rows in the order of the checkpoint; or the rule that makes trits and a scale of stored master
    weights, which only reading them all tells; None where nothing says that float weights are ternary.
    rope_heads: the rows are those of this many rotary heads, to be permuted to the interleaved order, or back from it
    where interleave is False; 0: as stored.
    bare: the trits are stored as they are, in floats or int8, beside their scale.
    absmax: master weights whose scales are the largest magnitudes of their groups.
    divides: a packed release of it would hold what divides, and not what multiplies.
    ruled_with: the matrix whose rows a rule makes one scale of, where that is more than these.
    """

    name: str
    shape: tuple[int, int]
    stored: StoredTensor
    scale: Scale | Rule | None
    rope_heads: int
    interleave: bool
    bare: bool = False
    absmax: bool = False
    divides: bool = False
    ruled_with: StoredTensor | None = None

    @property
    def has_scale(self) -> bool:
        return not (self.scale is None or isinstance(self.scale, Rule))

    @property
    def was_ternary(self) -> bool:
        """Whether it is stored in floats, and those are -scale, 0 and +scale."""
        return self.has_scale and not (self.bare or self.absmax) and self.stored.dtype in FLOAT_DTYPES

    @property
    def matrices(self) -> tuple[TernaryWeight, ...]:
        return (self,)


@dataclass(frozen=True)
class ExpertsWeight:
    """The same projection of every expert, stacked: experts x rows x columns trits, one scale an expert."""

    name: str
    matrices: tuple[TernaryWeight, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.matrices), *self.matrices[0].shape)


@dataclass(frozen=True)
class DenseWeight:
    """An embedding, an output head, a router or a norm, copied with at most a change of float type.

    A projection that is not ternary too, which then has the role of a ternary one. ternary: the same weight in trits
    and scales, of an embedding or a head where that was looked for and found.
    """

    name: str
    shape: tuple[int, ...]
    stored: StoredTensor
    role: Role
    ternary: TernaryWeight | None = None


@dataclass(frozen=True)
class ComputedWeight:
    """A small float32 tensor that is computed: of config.json alone, a bias, or a norm of ones."""

    name: str
    values: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Weight: TypeAlias = TernaryWeight | ExpertsWeight | DenseWeight | ComputedWeight


@dataclass(frozen=True)
class Model:
    """config: config.json in Llama's keys."""

    family: Family
    sizes: Hyperparameters
    config: Mapping[str, Any]
    weights: tuple[Weight, ...]

    @property
    def matrices(self) -> list[TernaryWeight]:
        """Every ternary matrix, those of experts one by one."""
        return [
            m for weight in self.weights if isinstance(weight, TernaryWeight | ExpertsWeight) for m in weight.matrices
        ]
