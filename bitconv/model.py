"""A checkpoint understood: every weight of the GGUF file with where its values come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bitconv import families, hyperparameters
from bitconv.architectures import Role, Slot
from bitconv.checkpoint import ITEMSIZE, Checkpoint, StoredTensor
from bitconv.errors import BitconvError
from bitconv.families import Family, microsoft_gpu, refusals
from bitconv.hyperparameters import Hyperparameters
from bitconv.quantization import Rule, ScaleConvention, Storage, check_plausible, gpu_storage, storage
from bitconv.scales import Scale, simplest

_FLOATS = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class TernaryWeight:
    """A projection: rows x columns trits and their scales.

    scale: those of the rows in the order of the checkpoint; or the rule that makes trits and a scale of stored master
    weights, which only reading them all tells; None where nothing says that float weights are ternary.
    rope_heads: the rows are those of this many rotary heads, to be permuted to the interleaved order, or back from it
    where interleave is False; 0: as stored.
    """

    name: str
    shape: tuple[int, int]
    stored: StoredTensor
    scale: Scale | Rule | None
    rope_heads: int
    interleave: bool

    @property
    def has_scale(self) -> bool:
        return not (self.scale is None or isinstance(self.scale, Rule))

    @property
    def was_ternary(self) -> bool:
        """Whether it is stored in floats, and those are -scale, 0 and +scale."""
        return self.has_scale and self.stored.dtype in _FLOATS

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
    """An embedding, an output head, a router or a norm, copied with at most a change of float type."""

    name: str
    shape: tuple[int, ...]
    stored: StoredTensor
    role: Role


@dataclass(frozen=True)
class ComputedWeight:
    """A small float32 tensor that follows from config.json alone."""

    name: str
    values: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Weight: TypeAlias = TernaryWeight | ExpertsWeight | DenseWeight | ComputedWeight


@dataclass(frozen=True)
class Model:
    family: Family
    sizes: Hyperparameters
    weights: tuple[Weight, ...]

    @property
    def matrices(self) -> list[TernaryWeight]:
        """Every ternary matrix, those of experts one by one."""
        return [
            m for weight in self.weights if isinstance(weight, TernaryWeight | ExpertsWeight) for m in weight.matrices
        ]


def load_model(checkpoint: Checkpoint, convention: ScaleConvention | None = None) -> Model:
    """Understand an open checkpoint.

    convention: overrules the one that config.json implies for weight_scale, and the check of its plausibility.
    BitconvError where the checkpoint is not one that bitconv knows, or where its tensors are not exactly those that
    its config asks for.
    """
    config, file = checkpoint.config, checkpoint.path / "config.json"
    refusals.check_checkpoint(config, checkpoint.tensors, checkpoint.path)
    family = families.detect(config, file, checkpoint.tensors)
    sizes = hyperparameters.from_config(config, file)
    # Before anything is made for each of them.
    if sizes.layers * max(sizes.experts, 1) > len(checkpoint.tensors):
        experts = f" of {sizes.experts} experts" if sizes.experts else ""
        raise BitconvError(f"{file}: num_hidden_layers is {sizes.layers}{experts}, more than there are tensors")
    tied = family.embedding or hyperparameters.Config(config, file).boolean("tie_word_embeddings")
    head = checkpoint.tensors.get("lm_head.weight")
    if head is not None and head.dtype == "u8":
        raise refusals.TERNARY_HEAD.error(f"{head.file}: lm_head.weight")
    _check_architecture(family, sizes, checkpoint, tied=tied)
    if family is microsoft_gpu.FAMILY:
        stored_as, implied = gpu_storage(checkpoint.tensors)
    else:
        stored_as, implied = storage(config, file, native=family.native)
    llama3 = sizes.rope_llama3

    slots = family.architecture.slots(sizes)
    modules: dict[str, list[Slot]] = {}
    for slot in slots:
        if slot.role is Role.TERNARY:
            modules.setdefault(family.source_name(slot.name), []).append(slot)
    if stored_as is Storage.MASTER:
        _check_converted(modules, config, file, head=not tied)
    binder = _Binder(checkpoint, stored_as, convention or implied, modules)
    weights: list[Weight] = []
    for slot in slots:
        if slot.role is Role.ROPE_FACTORS:
            if llama3 is not None:
                weights.append(ComputedWeight(slot.name, llama3.factors(sizes.rope_base, sizes.head_dim)))
        elif slot.role is Role.TERNARY and len(slot.shape) == 3:
            weights.append(binder.experts(slot, family.source_name(slot.name)))
        elif slot.role is Role.TERNARY:
            interleave = family.architecture.interleaved_rope
            heads = _rope_heads(slot, sizes) if interleave is not family.interleaved_rows else 0
            weights.append(binder.ternary(slot, family.source_name(slot.name), heads, interleave))
        elif slot.role is not Role.SCALE and not (tied and slot.name == "output.weight"):
            weights.append(binder.dense(slot, family.source_name(slot.name)))
    if tied:
        binder.alias(family.source_name("output.weight"), family.source_name("token_embd.weight"))
    binder.check_all_used()
    if stored_as is Storage.PACKED and convention is None:
        check_plausible(binder.scales, implied, file)
    return Model(family, sizes, tuple(weights))


def _check_architecture(family: Family, sizes: Hyperparameters, checkpoint: Checkpoint, *, tied: bool) -> None:
    """Refuse what no runner's graph of this architecture computes."""
    config, file, architecture = checkpoint.config, checkpoint.path / "config.json", family.architecture
    activation = config.get("hidden_act", architecture.activation)
    if activation != architecture.activation:
        raise BitconvError(
            f"{file}: hidden_act is {activation!r}, but runners apply {architecture.activation} in the graph of "
            f"{architecture.name}: the file would load and talk nonsense"
        )
    _check_norms(family, sizes, config, file)
    _check_experts(family, sizes, config, file)
    windows = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    if windows or config.get("layer_types") not in (None, ["full_attention"] * sizes.layers):
        raise BitconvError(f"{file}: some layers attend to a sliding window, which no architecture here computes")
    if not architecture.untied_head and not tied:
        raise BitconvError(
            f"{file}: tie_word_embeddings is not true, but the {architecture.name} graph always multiplies by the "
            "embedding: no runner can compute this model's own output head"
        )
    if sizes.rope_scaling not in (None, *architecture.rope_scaling):
        raise BitconvError(
            f"{file}: rope scaling {sizes.rope_scaling!r}, which no runner is known to apply in the graph of "
            f"{architecture.graph}"
        )
    if not architecture.free_head_dim and sizes.head_dim * sizes.heads != sizes.hidden:
        raise BitconvError(
            f"{file}: head_dim {sizes.head_dim} is not hidden_size / num_attention_heads, which the "
            f"{architecture.name} graph assumes"
        )


