"""The rules and their arithmetics: what they make of latents on both sides of every threshold, held against PyTorch's
own arithmetic and against the packages whose files are to be met."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import bitconv
import numpy as np
import pytest
from bitconv import _kernels
from bitconv.choices import TERNARIZE
from bitconv.models.arithmetic import ARITHMETICS, Arithmetic
from bitconv.system.errors import BitconvError
from safetensors.numpy import load_file

from gguf_file import File
from synthetic import GGUF_PROJECTIONS, Synthetic, make_checkpoint, pack_hf, write_safetensors

DOWN_PROJ = "model.layers.0.mlp.down_proj.weight"
DOWN = "blk.0.ffn_down.weight"
BITS = {"f32": "<u4", "bf16": "<u2", "f16": "<u2"}


def latents(dtype: str, mean: float, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Float32 values of a type, both signs, a quarter of them within a few steps of half of their mean magnitude.

    Of float32 the steps are its own, and those halfway between two bfloat16 or float16, where rounding decides.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(0, mean * 1.25, (rows, columns)).astype(np.float32)
    on = rng.random(values.shape) < 0.25
    signs, count = np.sign(values[on]), int(on.sum())
    steps = {"f32": rng.choice([1, 0x1000, 0x8000], count), "bf16": 1 << 16, "f16": 1 << 13}[dtype]
    away, beside = rng.integers(-4, 5, count), rng.integers(-2, 3, count) if dtype == "f32" else 0
    for _ in range(20):  # the mean depends on the values that depend on it
        half = int(np.float32(np.abs(values.astype(np.float64)).mean() / 2).view(np.uint32))
        values[on] = ((half // steps + away) * steps + beside).astype(np.uint32).view(np.float32) * signs
    return values


def raw(values: np.ndarray, dtype: str) -> np.ndarray:
    out = np.empty(values.size * np.dtype(BITS[dtype]).itemsize, np.uint8)
    _kernels.convert_floats(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8), "f32", out, dtype)
    return out


# In PyTorch's own arithmetic


def torch_codes(weight: Any, dtype: Any, *, away: bool = False) -> tuple[np.ndarray, np.float32]:
    """clip(round(W * (1 / mean|W|))) with every step in a type of PyTorch, as exporters write it. Returns the mean too.

    In float32 the mean is the exact one, of which PyTorch's own sum is an ulp off now and then.
    """
    import torch

    weight = weight.to(dtype)
    exact = weight.double().abs().mean().float()
    mean = exact if dtype == torch.float32 else weight.abs().mean()
    assert mean == exact.to(dtype)
    product = weight * (1.0 / mean.clamp(min=1e-5))
    whole = torch.sign(product) * torch.floor(product.double().abs() + 0.5) if away else product.round()
    return torch.nan_to_num(whole).clamp(-1, 1).to(torch.int8).numpy(), np.float32(exact)


def float_types() -> dict[str, Any]:
    import torch

    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.torch
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda arithmetic: arithmetic.name)
@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("mean", [0.013, 0.0312, 1.2188504934310913])
def test_an_arithmetic_is_pytorchs(arithmetic: Arithmetic, stored: str, mean: float) -> None:
    import torch

    values = latents(stored, mean, 256, 256)
    weight = torch.from_numpy(values).to(float_types()[stored])
    codes, exact = torch_codes(weight, float_types()[arithmetic.dtype], away=arithmetic.away)
    out = np.empty(values.size, np.int8)
    least = arithmetic.threshold(stored, exact)
    _kernels.ternarize_from(raw(values, stored), stored, least, out)
    assert (out.reshape(values.shape) == codes).all()
    patterns = raw(np.abs(values), stored).view(BITS[stored]).astype(np.int64)
    assert (patterns == least).any() and (patterns == least - 1).any()


@pytest.mark.torch
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda arithmetic: arithmetic.name)
@pytest.mark.parametrize("mean", [0.0, 1e-30, 9e-6, 1.1e-5, 30000.0])
def test_means_at_the_ends_of_a_type_are_as_in_pytorch(arithmetic: Arithmetic, mean: float) -> None:
    import torch

    weight = torch.tensor([mean, -mean, mean / 2, mean / 4], dtype=torch.bfloat16) * 1.5
    codes, exact = torch_codes(weight, float_types()[arithmetic.dtype], away=arithmetic.away)
    out = np.empty(4, np.int8)
    _kernels.ternarize_from(raw(weight.float().numpy(), "bf16"), "bf16", arithmetic.threshold("bf16", exact), out)
    assert (out == codes).all()


@pytest.mark.parametrize("stored", ["bf16", "f16"])
def test_a_tie_is_a_bin_of_latents_and_goes_to_zero(stored: str) -> None:
    """In bfloat16 several weights of 16 bits have the product one half; in float32 at most one has."""
    every = np.arange(0x7F80 if stored == "bf16" else 0x7C00, dtype="<u2").view(np.uint8)
    for inverse in (1.0, 1.5, 3.296875, 77.5):
        even, away = (_kernels.threshold(stored, inverse, "bf16", away) for away in (False, True))
        exact = [_kernels.threshold(stored, inverse, "f32", away) for away in (False, True)]
        counts = np.empty(4, np.int64)
        _kernels.count_from(every, stored, np.array([away, even, *exact], np.uint32), counts)
        assert counts[0] - counts[1] == even - away >= 1
        assert 0 <= exact[0] - exact[1] <= 1


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_counts_are_those_of_numpy_on_every_instruction_set(dtype: str) -> None:
    values = raw(latents(dtype, 0.02, 77, 129), dtype)
    magnitudes = values.view(BITS[dtype]) & (0x7FFFFFFF if dtype == "f32" else 0x7FFF)
    least = np.sort(np.random.default_rng(1).choice(magnitudes, 11)).astype(np.uint32)
    before = _kernels.isa()
    try:
        for isa in _kernels.isas():
            _kernels.use_isa(isa)
            counts = np.empty(11, np.int64)
            _kernels.count_from(values, dtype, least, counts)
            assert counts.tolist() == [(magnitudes >= one).sum() for one in least]
            trits = np.empty(magnitudes.size, np.int8)
            others = [_kernels.ternarize_from(values, dtype, int(least[5]), trits, int(one)) for one in least]
            assert others == np.abs(counts - counts[5]).tolist()
            assert _kernels.ternarize_from(values, dtype, int(least[5]), trits) == 0
            assert _kernels.threshold(dtype, 3.0, "bf16", True) <= _kernels.threshold(dtype, 3.0, "bf16")
    finally:
        _kernels.use_isa(before)


# Against a lab's exporter


def lab_code(package: str, file: str) -> ModuleType:
    """A module of an installed package, without the package's __init__, which may need a GPU's compiler."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0]) / file
    found = importlib.util.spec_from_file_location(f"lab_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def stated(weight: Any) -> tuple[Any, Any]:
    """The exporter's rule, stated again: every step in the weight's type."""
    inverse = weight.abs().mean().clamp_(min=1e-5).reciprocal()
    return (weight * inverse).round().clamp_(-1, 1), inverse


def onebitllms(weight: Any) -> tuple[Any, Any]:
    return lab_code("onebitllms", "utils/quantization_utils.py")._weight_quant(weight)


def masters(path: Path, dtype: str) -> Synthetic:
    """A Llama of latents around every threshold, which nothing marks, as Falcon-E's are published."""
    model = make_checkpoint(path, "llama", packed=False, marked=False, layers=1)
    tensors = stored_floats(model)
    for seed, name in enumerate(sorted(tensors)):
        if "_proj" in name:
            tensors[name] = latents(dtype, 0.01 * (1 + seed), *tensors[name].shape, seed)
    write_safetensors(path / "model.safetensors", tensors, dtype)
    return model


def stored_floats(model: Synthetic) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {name: value.float().numpy() for name, value in load_file(model.path / "model.safetensors").items()}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("weight_quant", [stated, onebitllms], ids=["stated", "onebitllms"])
def test_masters_by_the_labs_rule_give_the_bytes_of_its_packed_release(
    tmp_path: Path, weight_quant: Any, dtype: str
) -> None:
    import torch

    model = masters(tmp_path / "a" / "model", dtype)
    stored: dict[str, np.ndarray] = {}
    packed = set()
    for name, value in stored_floats(model).items():
        if "_proj" in name:
            codes, inverse = weight_quant(torch.from_numpy(value).bfloat16())  # the exporter loads everything so
            stored[name] = pack_hf(codes.to(torch.int8).numpy())
            stored[name.replace("weight", "weight_scale")] = inverse.float().numpy().reshape(1)
            packed.add(name)
        else:
            stored[name] = value
    release = make_checkpoint(tmp_path / "b" / "model", "llama", layers=1)
    write_safetensors(release.path / "model.safetensors", stored, "bf16", packed)
    for file, path, rule in (("lab", release.path, None), ("own", model.path, "absmean-bf16")):
        bitconv.convert(path, tmp_path / file, ternarize=rule, embed_type="bf16")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "lab").read_bytes()
    assert not bitconv.verify(tmp_path / "lab", against=model.path, ternarize="absmean").right
    assert bitconv.verify(tmp_path / "lab", against=model.path, ternarize="absmean-bf16").right


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_absmean_is_what_transformers_computes_at_inference(tmp_path: Path, dtype: str) -> None:
    """Up to the last bits of the mean, which PyTorch adds in float32."""
    import torch
    from transformers.integrations.bitnet import AutoBitLinear

    model = masters(tmp_path / "model", dtype)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", ternarize="absmean")
    weight = torch.from_numpy(stored_floats(model)[DOWN_PROJ])
    layer = AutoBitLinear(weight.shape[1], weight.shape[0], bias=False, online_quant=True)
    layer.weight.data = weight
    inputs = torch.eye(weight.shape[1])  # which int8 holds
    stored = np.frombuffer(File(tmp_path / "out.gguf").bytes(DOWN, weight.numel() * 4), np.float32)
    stored = stored.reshape(weight.shape)
    with torch.no_grad():
        computed = layer(inputs).T.numpy()
    half = weight.abs().double().mean().item() / 2
    told = np.abs(weight.abs().numpy() / half - 1) > (1e-5 if dtype == "f32" else 0)
    assert (np.sign(stored) == np.sign(computed))[told].all() and told.mean() > 0.9
    assert computed.max() == pytest.approx(stored.max(), rel=1e-5)


