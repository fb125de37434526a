"""The sizes of published models by short names, and sizes of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from bitconv.commands.dummy import vocabulary
from bitconv.gguf import Metadata
from bitconv.models.families import Family, llama, microsoft, onebitllm
from bitconv.models.hyperparameters import Hyperparameters
from bitconv.models.quantization import ScaleConvention
from bitconv.system.errors import BitconvError, Code, check_number, option

# Without a stated one; a real vocabulary takes longer to read than a small model.
DEFAULT_VOCAB = 1024
MAX_LAYERS = 9999
_FREE = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,7}){2,5}")


@dataclass(frozen=True)
class Shape:
    """vocabulary: makes the tokenizer's metadata, of sizes.vocab tokens.

    convention: what weight_scale does in the family's packed checkpoints; None where none are packed.
    """

    family: Family
    sizes: Hyperparameters
    vocabulary: Callable[[], Metadata]
    convention: ScaleConvention | None = None

    @property
    def tied(self) -> bool:
        return not self.family.architecture.untied_head


def _sizes(
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    *,
    context: int,
    rope_base: float,
    rms_eps: float = 1e-5,
    head_dim: int | None = None,
) -> Hyperparameters:
    head_dim = hidden // heads if head_dim is None else head_dim
    return Hyperparameters(layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context, rms_eps, rope_base)


# Llama 3 has 128,000 tokens, 256 special ones and 280,147 merges; llama.cpp prints them when it loads the model.
_LLAMA3 = partial(vocabulary.llama3, 128256, 280147)
# Falcon3 has 128,810 merges (llama.cpp again), so that here 2,006 tokens are special.
_FALCON3 = partial(vocabulary.falcon3, 131072, 128810)
_LLAMA2 = partial(vocabulary.llama2, 32002)

# The sizes are those of the config.json of the model named, except where another source is.
SHAPES = {
    # microsoft/bitnet-b1.58-2B-4T
    "2b-4t": Shape(
        microsoft.FAMILY,
        _sizes(30, 2560, 6912, 20, 5, 128256, context=4096, rope_base=500000.0),
        _LLAMA3,
        ScaleConvention.MULTIPLY,
    ),
    # HF1BitLLM/Llama3-8B-1.58-100B-tokens
    "llama3-8b": Shape(
        llama.FAMILY,
        _sizes(32, 4096, 14336, 32, 8, 128256, context=8192, rope_base=500000.0),
        _LLAMA3,
        ScaleConvention.DIVIDE,
    ),
    # 1bitLLM/bitnet_b1_58-large and -3B
    "large": Shape(onebitllm.FAMILY, _sizes(24, 1536, 4096, 16, 16, 32002, context=2048, rope_base=10000.0), _LLAMA2),
    "3b": Shape(onebitllm.FAMILY, _sizes(26, 3200, 8640, 32, 32, 32002, context=2048, rope_base=10000.0), _LLAMA2),
    # tiiuae/Falcon3-10B-Instruct-1.58bit
    "falcon3-10b": Shape(
        llama.FAMILY,
        _sizes(40, 3072, 23040, 12, 4, 131072, context=32768, rope_base=1000042.0, rms_eps=1e-6, head_dim=256),
        _FALCON3,
        ScaleConvention.DIVIDE,
    ),
    # "100B" of bitnet.cpp's utils/generate-dummy-bitnet-model.py, which takes the rest from a 1bitLLM model
    "100b": Shape(onebitllm.FAMILY, _sizes(72, 8192, 45568, 64, 64, 32002, context=2048, rope_base=10000.0), _LLAMA2),
}


def find_shape(name: str, layers: int | None) -> Shape:
    """The shape of a name, or LAYERSxHIDDENxFFN[xHEADS[xKV_HEADS[xVOCAB]]]. layers: in place of its own.

    Numbers make a model of microsoft/bitnet-b1.58-2B-4T's family with a small vocabulary of Llama 3's form.
    BitconvError for what is neither.
    """
    shape = SHAPES.get(name)
    if shape is None:
        shape = _free(name)
    if layers is not None:
        check_number("layers", layers, 1, MAX_LAYERS)
        shape = replace(shape, sizes=replace(shape.sizes, layers=layers))
    return shape


def _free(name: str) -> Shape:
    if not _FREE.fullmatch(name):
        raise BitconvError(
            f"{option('shape', name)}: expected {', '.join(SHAPES)} or LAYERSxHIDDENxFFN[xHEADS[xKV_HEADS[xVOCAB]]]",
            code=Code.USAGE,
        )
    layers, hidden, ffn, *rest = map(int, name.split("x"))
    heads = rest[0] if rest else max(1, hidden // 128)
    kv_heads = rest[1] if len(rest) > 1 else heads
    vocab = rest[2] if len(rest) > 2 else DEFAULT_VOCAB
    if hidden % (2 * heads) or heads % kv_heads:
        raise BitconvError(
            f"{option('shape', name)}: {hidden} cannot be divided into {heads} heads of an even size, or these among "
            f"{kv_heads} key-value heads",
            code=Code.USAGE,
            way_out="name others as LAYERSxHIDDENxFFNxHEADSxKV_HEADS",
        )
    if vocab < 512:
        raise BitconvError(
            f"{option('shape', name)}: a vocabulary has at least 512 tokens: 256 bytes and 256 special ones",
            code=Code.USAGE,
        )
    return Shape(
        microsoft.FAMILY,
        _sizes(layers, hidden, ffn, heads, kv_heads, vocab, context=4096, rope_base=500000.0),
        partial(vocabulary.llama3, vocab, vocab - 512),
        ScaleConvention.MULTIPLY,
    )
