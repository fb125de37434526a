"""How config.json decides what is stored and which way a scale works."""

from __future__ import annotations

import numpy as np
import pytest
from bitconv import BitconvError
from bitconv.models.quantization import ScaleConvention, Storage, check_plausible, storage


@pytest.mark.parametrize(
    ("quantization", "native", "wanted"),
    [
        ({"quant_method": "bitnet"}, False, (Storage.PACKED, ScaleConvention.DIVIDE)),
        ({"quant_method": "bitnet", "linear_class": "bitlinear"}, True, (Storage.PACKED, ScaleConvention.DIVIDE)),
        ({"quant_method": "bitnet", "linear_class": None}, True, (Storage.PACKED, ScaleConvention.DIVIDE)),
        (
            {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
            True,
            (Storage.PACKED, ScaleConvention.MULTIPLY),
        ),
        (
            {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
            True,
            (Storage.MASTER, ScaleConvention.MULTIPLY),
        ),
        (None, True, (Storage.MASTER, ScaleConvention.MULTIPLY)),
    ],
)
def test_the_config_decides(quantization: dict | None, native: bool, wanted: tuple) -> None:
    assert storage({"quantization_config": quantization}, "config.json", native=native) == wanted


def test_divide_inverts_in_float32() -> None:
    stored = np.float32(18.375)
    assert ScaleConvention.DIVIDE.scale(stored) == np.float32(1) / stored
    assert ScaleConvention.DIVIDE.scale(stored).dtype == np.float32
    assert ScaleConvention.MULTIPLY.scale(stored) == stored


@pytest.mark.parametrize("typical", [0.005, 0.05, 0.2, 1.2188504934310913, 2.163161277770996])
def test_scales_of_published_models_are_plausible_and_small_ones_inverted_are_not(typical: float) -> None:
    scales = [np.float32(typical * factor) for factor in (0.5, 1, 1, 2)]
    check_plausible(scales, ScaleConvention.MULTIPLY, "config.json")
    if typical <= 0.2:
        with pytest.raises(BitconvError, match="scale_convention='divide'"):
            check_plausible([1 / scale for scale in scales], ScaleConvention.MULTIPLY, "config.json")
