"""Checkpoints that MLX holds in codes of two bits, as Ternary-Bonsai's are published for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv.checkpoint.directory import Checkpoint
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file, save_file

from synthetic import Synthetic, make_checkpoint

GOLDEN = np.load(Path(__file__).parent / "golden" / "mlx_two_bits.npz")
GROUP = 128


def packed(codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sixteen codes in each uint32, low bits first."""
    words = codes.astype(np.uint32).reshape(len(codes), -1, 16)
    return (words << (2 * np.arange(16, dtype=np.uint32))).sum(axis=2).astype(np.uint32)


def in_codes(values: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The three tensors of a matrix of ternary float16."""
    groups = values.reshape(len(values), -1, GROUP)
    scales = np.abs(groups).max(axis=2)
    codes = (np.sign(groups) + 1).reshape(values.shape)
    return {"weight": packed(codes), "scales": scales, "biases": -scales}


@pytest.fixture
def floats(tmp_path: Path) -> Synthetic:
    """The same model in floats, its embedding and head ternary too."""
    model = make_checkpoint(
        tmp_path / "floats",
        "plain_qwen3",
        dtype="f16",
        ternary_floats=True,
        marked=False,
        group=GROUP,
        hidden=512,
        ffn=768,
        head_dim=128,
    )
    file, rng = model.path / "model.safetensors", np.random.default_rng(3)
    tensors = load_file(file)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        scales = np.repeat(rng.uniform(0.01, 0.1, (1280, 512 // GROUP)), GROUP, axis=1).astype(np.float16)
        tensors[name] = (rng.integers(-1, 2, (1280, 512)) * scales + np.float16(0)).astype(np.float16)
    save_file(tensors, file)
    return model


@pytest.fixture
def model(floats: Synthetic, tmp_path: Path) -> Synthetic:
    path = tmp_path / "mlx"
    path.mkdir()
    tensors = {}
    for name, values in load_file(floats.path / "model.safetensors").items():
        quantized = name.endswith("_proj.weight") or "embed_tokens" in name or "lm_head" in name
        parts = in_codes(values) if quantized else {"weight": values}
        tensors |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
    save_file(tensors, path / "model.safetensors")
    for file in floats.path.iterdir():
        if file.suffix == ".json":
            (path / file.name).write_bytes(file.read_bytes())
    result = Synthetic(path, floats.config)
    said = {"group_size": GROUP, "bits": 2, "mode": "affine"}
    result.rewrite_config(quantization=said, quantization_config=said)
    return result


def change(model: Synthetic, name: str, edit: Any) -> None:
    file = model.path / "model.safetensors"
    tensors = load_file(file)
    edit(tensors, name)
    save_file(tensors, file)


@pytest.mark.parametrize("options", [{}, {"preset": "small"}, {"embed_type": "q8_0"}, {"embed_type": "f32"}])
def test_it_becomes_the_file_that_the_same_model_in_floats_becomes(
    options: dict[str, str], model: Synthetic, floats: Synthetic, tmp_path: Path
) -> None:
    for source in (model, floats):
        (source.path / "README.md").write_text("---\nmodel_name: Same\n---\n")
    bitconv.convert(model.path, tmp_path / "mlx.gguf", type="q2_0", **options)
    bitconv.convert(floats.path, tmp_path / "floats.gguf", type="q2_0", **options)
    assert (tmp_path / "mlx.gguf").read_bytes() == (tmp_path / "floats.gguf").read_bytes()
    assert bitconv.verify(tmp_path / "mlx.gguf", against=model.path).right
    assert bitconv.verify(tmp_path / "mlx.gguf", against=floats.path).right


def test_the_summary_counts_the_bytes_that_are_stored(model: Synthetic, tmp_path: Path) -> None:
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", dry_run=True)
    stored = sum(array.nbytes for array in load_file(model.path / "model.safetensors").values())
    assert sum(part.stored_nbytes for part in result.parts) == stored


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("first", [0, 5, 300])
def test_codes_stand_for_the_values_that_mlx_takes_them_for(dtype: str, first: int, tmp_path: Path) -> None:
    """Golden: mlx.core.dequantize of MLX 0.32.4. From any value on, since dense tensors are read in parts."""
    from synthetic import write_safetensors

    scales = GOLDEN[f"scales/{dtype}"]
    tensors = {"a.scales": scales, "a.biases": -scales, "a.weight": GOLDEN[f"codes/{dtype}"]}
    codes = {"a.weight"}
    if dtype == "bf16":
        write_safetensors(tmp_path / "model.safetensors", tensors, dtype, codes)
    else:
        stored = {n: t if n in codes else t.astype({"f16": "f2", "f32": "f4"}[dtype]) for n, t in tensors.items()}
        save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization": {"bits": 2, "group_size": 128}}')
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors["a.weight"]
        expected = GOLDEN[f"values/{dtype}"]
        assert (tensor.dtype, tensor.shape) == (dtype, expected.shape)
        assert (checkpoint.values(tensor) == expected).all()
        itemsize = tensor.nbytes // expected.size
        whole, part = np.empty(tensor.nbytes, np.uint8), np.empty(tensor.nbytes - first * itemsize, np.uint8)
        checkpoint.read(tensor, 0, whole)
        checkpoint.read(tensor, first * itemsize, part)
        assert (whole[first * itemsize :] == part).all()


def test_a_code_of_a_fourth_level_is_no_trit(model: Synthetic, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Any], name: str) -> None:
        tensors[name][7, 3] |= 3 << 8

    change(model, "model.layers.1.self_attn.k_proj.weight", edit)
    with pytest.raises(BitconvError, match=r"layers\.1\.self_attn\.k_proj\.weight: is ternary but for outliers"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", fallback="f16")
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right


def test_what_mlx_s_own_quantizer_makes_of_ternary_floats_is_refused(model: Synthetic, tmp_path: Path) -> None:
    """+scale is the bias, and a code takes half of it away: of four levels -scale/2 is the least."""

    def edit(tensors: dict[str, Any], _: str) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            stem = name.removesuffix("weight")
            trits = (tensors[name][..., None] >> np.arange(0, 32, 2, dtype=np.uint32) & 3).astype(int) - 1
            tensors[name] = packed(np.array([3, 2, 0])[trits + 1].reshape(len(trits), -1))
            scales = tensors[f"{stem}scales"]
            tensors[f"{stem}scales"], tensors[f"{stem}biases"] = scales / np.float16(-2), scales

    change(model, "", edit)
    with pytest.raises(BitconvError, match=r"q_proj\.weight: weights of other levels"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (lambda tensors, name: tensors.pop(f"{name}scales"), r"two-bit codes without .*q_proj\.scales"),
        (lambda tensors, name: tensors.pop(f"{name}biases"), r"two-bit codes without .*q_proj\.biases"),
        (
            lambda tensors, name: tensors.update({f"{name}scales": tensors[f"{name}scales"][:, :3].copy()}),
            r"q_proj\.scales: f16 \(512, 3\) does not fit codes of shape \(512, 32\)",
        ),
        (
            lambda tensors, name: tensors.update({f"{name}biases": tensors[f"{name}biases"].astype(np.float32)}),
            r"does not fit codes .* f32 \(512, 4\)",
        ),
        (
            lambda tensors, name: tensors[f"{name}scales"].__setitem__((9, 2), np.inf),
            r"q_proj\.scales: row 9 makes a weight of",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(edit: Any, cause: str, model: Synthetic, tmp_path: Path) -> None:
    change(model, "model.layers.0.self_attn.q_proj.", edit)
    with pytest.raises(BitconvError, match=cause):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
    assert not (tmp_path / "out.gguf").exists()


def test_of_a_packed_checkpoint_mlx_has_quantized_the_embedding_alone(tmp_path: Path) -> None:
    packed_model = make_checkpoint(tmp_path / "model", "llama", dtype="f16")

    def edit(tensors: dict[str, Any], name: str) -> None:
        tensors |= {
            f"{name}weight": np.zeros((1280, 16), np.uint32),
            **{f"{name}{part}": np.ones((1280, 4), np.float16) for part in ("scales", "biases")},
        }

    change(packed_model, "model.embed_tokens.", edit)
    said = {"group_size": 64, "bits": 2, "mode": "affine"}
    packed_model.rewrite_config(quantization=said, quantization_config=said)
    with pytest.raises(BitconvError, match=r"config\.json: quantization: quantized by MLX"):
        bitconv.convert(packed_model.path, tmp_path / "out.gguf")


@pytest.mark.parametrize("said", [{"bits": 4}, {"bits": 2, "mode": "mxfp4"}, {"bits": "2"}])
def test_other_quantizations_by_mlx_are_refused(said: dict[str, Any], model: Synthetic, tmp_path: Path) -> None:
    model.rewrite_config(quantization=said, quantization_config=said)
    with pytest.raises(BitconvError, match="quantized by MLX"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0")
