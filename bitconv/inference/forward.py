"""The forward pass of a GGUF file in exact BitNet arithmetic, over the packed bytes: what a right runner computes.

Before a projection the activations of a token are rounded to int8 by their largest magnitude, the products with the
trits are summed in int32, and the sum is multiplied once in float32 (activation_quant and BitLinear in transformers'
integrations/bitnet.py). Where groups of columns have scales of their own, the sums of the groups are scaled and added.
Embedding, norms, rotation, attention and output head are float32, in an order of additions that is the same for any
number of tokens and threads and on every instruction set. The layers are computed in kernels/forward/.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TypeAlias

import gguf as gguf_package
import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import GGUFFile, MalformedGGUF, TensorInfo, type_by_name
from bitconv.layouts.dense import decode
from bitconv.layouts.layout import Bytes, Layout, trits_operand
from bitconv.layouts.scaled_rows import ScaledRows
from bitconv.layouts.scales import Scale
from bitconv.models.architectures import Architecture, Role, expert_name, scale_name
from bitconv.models.hyperparameters import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from bitconv.packed.inspection import Inspection
from bitconv.packed.ternary_tensor import FaultyTensor, dequantized, matrices, stacked
from bitconv.system import jobs
from bitconv.system.blocks import row_blocks
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import open_input
from bitconv.system.jobs import KeepGoing
from bitconv.system.rawio import read_at

Floats: TypeAlias = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.NDArray[np.int64]

_READ_AT_ONCE, _PAGE = 1 << 26, 4096
# Tokens whose logits are in memory at a time where only their probabilities are asked for: so many vectors pass while
# weights of the head stay close, and the memory is small enough to be used again.
_LOGITS_AT_ONCE = 32


@dataclass
class Cache:
    """The keys and values of the `used` tokens seen so far, in the shapes that the kernels' Pass takes, by layer."""

    keys: Floats
    values: Floats
    capacity: int
    used: int = 0


@dataclass(frozen=True)
class Projection:
    """A ternary matrix as the file holds it: the bytes of each region of its layout."""

    packed: list[Bytes]
    shape: tuple[int, int]
    layout: Layout
    scale: Scale

    def matrix(self, *, rounding: bool) -> _kernels.Matrix:
        """rounding: activations are rounded to int8."""
        scales = np.asarray(self.scale)
        groups = scales.shape[1] if scales.ndim else 1
        operands = [self.layout.operand(self.packed, self.shape[1])] if groups == 1 else self._in_groups(groups)
        return _kernels.Matrix.ternary(operands, np.ascontiguousarray(scales), rounding)

    def _in_groups(self, groups: int) -> list[_kernels.Operand]:
        """Of the bytes of rows as groups of columns have them; of a layout whose groups are not whole blocks in one
        piece, of the trits."""
        layout, columns = self.layout, self.shape[1] // groups
        if isinstance(layout, ScaledRows) and columns % layout.block == 0 and not layout.row_header:
            (rows,) = self.packed
            blocks = rows.reshape(-1, groups, layout.row_bytes(columns))
            return [layout.operand([np.ascontiguousarray(blocks[:, i]).reshape(-1)], columns) for i in range(groups)]
        trits, _ = layout.unpack_rows(self.packed, self.shape[1])
        parts = trits.reshape(-1, groups, columns)
        return [trits_operand(np.ascontiguousarray(parts[:, i])) for i in range(groups)]


@dataclass(frozen=True)
class FloatProjection:
    """A projection of floats that are not ternary: its activations are not rounded."""

    data: Bytes
    shape: tuple[int, int]
    dtype: str

    def matrix(self, *, rounding: bool) -> _kernels.Matrix:
        return _kernels.Matrix.dense(self.data, self.dtype, *self.shape)


class Embedding:
    """A matrix (tokens, hidden) of floats, of quantized blocks or of trits, as the file holds it.

    layout, scale: of trits, whose codes are right; they are multiplied with activations that are not rounded.
    """

    def __init__(
        self, data: Bytes, tensor: TensorInfo, type_name: str, layout: Layout | None, scale: Scale | None
    ) -> None:
        self.tokens, self.hidden = tensor.shape
        self.dtype = type_name
        self.layout = layout
        self.scale = scale
        row_bytes = type_by_name(type_name).nbytes((self.hidden,)) if layout is None else _row_bytes(layout, tensor)
        self.rows = data[tensor.offset : tensor.offset + self.tokens * row_bytes].reshape(self.tokens, -1)

    def of(self, tokens: Tokens) -> Floats:
        """Their rows, float32 (n, hidden)."""
        raw = np.ascontiguousarray(self.rows[tokens]).reshape(-1)
        if self.layout is not None:
            trits, _ = self.layout.unpack_rows([raw], self.hidden)
            assert self.scale is not None
            return dequantized(trits, self.scale[tokens] if isinstance(self.scale, np.ndarray) else self.scale)
        values, bad = decode(raw, self.dtype)
        if bad >= 0:
            raise MalformedGGUF(
                f"the embedding of token {tokens[bad // self.hidden]} holds NaN or infinity", code=Code.FAULTY
            )
        return values.reshape(-1, self.hidden)

    def matrix(self) -> _kernels.Matrix:
        """As an output head."""
        data = self.rows.reshape(-1)
        if self.layout is None:
            return _kernels.Matrix.dense(data, self.dtype, self.tokens, self.hidden)
        assert self.scale is not None
        return Projection([data], (self.tokens, self.hidden), self.layout, self.scale).matrix(rounding=False)