@pytest.mark.torch
def test_the_scale_of_a_release_that_multiplies_is_rounded_once_more(tmp_path: Path) -> None:
    """As bitnet.cpp's gpu/convert_checkpoint.py stores it: the inverse of the inverse, in bfloat16."""
    import torch

    model = make_checkpoint(tmp_path / "model", "microsoft", packed=False, layers=1)
    result = bitconv.convert(model.path, tmp_path / "out.gguf", ternarize="absmean-bf16")
    scales = {tensor.name: tensor.scale for tensor in result.tensors}
    for projection, slot in GGUF_PROJECTIONS.items():
        weight = torch.from_numpy(stored_floats(model)[f"model.layers.0.{projection}.weight"])
        _, inverse = stated(weight.bfloat16())
        assert scales[f"blk.0.{slot}.weight"] == float((1.0 / inverse).to(torch.bfloat16))


# absmax in groups


def absmax_stated(weight: Any, group: int) -> Any:
    """ternary-qat's rule, stated again: the group's largest magnitude divides in the weight's type."""
    import torch

    groups = weight.reshape(weight.shape[0], -1, group)
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    codes = torch.round((groups / largest).float()).clamp_(-1, 1).to(weight.dtype)
    return (codes * largest).reshape(weight.shape)


def ternary_qat(weight: Any, group: int) -> Any:
    if importlib.util.find_spec("ternary") is None:
        pytest.skip("ternary-qat is not installed")
    from ternary import ternarize_weight

    return ternarize_weight(weight, group).detach()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("quantize", [absmax_stated, ternary_qat], ids=["stated", "ternary-qat"])
