"""The forward pass of a GGUF file in exact BitNet arithmetic, over the packed bytes: what a right runner computes.

Before a projection the activations of a token are rounded to int8 by their largest magnitude, the products with the
trits are summed in int32, and the sum is multiplied once in float32 (activation_quant and BitLinear in transformers'
integrations/bitnet.py). Where groups of columns have scales of their own, the sums of the groups are scaled and added.
Embedding, norms, rotation, attention and output head are float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import TypeAlias, TypeVar

import gguf as gguf_package
import numpy as np
import numpy.typing as npt

from bitconv import _kernels
from bitconv.gguf import GGUFFile, MalformedGGUF, TensorInfo, type_by_name
from bitconv.layouts import FLOATS
from bitconv.layouts.dense import decode
from bitconv.layouts.layout import Bytes, Layout, Scales
from bitconv.layouts.scaled_rows import ScaledRows
from bitconv.layouts.scales import Scale
from bitconv.models.architectures import Role, expert_name, scale_name
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
Result = TypeVar("Result")

MAX_INT8 = np.float32(127)
# The least magnitude that activations are divided by (clamp_(min=1e-5) in every implementation).
MIN_MAGNITUDE = np.float32(1e-5)
# Bytes of weights times vectors: a smaller product is done about when another thread has woken up.
WORTH_WAKING = 8 << 20


@dataclass
class Cache:
    """The keys and values of the `used` tokens seen so far, float32 (layers, kv_heads, capacity, head_dim)."""

    keys: Floats
    values: Floats
    used: int = 0


class Activations:
    """Float32 (n, columns), and rounded: int8 of the same shape, and float32 (n, 1) that the int8 are divided by."""

    def __init__(self, x: Floats) -> None:
        self.x = x
        # 127 times the inverse, as PyTorch divides a number by a tensor: activations at ties are common, since
        # embeddings in bfloat16 are few different values, and 127 / magnitude would round some of them the other way.
        self.divisor = 1 / np.maximum(np.abs(x).max(axis=-1, keepdims=True), MIN_MAGNITUDE) * MAX_INT8
        self.rounded = np.clip(np.rint(x * self.divisor), -128, 127).astype(np.int8)


class Projection:
    """A ternary matrix as the file holds it, in parts of whole rows, one for each thread."""

    def __init__(self, data: Bytes, tensor: TensorInfo, layout: Layout, scale: Scale, parts: int) -> None:
        rows, self.columns = tensor.shape
        self.nbytes = layout.nbytes(rows, self.columns)
        self.layout = layout
        regions = [(tensor.offset + region.offset, region.row_bytes) for region in layout.regions(rows, self.columns)]
        shares = _shares(rows, layout.row_multiple, parts)
        self.parts = [
            [data[start + first * row_bytes : start + last * row_bytes] for start, row_bytes in regions]
            for first, last in shares
        ]
        self.scales = [scale[first:last] if isinstance(scale, np.ndarray) else scale for first, last in shares]
        groups = scale.shape[1] if isinstance(scale, np.ndarray) else 1
        self.groups = [self._in_groups(part, groups) for part in self.parts] if groups > 1 else []

    def product(self, part: int, activations: Activations) -> Floats:
        """Of the rows of one part with int8 activations, float32 (n, rows)."""
        scale = self.scales[part]
        if isinstance(scale, np.ndarray) and scale.shape[1] > 1:
            return self._grouped_product(self.groups[part], scale, activations)
        sums = self.layout.matmul_rows(self.parts[part], activations.rounded)
        product: Floats = sums.astype(np.float32) * (scale.T / activations.divisor)
        return product

    def _in_groups(self, packed: list[Bytes], groups: int) -> list[Bytes]:
        """The bytes of rows as groups of columns have them, a group after the other; of a layout whose groups are not
        whole blocks in one piece, the trits as bytes."""
        layout = self.layout
        if isinstance(layout, ScaledRows) and self.columns // groups % layout.block == 0 and not layout.row_header:
            (rows,) = packed
            blocks = rows.reshape(-1, groups, layout.row_bytes(self.columns) // groups)
        else:
            trits, _ = layout.unpack_rows(packed, self.columns)
            blocks = trits.view(np.uint8).reshape(len(trits), groups, -1)
        return [np.ascontiguousarray(blocks[:, group]).reshape(-1) for group in range(groups)]

    def _grouped_product(self, groups: list[Bytes], scales: Scales, activations: Activations) -> Floats:
        """The sums of each group of columns, scaled and added in float64 in their order."""
        rows, columns = len(scales), self.columns // len(groups)
        total = np.zeros((len(activations.x), rows))
        for number, (packed, scale) in enumerate(zip(groups, scales.T, strict=True)):
            x = np.ascontiguousarray(activations.rounded[:, number * columns : (number + 1) * columns])
            if packed.size == rows * columns:
                sums = np.empty(total.shape, np.int32)
                _kernels.matmul(packed.view(np.int8).reshape(rows, columns), x, sums)
            else:
                sums = self.layout.matmul_rows([packed], x)
            total += sums * scale.astype(np.float64)
        product: Floats = total.astype(np.float32) / activations.divisor
        return product

    def float_product(self, part: int, activations: Activations) -> Floats:
        """The same with activations that are not rounded."""
        trits, _ = self.layout.unpack_rows(self.parts[part], self.columns)
        scale = self.scales[part]
        weights = trits.astype(np.float32)
        if not isinstance(scale, np.ndarray):
            return activations.x @ weights.T * scale
        product: Floats = activations.x @ (weights * np.repeat(scale, self.columns // scale.shape[1], axis=1)).T
        return product


class FloatProjection:
    """A projection of floats that are not ternary, in the same parts. Its activations are not rounded."""

    def __init__(self, data: Bytes, tensor: TensorInfo, type_name: str, nbytes: int, parts: int) -> None:
        self.nbytes, self.dtype = nbytes, type_name
        rows = data[tensor.offset : tensor.offset + nbytes].reshape(tensor.shape[0], -1)
        self.parts = [rows[first:last] for first, last in _shares(len(rows), 1, parts)]

    def product(self, part: int, activations: Activations) -> Floats:
        """Of the rows of one part, float32 (n, rows)."""
        rows = self.parts[part]
        product = np.empty((len(activations.x), len(rows)), np.float32)
        _kernels.float_matmul(rows.reshape(-1), self.dtype, activations.x, product)
        return product

    float_product = product


class Embedding:
    """A matrix (tokens, hidden) of floats, of quantized blocks or of trits, as the file holds it.

    layout, scale: of trits, whose codes are right; they are multiplied with activations that are not rounded.
    """

    def __init__(
        self, data: Bytes, tensor: TensorInfo, type_name: str, layout: Layout | None, scale: Scale | None, parts: int
    ) -> None:
        self.tokens, self.hidden = tensor.shape
        self.dtype = type_name
        self.layout = layout
        self.scale = scale
        row_bytes = type_by_name(type_name).nbytes((self.hidden,)) if layout is None else _row_bytes(layout, tensor)
        self.rows = data[tensor.offset : tensor.offset + self.tokens * row_bytes].reshape(self.tokens, -1)
        self.parts = _shares(self.tokens, 1, parts)

    def of(self, tokens: Tokens) -> Floats:
        """Their rows, float32 (n, hidden)."""
        values, bad = self._values(tokens)
        if bad >= 0:
            raise MalformedGGUF(
                f"the embedding of token {tokens[bad // self.hidden]} holds NaN or infinity", code=Code.FAULTY
            )
        return values

    def product(self, part: int, x: Floats) -> Floats:
        """Of the rows of one part with x (n, hidden), float32 (n, rows)."""
        first, last = self.parts[part]
        if self.dtype in FLOATS:
            product = np.empty((len(x), last - first), np.float32)
            _kernels.float_matmul(self.rows[first:last].reshape(-1), self.dtype, x, product)
            return product
        products = [np.empty((len(x), 0), np.float32)]
        for at, end in row_blocks(last - first, self.hidden, 1):
            values, _ = self._values(slice(first + at, first + end))
            products.append(_float_product(values, x))
        return np.concatenate(products, axis=1)

    def _values(self, which: Tokens | slice) -> tuple[Floats, int]:
        """The values of rows, float32 (n, hidden), and the index of the first that is not finite, or -1."""
        raw = np.ascontiguousarray(self.rows[which]).reshape(-1)
        if self.layout is None:
            values, bad = decode(raw, self.dtype)
            return values.reshape(-1, self.hidden), bad
        trits, _ = self.layout.unpack_rows([raw], self.hidden)
        assert self.scale is not None
        return dequantized(trits, self.scale[which] if isinstance(self.scale, np.ndarray) else self.scale), -1


class ForwardPass:
    """The model in a GGUF file without structural faults; a context manager, since it keeps threads.

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
        self._data = _read_file(opened)
        infos = {tensor.name: tensor for tensor in opened.tensors}
        self._vectors = {
            name: _dense(self._data, infos[name], inspection.nbytes[name])
            for name, role in inspection.roles.items()
            if role not in (Role.TERNARY, Role.SCALE, Role.EMBEDDING)
        }
        scales = self._checked_scales(infos, inspection)
        self._embedding, self._head = self._read_embeddings(infos, inspection, scales)
        self.projections = dict(self._read_projections(infos, inspection, scales))
        self.set_rope_base(self.sizes.rope_base)
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> ForwardPass:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def set_rope_base(self, base: float) -> None:
        """That of the rotary embedding, in place of the file's."""
        self.sizes = replace(self.sizes, rope_base=base)
        long = self.sizes.rope_long
        self._frequencies = self._rope_frequencies(ROPE_FREQS if long is None else ROPE_SHORT)
        self._long_frequencies = None if long is None else self._rope_frequencies(ROPE_LONG)

    def new_cache(self, capacity: int) -> Cache:
        shape = (self.sizes.layers, self.sizes.kv_heads, capacity, self.sizes.head_dim)
        return Cache(np.empty(shape, np.float32), np.empty(shape, np.float32))

    @np.errstate(over="ignore", invalid="ignore")  # a damaged file may compute anything, and its results show it
    def logits(self, tokens: Tokens, cache: Cache) -> Floats:
        """Of the token after each of `tokens`, float32 (n, vocabulary). tokens: (n,), following those in the cache."""
        x = self._embedding.of(tokens) * np.float32(self.sizes.embedding_scale)
        positions = np.arange(cache.used, cache.used + len(tokens))
        frequencies, long = self._frequencies, self.sizes.rope_long
        # As llama.cpp chooses: by the room for tokens, so that all of a text are rotated alike.
        if long is not None and self._long_frequencies is not None and cache.keys.shape[2] > long.original_context:
            frequencies = self._long_frequencies
        angles = np.outer(positions, frequencies)
        magnitude = self.sizes.rope_magnitude * (self.sizes.rope_yarn.magnitude if self.sizes.rope_yarn else 1.0)
        rotation = (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)
        residual_scale = np.float32(self.sizes.residual_scale)
        for layer in range(self.sizes.layers):
            block = f"blk.{layer}"
            attended = self._attention(block, layer, self._norm(x, f"{block}.attn_norm"), rotation, cache)
            x = x + attended * residual_scale
            x = x + self._feed_forward(block, self._norm(x, f"{block}.ffn_norm")) * residual_scale
        cache.used += len(tokens)
        normed = self._norm(x, "output_norm") / np.float32(self.sizes.logit_divisor)
        parts = self._on_all_threads(lambda part: self._head.product(part, normed), self._head.rows.size * len(x))
        return np.concatenate(parts, axis=1)

    def _attention(self, block: str, layer: int, x: Floats, rotation: tuple[Floats, Floats], cache: Cache) -> Floats:
        count, sizes = len(x), self.sizes
        windowed = bool(sizes.windowed) and sizes.windowed[layer]
        q, k, v = (
            y.reshape(count, -1, sizes.head_dim).swapaxes(0, 1)
            for y in self._project(x, f"{block}.attn_q", f"{block}.attn_k", f"{block}.attn_v")
        )
        if not self.architecture.late_qk_norms:
            q, k = self._normed_heads(block, q, k)
        if windowed or not sizes.windowed:
            q, k = self._rotate(q, rotation), self._rotate(k, rotation)
        if self.architecture.late_qk_norms:
            q, k = self._normed_heads(block, q, k)
        end = cache.used + count
        cache.keys[layer, :, cache.used : end] = k
        cache.values[layer, :, cache.used : end] = v
        # The heads that share keys and values stand together: (kv_heads, heads / kv_heads * n, head_dim).
        queries = q.reshape(sizes.kv_heads, -1, sizes.head_dim)
        distance = np.arange(cache.used, end)[:, None] - np.arange(end)
        unseen = (distance < 0) | (distance >= sizes.window) if windowed else distance < 0
        unseen = np.tile(unseen, (sizes.heads // sizes.kv_heads, 1))

        def attend(head: int) -> Floats:
            scores = _float_product(cache.keys[layer, head, :end], queries[head]) * np.float32(sizes.head_dim**-0.5)
            scores = np.where(unseen, np.float32(-np.inf), scores)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            total = _float_product(np.ones((1, end), np.float32), weights)
            return _float_product(np.ascontiguousarray(cache.values[layer, head, :end].T), weights) / total

        worth_waking = queries.nbytes * end >= WORTH_WAKING
        mixed = np.stack(list((self._pool.map if worth_waking else map)(attend, range(sizes.kv_heads))))
        joined = mixed.reshape(sizes.heads, count, -1).swapaxes(0, 1).reshape(count, -1)
        if self.architecture.sub_norms:
            joined = self._norm(joined, f"{block}.attn_sub_norm")
        return self._project(joined, f"{block}.attn_output")[0]

    def _normed_heads(self, block: str, q: Floats, k: Floats) -> tuple[Floats, Floats]:
        if not self.architecture.qk_norms:
            return q, k
        return self._norm(q, f"{block}.attn_q_norm"), self._norm(k, f"{block}.attn_k_norm")

    def _feed_forward(self, block: str, x: Floats) -> Floats:
        if self.sizes.experts:
            return self._mixture(block, x)
        gate, up = self._project(x, f"{block}.ffn_gate", f"{block}.ffn_up")
        gated = _ACTIVATIONS[self.architecture.activation](gate) * up
        if self.architecture.sub_norms:
            gated = self._norm(gated, f"{block}.ffn_sub_norm")
        return self._project(gated, f"{block}.ffn_down")[0]

    def _mixture(self, block: str, x: Floats) -> Floats:
        """The experts of the largest router logits, by the softmax of those. Added in the order of their numbers, so
        that a token computes the same bits in every batch."""
        routed = _float_product(self._vectors[f"{block}.ffn_gate_inp.weight"], x)
        chosen = np.argsort(-routed, axis=1, kind="stable")[:, : self.sizes.experts_used]
        logits = np.take_along_axis(routed, chosen, axis=1)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed = np.zeros_like(x)
        for expert in np.unique(chosen):
            tokens, place = np.nonzero(chosen == expert)
            names = (expert_name(f"{block}.{slot}_exps", expert) for slot in ("ffn_gate", "ffn_up", "ffn_down"))
            gate_name, up_name, down_name = names
            gate, up = self._project(x[tokens], gate_name, up_name)
            if self.sizes.expert_clamp is not None:
                limit = np.float32(self.sizes.expert_clamp)
                gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            gated = _ACTIVATIONS[self.architecture.activation](gate) * up
            mixed[tokens] += self._project(gated, down_name)[0] * weights[tokens, place][:, None]
        return mixed

    def _project(self, x: Floats, *names: str) -> list[Floats]:
        """The products of each of these projections with the same activations."""
        if self.architecture.input_norms:
            inputs = [Activations(self._norm(x, f"{name}_norm_in")) for name in names]
        else:
            inputs = [Activations(x)] * len(names)
        work = [(self.projections[f"{name}.weight"], x) for name, x in zip(names, inputs, strict=True)]

        def products(part: int) -> list[Floats]:
            if self.float_activations:
                return [projection.float_product(part, activations) for projection, activations in work]
            return [projection.product(part, activations) for projection, activations in work]

        size = sum(projection.nbytes for projection, _ in work) * len(x)
        parts = zip(*self._on_all_threads(products, size), strict=True)
        joined = [np.concatenate(of_one, axis=1) for of_one in parts]
        biases = [self._vectors.get(f"{name}.bias") for name in names]
        return [y if bias is None else y + bias for y, bias in zip(joined, biases, strict=True)]

    def _on_all_threads(self, job: Callable[[int], Result], size: int) -> list[Result]:
        """job(part) of every part, one of them in this thread. size: bytes of weights times vectors."""
        if size < WORTH_WAKING:
            return [job(part) for part in range(self._threads)]
        others = [self._pool.submit(job, part) for part in range(1, self._threads)]
        return [job(0), *(other.result() for other in others)]

    def _norm(self, x: Floats, name: str) -> Floats:
        variance = np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.sizes.rms_eps)
        normed: Floats = x * (1 / np.sqrt(variance)) * self._vectors[f"{name}.weight"]
        return normed

    def _rotate(self, x: Floats, rotation: tuple[Floats, Floats]) -> Floats:
        """Rotary embedding of (heads, n, head_dim): of neighbouring pairs, or of i with i + head_dim / 2."""
        pairs = x.reshape(*x.shape[:2], -1, 2) if self.architecture.interleaved_rope else _halves(x)
        cos, sin = rotation
        a, b = pairs[..., 0], pairs[..., 1]
        rotated = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return (rotated if self.architecture.interleaved_rope else rotated.swapaxes(-1, -2)).reshape(x.shape)

    def _rope_frequencies(self, factor_tensor: str) -> npt.NDArray[np.float64]:
        """Radians a position, float64 (head_dim / 2,). factor_tensor: whose factors they are divided by."""
        dims = self.sizes.head_dim
        frequencies = self.sizes.rope_base ** -(np.arange(0, dims, 2) / dims)
        if self.sizes.rope_yarn:
            frequencies /= self.sizes.rope_yarn.factors(self.sizes.rope_base, dims)
        factors = self._vectors.get(factor_tensor, np.ones(1, np.float32))
        return frequencies / factors / (self.sizes.rope_linear_factor or 1.0)

    def _read_embeddings(
        self, infos: dict[str, TensorInfo], inspection: Inspection, scales: dict[str, list[Scale]]
    ) -> tuple[Embedding, Embedding]:
        """The token embedding and the output head, which may be the same."""

        def read(name: str) -> Embedding:
            layout, (scale,) = inspection.layouts.get(name), scales.get(name, [None])
            return Embedding(self._data, infos[name], inspection.types[name], layout, scale, self._threads)

        embedding = read("token_embd.weight")
        untied = self.architecture.untied_head and "output.weight" in infos
        return embedding, read("output.weight") if untied else embedding

    def _read_projections(
        self, infos: dict[str, TensorInfo], inspection: Inspection, scales: dict[str, list[Scale]]
    ) -> Iterator[tuple[str, Projection | FloatProjection]]:
        """By name; those of a stack of experts one by one."""
        for name, role in inspection.roles.items():
            if role is not Role.TERNARY:
                continue
            if name in inspection.floats:
                nbytes = inspection.nbytes[name]
                yield name, FloatProjection(self._data, infos[name], inspection.types[name], nbytes, self._threads)
                continue
            layout = inspection.layouts[name]
            for i, (info, scale) in enumerate(zip(stacked(infos[name], layout), scales[name], strict=True)):
                stem = name.removesuffix(".weight")
                own = name if info.shape == infos[name].shape else f"{expert_name(stem, i)}.weight"
                yield own, Projection(self._data, info, layout, scale, self._threads)

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


def _refuse_faults(opened: GGUFFile, inspection: Inspection) -> None:
    faults = [f"{name}: {fault}" for name, found in inspection.tensor_faults.items() for fault in found]
    for fault in [*inspection.faults, *faults]:
        raise MalformedGGUF(fault, file=opened.path, way_out="see bitconv verify")


def _read_file(opened: GGUFFile) -> Bytes:
    """All of it in memory: a file that is cut while it is mapped would kill the process."""
    data = np.empty(opened.size, np.uint8)
    descriptor = opened.open()
    try:
        if not read_at(descriptor, data, 0):
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


def _shares(rows: int, multiple: int, parts: int) -> list[tuple[int, int]]:
    """(first, last) of the rows of each part, multiples of `multiple`; some empty where rows are few."""
    bounds = [rows // multiple * part // parts * multiple for part in range(parts + 1)]
    return list(pairwise(bounds))


def _dense(data: Bytes, tensor: TensorInfo, nbytes: int) -> Floats:
    """A float tensor in float32, of its shape."""
    raw = data[tensor.offset : tensor.offset + nbytes].reshape(tensor.shape[0] if len(tensor.shape) > 1 else 1, -1)
    values = gguf_package.quants.dequantize(raw, gguf_package.GGMLQuantizationType(tensor.type_id))
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)


def _halves(x: Floats) -> Floats:
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)


def _float_product(matrix: Floats, x: Floats) -> Floats:
    """Of the rows of a contiguous matrix with x (n, columns), float32 (n, rows). Each sum is added in one order,
    whatever n is, and zeros at its end leave it as it is: a token computes the same bits in every batch."""
    product = np.empty((len(x), len(matrix)), np.float32)
    _kernels.float_matmul(matrix.reshape(-1).view(np.uint8), "f32", x, product)
    return product


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(-x) of very negative x: the result is -0
        result: Floats = x / (1 + np.exp(-x))
    return result


def _relu2(x: Floats) -> Floats:
    return np.square(np.maximum(x, 0))


_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"silu": _silu, "relu2": _relu2}
