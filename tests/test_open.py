"""bitconv.open: the tensors of files and checkpoints as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest

from synthetic import make_checkpoint
from test_verify import Rebuilt

FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "i2_s", {}),
    ("microsoft", "tl2", {"hidden": 384, "ffn": 768}),
    ("1bitllm", "iq2_bn", {"hidden": 512, "ffn": 512, "heads": 8}),
    ("plain_qwen3", "q2_0", {"ternary_floats": True, "marked": False, "group": 128, "head_dim": 64}),
    ("plain_qwen3", "f32", {"ternary_floats": True, "marked": False, "row_scales": True, "head_dim": 64}),
    ("mixtral", "tq2_0", {"ffn": 512}),
]


@pytest.mark.parametrize(("family", "type_name", "stored"), FORMS)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_trits_scales_and_floats_are_those_of_the_model(
    family: str, type_name: str, stored: dict[str, Any], checkpoint: bool, tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "model", family, dtype="f16", **stored)
    bitconv.convert(model.path, tmp_path / "out.gguf", type=type_name, embed_type="f32")
    with bitconv.open(model.path if checkpoint else tmp_path / "out.gguf") as opened:
        assert set(opened) == set(model.trits) | set(model.dense)
        for name, trits in model.trits.items():
            tensor = opened[name.removesuffix(".weight")]
            assert tensor.is_ternary and tensor.shape == trits.shape
            values = tensor.dequantize()
            assert tensor.trits.dtype == np.int8 and values.dtype == np.float32
            np.testing.assert_array_equal(tensor.trits, trits)
            scale = tensor.scale
            wide = scale[:, None, None] if len(tensor.shape) == 3 else scale
            if np.ndim(wide) == 2:
                wide = np.repeat(wide, trits.shape[1] // scale.shape[1], axis=1)
            np.testing.assert_array_equal(values, trits * wide)
        for name, floats in model.dense.items():
            assert not opened[name].is_ternary
            np.testing.assert_array_equal(opened[name].dequantize(), floats)
        assert opened.metadata["general.architecture"] == opened.architecture


def test_floats_without_a_rule_are_floats(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "plain_qwen3", marked=False, packed=False, head_dim=64, dtype="f32")
    with bitconv.open(model.path) as opened:
        assert not any(tensor.is_ternary for tensor in opened.values())
        assert opened["blk.0.ffn_up"].dequantize().std() > 0


def test_floats_have_no_trits(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    with (
        bitconv.open(model.path) as opened,
        pytest.raises(bitconv.BitconvError, match=r"token_embd\.weight: is not ternary"),
    ):
        _ = opened["token_embd"].trits
    assert repr(opened) == f"<{model.path}: llama, 21 tensors>"
    assert repr(opened["token_embd"]) == "<token_embd.weight: bf16, 1280x256>"
    with pytest.raises(KeyError):
        _ = opened["no_such"]


def test_a_faulty_tensor_is_an_error_that_names_it_and_the_others_are_read(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    rebuilt = Rebuilt(tmp_path / "out.gguf")
    tensor = rebuilt.tensor("blk.0.attn_q.weight")
    tensor[3] = tensor[3][:40] + b"\xff" + tensor[3][41:]
    rebuilt.tensor("output_norm.weight")[3] = b"\xff" * 1024
    with bitconv.open(rebuilt.write(tmp_path / "bad.gguf")) as opened:
        for name, cause in (("blk.0.attn_q", "column 1.. holds"), ("output_norm", "not finite")):
            with pytest.raises(bitconv.BitconvError, match=f"bad.gguf: {name}.weight: .*{cause}.*verify"):
                opened[name].dequantize()
        np.testing.assert_array_equal(opened["blk.0.attn_k"].trits, model.trits["blk.0.attn_k.weight"])


def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "a.gguf", tmp_path / "none"):
        with pytest.raises(bitconv.BitconvError):
            bitconv.open(path)
