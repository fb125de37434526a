"""The token embedding and the output head: stored once under either name, twice in other types, or as two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from bitconv import _kernels
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.stored_tensor import FLOAT_DTYPES, ITEMSIZE, StoredTensor
from bitconv.layouts.layout import Bytes
from bitconv.system.errors import BitconvError, Code

# So many values are compared at a time.
_STEP = 1 << 20


@dataclass(frozen=True)
class Heads:
    """embedding: the name that it is stored under. tied: it is the head too. copy: a second copy of it, by name."""

    embedding: str
    tied: bool
    copy: str | None = None


def find_heads(checkpoint: Checkpoint, embedding: str, head: str, *, tied: bool, untied_head: bool) -> Heads:
    """What is stored of the two, and whether they are one matrix.

    embedding, head: the names that they should have. tied: what config.json says. untied_head: whether the graph
    multiplies by a head of its own. BitconvError where config.json and the tensors contradict each other.
    """
    config, tensors = checkpoint.path / "config.json", checkpoint.tensors
    first, second = tensors.get(embedding), tensors.get(head)
    if first is None and second is not None:
        # safetensors' save_model keeps of two names of one tensor the first in the alphabet.
        if tied:
            return Heads(head, tied=True)
        raise BitconvError(
            f"missing; {head} alone is stored, and tie_word_embeddings is not true",
            code=Code.CONTRADICTION,
            file=checkpoint.path,
            tensor=embedding,
            way_out=f'if both are one matrix, write "tie_word_embeddings": true in {config.name}',
        )
    if first is None or second is None:
        if tied or first is None:
            return Heads(embedding, tied=tied)
        raise BitconvError(
            f"tie_word_embeddings is not true, and no {head} is stored",
            code=Code.CONTRADICTION,
            file=config,
            way_out=f'if {embedding} is the output head too, write "tie_word_embeddings": true; if not, {head} is '
            "missing from the download",
        )
    if tied:
        if not _same(checkpoint, first, second, rounded=True):
            raise second.error(
                f"differs from {embedding}, though config.json ties them: if the model has this head, write "
                "tie_word_embeddings false; if not, remove the tensor",
                code=Code.CONTRADICTION,
            )
        return Heads(embedding, tied=True, copy=head)
    if not untied_head and _same(checkpoint, first, second, rounded=False):
        return Heads(embedding, tied=True, copy=head)
    return Heads(embedding, tied=False)


def _same(checkpoint: Checkpoint, a: StoredTensor, b: StoredTensor, *, rounded: bool) -> bool:
    """Whether two matrices have the same values; rounded: or have them once rounded to the type of one of the two.

    Of a sampled checkpoint their first values tell.
    """
    if a.shape != b.shape or not {a.dtype, b.dtype} <= {*FLOAT_DTYPES}:
        return False
    types = {"f32", a.dtype, b.dtype} if rounded else {"f32"}
    for start in range(0, _STEP if checkpoint.sampled else prod(a.shape), _STEP):
        count = min(_STEP, prod(a.shape) - start)
        raw = [np.empty(count * ITEMSIZE[tensor.dtype], np.uint8) for tensor in (a, b)]
        for tensor, data in zip((a, b), raw, strict=True):
            checkpoint.read(tensor, start * ITEMSIZE[tensor.dtype], data)
        if a.dtype == b.dtype and np.array_equal(raw[0], raw[1]):
            continue
        wide = [_converted(data, tensor.dtype, "f32") for tensor, data in zip((a, b), raw, strict=True)]
        types = {name for name in types if _equal_as(name, *wide)}
        if not types:
            return False
    return True


def _equal_as(dtype: str, a: Bytes | None, b: Bytes | None) -> bool:
    """Whether float32 values are the same when rounded to a type, and finite."""
    a, b = (_converted(_converted(data, "f32", dtype), dtype, "f32") for data in (a, b))
    return a is not None and b is not None and bool((a.view("<f4") == b.view("<f4")).all())


def _converted(data: Bytes | None, from_dtype: str, to_dtype: str) -> Bytes | None:
    """None where a value is not finite, before or after."""
    if data is None:
        return None
    result = np.empty(data.size // ITEMSIZE[from_dtype] * ITEMSIZE[to_dtype], np.uint8)
    return result if _kernels.convert_floats(data, from_dtype, result, to_dtype) < 0 else None