def _check_norms(family: Family, sizes: Hyperparameters, config: Mapping[str, Any], file: Path) -> None:
    """Refuse norms on the inputs of projections that the graph lacks, or has and the checkpoint lacks."""
    quantization = _quantization(config)
    use_rms_norm = bool(quantization.get("use_rms_norm"))
    if use_rms_norm and not family.architecture.input_norms:
        raise refusals.INPUT_NORMS.error(f"{file}: quantization_config.use_rms_norm")
    if family.architecture.input_norms and not (use_rms_norm or family.native):
        raise BitconvError(
            f"{file}: quantization_config.use_rms_norm is not true, but there are tensors *{family.tensor}"
        )
    if use_rms_norm and quantization.get("rms_norm_eps", 1e-6) != sizes.rms_eps:
        raise BitconvError(
            f"{file}: quantization_config.rms_norm_eps (1e-06 where it is missing) is not rms_norm_eps, and runners "
            "have one for all norms"
        )
    if family.architecture.qk_norms and config.get("head_dim") is None:
        raise BitconvError(f"{file}: head_dim is missing; transformers takes 128 for Qwen3, write what it is")


def _check_experts(family: Family, sizes: Hyperparameters, config: Mapping[str, Any], file: Path) -> None:
    """Refuse experts in other classes than those of mixtures, and a router that is ternary too."""
    if bool(sizes.experts) != family.experts:
        raise BitconvError(
            f"{file}: num_local_experts is {config.get('num_local_experts')!r}; {family.hf_architecture} has "
            f"{'experts' if family.experts else 'none'}"
        )
    kept = _quantization(config).get("modules_to_not_convert")
    listed = kept if isinstance(kept, list) else []
    if family.experts and not any(str(module).endswith("gate") for module in listed):
        raise BitconvError(
            f"{file}: quantization_config.modules_to_not_convert does not list gate: the router of the experts is "
            "ternary too, with activations rounded to int8, and llama.cpp's is of floats"
        )


