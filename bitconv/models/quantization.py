"""How a checkpoint stores its ternary matrices, decided from its own config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv.choices import SCALE_CONVENTION, TERNARIZE
from bitconv.layouts.layout import ScaleT
from bitconv.layouts.scales import MIN_GROUP
from bitconv.system.errors import BitconvError, Code, option

# The geometric mean of a model's scales lies between 0.01 and 2.5 in every published checkpoint; their inverses,
# which is what the wrong convention yields, lie above 5 wherever the right ones are below 0.2.
MAX_PLAUSIBLE_SCALE = 4.0


class Storage(Enum):
    MASTER = "float master weights"
    PACKED = "packed ternary weights"
    INT2 = "packed ternary weights of the GPU pipeline"
    UNMARKED = "float weights, since nothing marks this as a BitNet checkpoint with packed ones"


class ScaleConvention(Enum):
    """What the model's own runtime does with a stored weight_scale."""

    MULTIPLY = "multiply"
    DIVIDE = "divide"

    def scale(self, stored: ScaleT) -> ScaleT:
        """What multiplies the trits, from finite positive weight_scales. May overflow to infinity."""
        if self is ScaleConvention.MULTIPLY:
            return stored
        with np.errstate(over="ignore"):
            return np.float32(1) / stored


@dataclass(frozen=True)
class Rule:
    """How float master weights become trits, by the name that users give it.

    arithmetic: of those with one scale a tensor, the type in which they compute. group: of absmax, the columns of a row
    that share a scale.
    """

    name: str
    arithmetic: str = "f32"
    group: int | None = None


# clip(round(W / scale), -1, 1) with one scale a tensor: the mean of |W|, as BitNet b1.58 has it, in float32; the same
# with weights, mean, inverse and product in bfloat16, as onebitllms 0.0.4 and bitnet.cpp's gpu/convert_checkpoint.py
# export; the median, as BitNet b1.58 Reloaded has it.
ABSMEAN, ABSMEAN_BF16, ABSMEDIAN = Rule("absmean"), Rule("absmean-bf16", "bf16"), Rule("absmedian")
# The largest magnitude of each group of columns, as ternary-qat 0.1.5 writes, which has 128 in a group.
ABSMAX_GROUP = 128


def rule_of(name: str | None, group: int | None = None) -> Rule | None:
    """The rule that a user names, or None."""
    name = TERNARIZE.optional(name)
    if group is not None and name != "absmax":
        raise BitconvError(f"{option('group')} is for {option('ternarize', 'absmax')}", code=Code.OPTIONS)
    if group is not None and (group < MIN_GROUP or group & (group - 1)):
        raise BitconvError(f"{option('group', group)}: a power of two from {MIN_GROUP} on is needed", code=Code.USAGE)
    if name == "absmax":
        return Rule(name, group=group or ABSMAX_GROUP)
    return next((rule for rule in (ABSMEAN, ABSMEAN_BF16, ABSMEDIAN) if rule.name == name), None)


def scale_convention_of(name: str | None) -> ScaleConvention | None:
    """The convention that a user names, or None."""
    return None if name is None else ScaleConvention(SCALE_CONVENTION.parse(name))


def storage(config: Mapping[str, Any], file: object, *, native: bool) -> tuple[Storage, ScaleConvention]:
    """How the projections are stored and which way a weight_scale works, in a checkpoint of quant_method bitnet.

    native: the model class is BitNet's own, whose float weights are ternarised at run time without any
    quantization_config. transformers' integrations/bitnet.py defines the rest: BitLinear (the default
    linear_class) divides by weight_scale, AutoBitLinear multiplies by it, or with quantization_mode "online"
    ternarises float weights itself.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        if native:
            return Storage.MASTER, ScaleConvention.MULTIPLY
        return Storage.UNMARKED, ScaleConvention.DIVIDE  # as BitLinear would, which exporters write for other classes
    if not isinstance(quantization, Mapping):
        raise BitconvError(f"quantization_config is {quantization!r}, expected an object", code=Code.CONFIG, file=file)
    linear_class = quantization.get("linear_class") or "bitlinear"
    mode = quantization.get("quantization_mode") or "offline"
    if linear_class == "bitlinear":
        if mode != "offline":
            raise BitconvError(
                f"quantization_mode {mode!r} with linear_class bitlinear is not supported",
                code=Code.UNSUPPORTED,
                file=file,
            )
        return Storage.PACKED, ScaleConvention.DIVIDE
    if linear_class == "autobitlinear" and mode in ("offline", "online"):
        return (Storage.PACKED if mode == "offline" else Storage.MASTER), ScaleConvention.MULTIPLY
    raise BitconvError(
        f"linear_class {linear_class!r} with quantization_mode {mode!r} is not known (bitlinear, and "
        "autobitlinear offline or online, are)",
        code=Code.UNSUPPORTED,
        file=file,
    )


def check_plausible(
    scales: Sequence[np.float32 | npt.NDArray[np.float32]], convention: ScaleConvention, file: object
) -> None:
    """Stop where the convention and the numbers contradict each other: scales that look like their inverses."""
    typical = float(np.exp(np.mean(np.log(np.concatenate([np.ravel(s) for s in scales]), dtype=np.float64))))
    if typical > MAX_PLAUSIBLE_SCALE:
        other = next(c for c in ScaleConvention if c is not convention)
        raise BitconvError(
            f"its convention is to {convention.value} by weight_scale, which makes a typical scale of "
            f"{typical:.4g}; the inverse, {1 / typical:.4g}, is what trained models have",
            code=Code.CONVENTION,
            file=file,
            way_out=f"if the file is wrong, pass {option('scale_convention', other.value)}; "
            f"if it is right, {option('scale_convention', convention.value)}",
        )