def test_absmax_writes_what_ternary_qat_does(tmp_path: Path, quantize: Any, group: int, dtype: str) -> None:
    from safetensors.torch import load_file as load_torch

    model = make_checkpoint(
        tmp_path / "model", "plain_qwen3", dtype=dtype, packed=False, marked=False, layers=1, head_dim=64
    )
    tensors = stored_floats(model)
    weight = tensors[DOWN_PROJ]
    weight[0, 1:group] = weight[0, 0] / 2  # on the threshold
    weight[1, 1:group] = np.float32(weight[1, 0] / 2) * np.float32(1 + 2**-8)  # a product that bfloat16 rounds
    weight[2, :group] = 0
    weight[3, :group] = 7e-9  # above half of the least scale
    weight[4, :group] = 3e-9  # below it
    write_safetensors(model.path / "model.safetensors", tensors, dtype)
    bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", ternarize="absmax", group=group)
    stored = load_torch(model.path / "model.safetensors")[DOWN_PROJ]
    values = np.frombuffer(File(tmp_path / "out.gguf").bytes(DOWN, stored.numel() * 4), np.float32)
    wanted = np.nan_to_num(quantize(stored, group).float().numpy()) + np.float32(0)
    assert np.array_equal(values.reshape(stored.shape), wanted)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize="absmax", group=group).right