def _check_converted(modules: Iterable[str], config: Mapping[str, Any], file: Path, *, head: bool) -> None:
    """Refuse projections that transformers leaves in floats, and a head that it ternarises, of master weights.

    modules: the projections' tensors; {} stands for the number of an expert. head: the model has one of its own.
    """
    listed = _quantization(config).get("modules_to_not_convert")
    if listed is None:  # then it is the head alone, where there is a quantization_config at all
        return
    if not isinstance(listed, list) or not all(isinstance(pattern, str) for pattern in listed):
        raise BitconvError(
            f"{file}: quantization_config.modules_to_not_convert is {listed!r}, expected a list of names"
        )
    for name in modules:
        module = name.removesuffix(".weight").replace("{}", "0")
        if _is_listed(module, listed):
            raise BitconvError(
                f"{file}: quantization_config.modules_to_not_convert lists {module}: it is a matrix of floats, whose "
                "activations are not rounded, and runners have it ternary like the others"
            )
    if head and not _is_listed("lm_head", listed):
        raise refusals.TERNARY_HEAD.error(f"{file}: quantization_config.modules_to_not_convert lacks lm_head")


def _is_listed(module: str, patterns: Iterable[str]) -> bool:
    """Whether transformers 5 keeps a module as it is (should_convert_module in quantizers/quantizers_utils.py)."""

    def matches(pattern: str) -> bool:
        try:
            start = re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module)
        except re.error:
            start = None
        return start is not None or module.endswith(pattern)

    return any(map(matches, patterns))


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    value = config.get("quantization_config")
    return value if isinstance(value, Mapping) else {}


def _rope_heads(slot: Slot, sizes: Hyperparameters) -> int:
    if slot.name.endswith("attn_q.weight"):
        return sizes.heads
    return sizes.kv_heads if slot.name.endswith("attn_k.weight") else 0