class ForwardPass:
    """The model in a GGUF file without structural faults, and the threads that compute it.

    Opening it reads every ternary tensor once and checks its codes and scales. float_activations: what a runner
    computes that does not round them. projections: by name in the file. BitconvError where the file is faulty.
    """

    def __init__(
        self, opened: GGUFFile, inspection: Inspection, *, float_activations: bool = False, threads: int | None = None
    ) -> None:
        _refuse_faults(opened, inspection)
        if f"{inspection.architecture_name}.pooling_type" in opened.metadata:
            raise BitconvError(
                "an embedding model, which predicts no text; run llama-embedding",
                code=Code.GGUF_UNSUPPORTED,
                file=opened.path,
            )
        self.file = opened.path
        self.architecture = inspection.architecture
        self.sizes = inspection.sizes
        self.float_activations = float_activations
        self._threads = jobs.thread_count(threads)
        data = _read_file(opened, self._threads)
        infos = {tensor.name: tensor for tensor in opened.tensors}
        self._vectors = {
            name: _dense(data, infos[name], inspection.nbytes[name])
            for name, role in inspection.roles.items()
            if role not in (Role.TERNARY, Role.SCALE, Role.EMBEDDING)
        }
        scales = self._checked_scales(infos, inspection)
        self._embedding, self._head = self._read_embeddings(data, infos, inspection, scales)
        self.projections = dict(_read_projections(data, infos, inspection, scales))
        self._output = _kernels.Linear(self._head.matrix())
        self._pass = _kernels.Pass(self._threads)
        self._build()

    def changed(
        self,
        *,
        architecture: Architecture | None = None,
        rope_base: float | None = None,
        projections: Mapping[str, Projection | FloatProjection] | None = None,
        float_activations: bool | None = None,
    ) -> ForwardPass:
        """Another model of the same file, in which these are other than the file's."""
        other = copy.copy(self)
        other.architecture = architecture or self.architecture
        other.sizes = self.sizes if rope_base is None else replace(self.sizes, rope_base=rope_base)
        other.projections = self.projections if projections is None else dict(projections)
        other.float_activations = self.float_activations if float_activations is None else float_activations
        other._build()
        return other

    def new_cache(self, capacity: int) -> Cache:
        sizes = self.sizes
        block, dims = _kernels.BLOCK, sizes.head_dim
        keys = np.empty((sizes.layers, sizes.kv_heads, -(-capacity // block), dims, block), np.float32)
        values = np.zeros((sizes.layers, sizes.kv_heads, -(-dims // block), capacity, block), np.float32)
        return Cache(keys, values, capacity)

    def logits(self, tokens: Tokens, cache: Cache, first: int = 0) -> Floats:
        """Of the token after each of `tokens` but the `first` of them, float32 (n, vocabulary). tokens: (n,), following
        those in the cache."""
        return self._head_product(self.states(tokens, cache)[first:])

    @np.errstate(over="ignore", invalid="ignore")  # a damaged file may compute anything, and its results show it
    def states(self, tokens: Tokens, cache: Cache) -> Floats:
        """What the last layer makes of each token, float32 (n, hidden)."""
        x = self._embedding.of(tokens) * np.float32(self.sizes.embedding_scale)
        cos, sin = self._rotation(np.arange(cache.used, cache.used + len(tokens)), cache.capacity)
        for number, layer in enumerate(self._layers):
            keys, values = cache.keys[number], cache.values[number]
            self._pass.layer(self._graph, layer, x, cos, sin, keys, values, cache.capacity, cache.used)
        cache.used += len(tokens)
        return x

    def log_probabilities(self, states: Floats, tokens: Tokens) -> npt.NDArray[np.float64]:
        """The natural logarithm of the probability of each token (n,) behind its state, float64 (n,)."""
        found = np.empty(len(tokens))
        for at in range(0, len(tokens), _LOGITS_AT_ONCE):
            logits = self._head_product(states[at : at + _LOGITS_AT_ONCE])
            following = np.ascontiguousarray(tokens[at : at + _LOGITS_AT_ONCE], np.int64)
            self._pass.log_probabilities(logits, following, found[at : at + _LOGITS_AT_ONCE])
        return found

    def _head_product(self, states: Floats) -> Floats:
        product = np.empty((len(states), self._head.tokens), np.float32)
        norm = self._vectors["output_norm.weight"]
        self._pass.project(self._output, states, product, norm, self.sizes.rms_eps, self.sizes.logit_divisor)
        return product

    def product(self, x: Floats, name: str) -> Floats:
        """That of one projection, by its name in the file without `.weight`: float32 (n, rows) of x (n, columns)."""
        product = np.empty((len(x), self.projections[f"{name}.weight"].shape[0]), np.float32)
        self._pass.project(self._linear(name), x, product)
        return product

    def _build(self) -> None:
        sizes, architecture = self.sizes, self.architecture
        factors = ROPE_FREQS if sizes.rope_long is None else ROPE_SHORT
        self._frequencies = self._rope_frequencies(factors)
        self._long_frequencies = None if sizes.rope_long is None else self._rope_frequencies(ROPE_LONG)
        self._graph = _kernels.Graph(
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            experts_used=sizes.experts_used,
            rms_eps=sizes.rms_eps,
            residual_scale=sizes.residual_scale,
            clamp=inf if sizes.expert_clamp is None else sizes.expert_clamp,
            activation=architecture.activation,
            neighbours=architecture.interleaved_rope,
            late_qk_norms=architecture.late_qk_norms,
        )
        self._layers = [self._layer(number) for number in range(sizes.layers)]

    def _layer(self, number: int) -> _kernels.Layer:
        block, sizes, architecture = f"blk.{number}", self.sizes, self.architecture

        def norm(name: str, present: bool = True) -> Floats | None:
            return self._vectors[f"{block}.{name}.weight"] if present else None

        slots = [f"{block}.{slot}" for slot in ("ffn_gate", "ffn_up", "ffn_down")]
        stems = [[expert_name(f"{slot}_exps", i) for slot in slots] for i in range(sizes.experts)] or [slots]
        gate, up, down = zip(*([self._linear(name) for name in names] for names in stems), strict=True)
        routed = self._vectors.get(f"{block}.ffn_gate_inp.weight")
        router = None
        if routed is not None:
            router = _kernels.Matrix.dense(routed.reshape(-1).view(np.uint8), "f32", *routed.shape)
        windowed = bool(sizes.windowed) and sizes.windowed[number]
        return _kernels.Layer(
            self._graph,
            q=self._linear(f"{block}.attn_q"),
            k=self._linear(f"{block}.attn_k"),
            v=self._linear(f"{block}.attn_v"),
            output=self._linear(f"{block}.attn_output"),
            networks=list(zip(gate, up, down, strict=True)),
            attention_norm=self._vectors[f"{block}.attn_norm.weight"],
            ffn_norm=self._vectors[f"{block}.ffn_norm.weight"],
            q_norm=norm("attn_q_norm", architecture.qk_norms),
            k_norm=norm("attn_k_norm", architecture.qk_norms),
            attention_sub_norm=norm("attn_sub_norm", architecture.sub_norms),
            ffn_sub_norm=norm("ffn_sub_norm", architecture.sub_norms),
            router=router,
            rotated=windowed or not sizes.windowed,
            window=sizes.window if windowed else 0,
        )

    def _linear(self, name: str) -> _kernels.Linear:
        """A projection with what stands around it in the file."""
        matrix = self.projections[f"{name}.weight"].matrix(rounding=not self.float_activations)
        norm = self._vectors[f"{name}_norm_in.weight"] if self.architecture.input_norms else None
        return _kernels.Linear(matrix, self._vectors.get(f"{name}.bias"), norm)

    def _rotation(self, positions: Tokens, capacity: int) -> tuple[Floats, Floats]:
        """cos and sin of each position's angles, float32 (n, head_dim / 2)."""
        frequencies, long = self._frequencies, self.sizes.rope_long
        # As llama.cpp chooses: by the room for tokens, so that all of a text are rotated alike.
        if long is not None and self._long_frequencies is not None and capacity > long.original_context:
            frequencies = self._long_frequencies
        angles = np.outer(positions, frequencies)
        magnitude = self.sizes.rope_magnitude * (self.sizes.rope_yarn.magnitude if self.sizes.rope_yarn else 1.0)
        return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)

    def _rope_frequencies(self, factor_tensor: str) -> npt.NDArray[np.float64]:
        """Radians a position, float64 (head_dim / 2,). factor_tensor: whose factors they are divided by."""
        dims = self.sizes.head_dim
        frequencies = self.sizes.rope_base ** -(np.arange(0, dims, 2) / dims)
        if self.sizes.rope_yarn:
            frequencies /= self.sizes.rope_yarn.factors(self.sizes.rope_base, dims)
        factors = self._vectors.get(factor_tensor, np.ones(1, np.float32))
        return frequencies / factors / (self.sizes.rope_linear_factor or 1.0)

    def _read_embeddings(
        self, data: Bytes, infos: dict[str, TensorInfo], inspection: Inspection, scales: dict[str, list[Scale]]
    ) -> tuple[Embedding, Embedding]:
        """The token embedding and the output head, which may be the same."""

        def read(name: str) -> Embedding:
            layout, (scale,) = inspection.layouts.get(name), scales.get(name, [None])
            return Embedding(data, infos[name], inspection.types[name], layout, scale)

        embedding = read("token_embd.weight")
        untied = self.architecture.untied_head and "output.weight" in infos
        return embedding, read("output.weight") if untied else embedding

    def _checked_scales(self, infos: dict[str, TensorInfo], inspection: Inspection) -> dict[str, list[Scale]]:
        """Of the matrices of every ternary tensor, each read once. BitconvError where one is faulty."""
        with os.fdopen(open_input(self.file), "rb") as stream:

            def read(name: str, keep_going: KeepGoing) -> list[Scale]:
                layout, group, scales = inspection.layouts[name], inspection.groups.get(name), []
                beside = infos.get(scale_name(name))
                try:
                    for matrix in matrices(stream.fileno(), infos[name], layout, beside, group):
                        for first, last in row_blocks(matrix.rows, matrix.columns, layout.row_multiple):
                            keep_going()
                            matrix.read(first, last)
                        scales.append(matrix.find_scale(keep_going))
                except FaultyTensor as fault:
                    raise fault.at(self.file, name, "see bitconv verify") from None
                return scales

            names = list(inspection.layouts)
            return dict(zip(names, jobs.run([partial(read, name) for name in names], self._threads), strict=True))


def _read_projections(
    data: Bytes, infos: dict[str, TensorInfo], inspection: Inspection, scales: dict[str, list[Scale]]
) -> Iterator[tuple[str, Projection | FloatProjection]]:
    """By name; those of a stack of experts one by one."""
    for name, role in inspection.roles.items():
        if role is not Role.TERNARY:
            continue
        if name in inspection.floats:
            start, nbytes = infos[name].offset, inspection.nbytes[name]
            rows, columns = infos[name].shape
            yield name, FloatProjection(data[start : start + nbytes], (rows, columns), inspection.types[name])
            continue
        layout = inspection.layouts[name]
        for i, (info, scale) in enumerate(zip(stacked(infos[name], layout), scales[name], strict=True)):
            stem = name.removesuffix(".weight")
            own = name if info.shape == infos[name].shape else f"{expert_name(stem, i)}.weight"
            rows, columns = info.shape
            starts = [(info.offset + region.offset, region.row_bytes) for region in layout.regions(rows, columns)]
            packed = [data[start : start + rows * row_bytes] for start, row_bytes in starts]
            yield own, Projection(packed, (rows, columns), layout, scale)


def _refuse_faults(opened: GGUFFile, inspection: Inspection) -> None:
    faults = [f"{name}: {fault}" for name, found in inspection.tensor_faults.items() for fault in found]
    for fault in [*inspection.faults, *faults]:
        raise MalformedGGUF(fault, file=opened.path, way_out="see bitconv verify")


def _read_file(opened: GGUFFile, threads: int) -> Bytes:
    """All of it in memory: a file that is cut while it is mapped would kill the process."""
    room = np.empty(opened.size + _PAGE, np.uint8)
    start_of_page = -room.ctypes.data % _PAGE  # where copies are fast: a few bytes off, AMD's take six times as long
    data = room[start_of_page : start_of_page + opened.size]
    descriptor = opened.open()

    def read(start: int, keep_going: KeepGoing) -> bool:
        keep_going()
        return read_at(descriptor, data[start : start + _READ_AT_ONCE], start)

    try:
        if not all(jobs.run([partial(read, start) for start in range(0, opened.size, _READ_AT_ONCE)], threads)):
            raise BitconvError("the file has become shorter while it was read", code=Code.CHANGED, file=opened.path)
    finally:
        os.close(descriptor)
    opened.check_unchanged()
    return data


def _row_bytes(layout: Layout, tensor: TensorInfo) -> int:
    """Of a layout whose rows each lie in one piece, as those of embeddings do."""
    rows, columns = tensor.shape
    (region,) = layout.regions(rows, columns)
    return region.row_bytes


def _dense(data: Bytes, tensor: TensorInfo, nbytes: int) -> Floats:
    """A float tensor in float32, of its shape."""
    raw = data[tensor.offset : tensor.offset + nbytes].reshape(tensor.shape[0] if len(tensor.shape) > 1 else 1, -1)
    values = gguf_package.quants.dequantize(raw, gguf_package.GGMLQuantizationType(tensor.type_id))
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)