@pytest.mark.parametrize("subnormal", [False, True])
def test_groups_that_a_layout_holds_are_packed_and_verified(tmp_path: Path, subnormal: bool) -> None:
    """128 columns by default, as ternary-qat has them."""
    model = make_checkpoint(
        tmp_path / "model", "plain_qwen3", dtype="f16", packed=False, marked=False, ffn=512, layers=1, head_dim=64
    )
    if subnormal:
        tensors = dict(load_file(model.path / "model.safetensors"))
        least = np.float16(2**-24)
        tensors[DOWN_PROJ] = np.random.default_rng(0).integers(-5, 6, (256, 512)).astype(np.float16) * least
        write_safetensors(model.path / "model.safetensors", tensors, "f16")
    result = bitconv.convert(model.path, tmp_path / "out.gguf", type="q2_0", ternarize="absmax")
    assert {t.group for t in result.tensors if t.type == "q2_0"} == {128}
    assert not any(t.was_ternary for t in result.tensors)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize="absmax").right
    assert not bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize="absmax", group=64).right


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": 64}, ["group is for ternarize='absmax'"]),
        ({"ternarize": "absmean", "group": 64}, ["group is for ternarize='absmax'"]),
        ({"ternarize": "absmax", "group": 96}, ["group=96", "a power of two from 32"]),
        ({"ternarize": "absmax", "group": -1}, ["group=-1", "a power of two from 32"]),
        ({"ternarize": "absmax", "group": 512}, ["_proj.weight", "has 256 columns", "group=512"]),
        ({"ternarize": "absmax"}, ["i2_s has one scale", "a scale for each 128 columns"]),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", packed=False, marked=False, layers=1)
    with pytest.raises(BitconvError) as error:
        bitconv.convert(model.path, tmp_path / "out.gguf", **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("rule", ["absmax", "absmean-bf16"])
def test_what_is_not_finite_is_refused(tmp_path: Path, rule: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", dtype="f32", packed=False, marked=False, layers=1)
    tensors = dict(load_file(model.path / "model.safetensors"))
    tensors[DOWN_PROJ][200, 3] = np.nan
    write_safetensors(model.path / "model.safetensors", tensors, "f32")
    with pytest.raises(BitconvError, match=r"down_proj.*holds NaN or infinity in row"):
        bitconv.convert(model.path, tmp_path / "out.gguf", type="f32", ternarize=rule)


# What convert says


def test_convert_notes_codes_that_depend_on_arithmetic(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = masters(tmp_path / "model", "bf16")
    notes = bitconv.convert(model.path, tmp_path / "a.gguf", ternarize="absmean").notes
    (note,) = [note for note in notes if "depend on arithmetic" in note]
    other = bitconv.convert(model.path, tmp_path / "b.gguf", ternarize="absmean-bf16")
    assert any("absmean makes others" in note for note in other.notes)
    # Counted in the two files.
    differ = of = 0
    for name, shape in ((t.name, t.shape) for t in other.tensors if t.was_ternary is not None):
        size = int(np.prod(shape)) // 4
        a, b = (np.frombuffer(File(tmp_path / file).bytes(name, size), np.uint8) for file in ("a.gguf", "b.gguf"))
        differ += sum(int(((a ^ b) >> 2 * k & 3 != 0).sum()) for k in range(4))
        of += 4 * size
    assert note.startswith(f"{differ / of:.2%} of the codes") and "absmean-bf16 makes others" in note


def test_convert_notes_nothing_where_arithmetic_makes_no_difference(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", dtype="f32", layers=1)
    tensors = dict(load_file(model.path / "model.safetensors"))
    for name, value in tensors.items():
        if "_proj" in name:
            tensors[name] = np.where(np.abs(value) < 0.02, 0, value)
            tensors[name][np.abs(value) < 0.02] = 0
            tensors[name][(np.abs(value) >= 0.02) & (np.abs(value) < 0.045)] = 0.06
    write_safetensors(model.path / "model.safetensors", tensors, "f32")
    for rule in ("absmean", "absmedian"):
        assert not any("arithmetic" in n for n in bitconv.convert(model.path, tmp_path / rule, ternarize=rule).notes)


# What verify says


@pytest.mark.torch
@pytest.mark.parametrize(("made", "asked"), [("absmean-bf16", "absmean"), ("absmedian", "absmean-bf16")])
def test_verify_says_by_which_rule_a_file_would_be_right(tmp_path: Path, made: str, asked: str) -> None:
    model = masters(tmp_path / "model", "bf16")
    bitconv.convert(model.path, tmp_path / "out.gguf", ternarize=made)
    result = bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize=asked)
    assert not result.right
    assert result.faults[0] == f"the rule {made} makes every trit of the checkpoint's latents: name it as the rule"
    faults = [fault for tensor in result.tensors for fault in tensor.faults if not fault.startswith("its scale is")]
    assert len(faults) >= 5  # where the two thresholds fall together, only the scale differs
    assert all("the trit is not the checkpoint's, nor are" in f and f.endswith(f"; none by {made}") for f in faults)


@pytest.mark.torch
def test_verify_against_a_packed_release_says_that_arithmetic_may_be_it(tmp_path: Path) -> None:
    model = masters(tmp_path / "model", "bf16")
    for rule in ("absmean", "absmean-bf16"):
        bitconv.convert(model.path, tmp_path / rule, ternarize=rule)
    bitconv.export(tmp_path / "absmean-bf16", tmp_path / "release")
    result = bitconv.verify(tmp_path / "absmean", against=tmp_path / "release")
    assert "of the same latents by two arithmetics, which bitconv audit tells" in result.faults[0]
    assert bitconv.verify(tmp_path / "absmean-bf16", against=tmp_path / "release").right


@pytest.mark.torch
def test_verify_names_no_rule_where_none_makes_the_trits(tmp_path: Path) -> None:
    model = masters(tmp_path / "model", "bf16")
    bitconv.convert(model.path, tmp_path / "out.gguf", ternarize="absmean-bf16")
    start = File(tmp_path / "out.gguf").tensors[DOWN].start
    data = bytearray((tmp_path / "out.gguf").read_bytes())
    for at in range(start, start + 100):
        data[at] = 0b00000000 if data[at] & 0b11000000 else 0b01000000
    (tmp_path / "out.gguf").write_bytes(data)
    result = bitconv.verify(tmp_path / "out.gguf", against=model.path, ternarize="absmean")
    assert result.faults[0].startswith("this looks like another model: ")
    (faults,) = (tensor.faults for tensor in result.tensors if tensor.name == DOWN)
    assert "nor are" in faults[0] and "none by" not in faults[0]


# The page of docs


def test_the_picture_is_what_its_script_draws() -> None:
    docs = Path(__file__).parent.parent / "docs"
    found = importlib.util.spec_from_file_location("drawing", docs / "arithmetic.py")
    assert found is not None and found.loader is not None
    drawing = importlib.util.module_from_spec(found)
    found.loader.exec_module(drawing)
    assert (docs / "arithmetic.svg").read_text(encoding="utf-8") == drawing.svg()


def test_the_page_names_every_rule() -> None:
    page = (Path(__file__).parent.parent / "docs" / "arithmetic.md").read_text(encoding="utf-8")
    assert all(f"| `{rule}" in page for rule in TERNARIZE.words)