class _Binder:
    """Finds the tensors of slots in a checkpoint, checks them, and keeps count of what was used.

    modules: which projections each stored matrix holds, one after the other.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stored_as: Storage,
        convention: ScaleConvention,
        modules: dict[str, list[Slot]],
    ) -> None:
        self.checkpoint = checkpoint
        self.stored_as = stored_as
        self.convention = convention
        self.modules = modules
        self.used: set[str] = set()
        self.scales: list[Scale] = []

    def find(self, name: str, shape: tuple[int, ...], dtypes: Iterable[str]) -> StoredTensor:
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None:
            raise BitconvError(f"{self.checkpoint.path}: {name}: missing; config.json asks for this tensor")
        if tensor.dtype not in dtypes:
            raise tensor.error(f"stored as {tensor.dtype}, expected {' or '.join(dtypes)} ({self.stored_as.value})")
        if tensor.shape != shape:
            raise tensor.error(f"has shape {tensor.shape}, config.json implies {shape}")
        self.used.add(name)
        return tensor

    def dense(self, slot: Slot, name: str) -> DenseWeight:
        return DenseWeight(slot.name, slot.shape, self.find(name, slot.shape, _FLOATS), slot.role)

    def experts(self, slot: Slot, name: str) -> ExpertsWeight:
        count, *shape = slot.shape
        matrix = Slot(slot.name, tuple(shape), slot.role)
        names = [name.format(i) for i in range(count)]
        self.modules.update({expert: [matrix] for expert in names})
        return ExpertsWeight(slot.name, tuple(self.ternary(matrix, expert, 0, interleave=False) for expert in names))

    def ternary(self, slot: Slot, name: str, rope_heads: int, interleave: bool) -> TernaryWeight:
        rows, columns = slot.shape
        if self.stored_as in (Storage.MASTER, Storage.UNMARKED):
            stored = self.part(slot, name, columns, _FLOATS)
            rule = Rule.ABSMEAN if self.stored_as is Storage.MASTER else None
            return TernaryWeight(slot.name, (rows, columns), stored, rule, rope_heads, interleave)
        scale_name = name.removesuffix("weight") + "weight_scale"
        if self.stored_as is Storage.INT2:
            if rows % 16 or columns % 32:
                raise BitconvError(f"{self.checkpoint.path}: {name}: {slot.name}, {rows}x{columns}, has no 16x32 tiles")
            stored = self.part(slot, name, columns // 4, ["i8"])
            scale = self.int2_scale(scale_name, self.modules[name].index(slot))
        else:
            if rows % 4:
                raise BitconvError(f"{self.checkpoint.path}: {name}: {rows} rows cannot be packed four to a byte")
            stored = self.find(name, (rows // 4, columns), ["u8"])
            scale = self.scale(scale_name, rows)
        return TernaryWeight(slot.name, (rows, columns), stored, scale, rope_heads, interleave)

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
        tensor = self.find(name, tensor.shape if tensor is not None and possible else (1,), _FLOATS)
        return self.multiplier(tensor, self.checkpoint.values(tensor).reshape(-1, 1))

    def int2_scale(self, name: str, part: int) -> Scale:
        """part: which of the fused projections; the GPU pipeline has room for four scales, unused ones are 0."""
        tensor = self.find(name, (4,), _FLOATS)
        return self.multiplier(tensor, self.checkpoint.values(tensor)[part].reshape(1, 1))

    def multiplier(self, tensor: StoredTensor, stored: npt.NDArray[np.float32]) -> Scale:
        """What multiplies the trits, from the values (rows, 1) or (1, 1) of a weight_scale."""
        bad = stored[~(np.isfinite(stored) & (stored > 0))]
        if bad.size:
            raise tensor.error(f"is {bad[0]}; a scale must be finite and positive")
        scales = self.convention.scale(stored)
        bad = stored[~np.isfinite(scales)]
        if bad.size:
            raise tensor.error(f"is {bad[0]}, whose inverse overflows float32")
        scale = simplest(scales)
        self.scales.append(scale)
        return scale

    def alias(self, name: str, of: str) -> None:
        """A second copy of a tensor, which may be there: BitconvError where it is another.

        transformers 5 does not tie an output head that differs from the embedding, whatever config.json says.
        """
        tensor, other = self.checkpoint.tensors.get(name), self.checkpoint.tensors[of]
        if tensor is None:
            return
        self.find(name, other.shape, [other.dtype])
        step = 1 << 20
        for start in range(0, tensor.nbytes, step):
            raw = np.empty((2, min(step, tensor.nbytes - start)), np.uint8)
            self.checkpoint.read(tensor, start, raw[0])
            self.checkpoint.read(other, start, raw[1])
            if not np.array_equal(raw[0], raw[1]):
                raise tensor.error(
                    f"differs from {of}, though config.json ties them: if the model has this head, write "
                    "tie_word_embeddings false; if not, remove the tensor"
                )

    def check_all_used(self) -> None:
        """A tensor that nothing reads is a part of the model that would be lost in silence."""
        for name, tensor in self.checkpoint.tensors.items():
            # Buffers that older transformers saved carry nothing of their own.
            if name not in self.used and not name.endswith("rotary_emb.inv_freq"):
                raise tensor.error("is no part of this architecture as config.json describes it")
