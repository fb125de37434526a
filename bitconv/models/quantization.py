"""How a checkpoint stores its ternary matrices, decided from its own config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from bitconv.choices import SCALE_CONVENTION, TERNARIZE
from bitconv.layouts.layout import ScaleT
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


class Rule(Enum):
    """How float master weights W become trits: clip(round(W / scale), -1, 1), with what for a scale."""

    ABSMEAN = "absmean"  # the mean of |W|: BitNet b1.58
    ABSMEDIAN = "absmedian"  # the median of |W|: BitNet b1.58 Reloaded


def rule_of(name: str | None) -> Rule | None:
    """The rule that a user names, or None."""
    return None if name is None else Rule(TERNARIZE.parse(name))


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
        return Storage.UNMARKED, ScaleConvention.MULTIPLY
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
