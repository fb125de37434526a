"""I2_S for bitnet.cpp's builds for arm64: another byte order, which the file records; no command needs an option.

The order itself is tests/reference.py's and the golden vectors': test_types.py and test_kernels.py.
"""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.system.errors import BitconvError

from gguf_file import File
from reference import ROW_LAYOUTS
from synthetic import FIXTURES, Synthetic, make_checkpoint
from test_verify import Rebuilt

KEY = "bitconv.i2_s_order"
RUNNER = "bitnet.cpp-arm64"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make_checkpoint(tmp_path_factory.mktemp("arm64") / "model", "llama", layers=1)


@pytest.fixture(scope="module")
def file(model: Synthetic) -> Path:
    bitconv.convert(model.path, model.path.with_name("arm64.gguf"), runner=RUNNER)
    return model.path.with_name("arm64.gguf")


@pytest.fixture(scope="module")
def published(model: Synthetic) -> Path:
    bitconv.convert(model.path, model.path.with_name("published.gguf"))
    return model.path.with_name("published.gguf")


def test_the_file_differs_in_its_record_and_the_order_of_its_codes_alone(file: Path, published: Path) -> None:
    one, other = Rebuilt(file), Rebuilt(published)
    assert one.metadata.pop(KEY) == "arm64" and KEY not in other.metadata
    for tensor, same in zip(one.tensors, other.tensors, strict=True):
        assert tensor[:3] == same[:3]
        if tensor[2] == 36:
            assert tensor[3] != same[3] and tensor[3][-32:] == same[3][-32:]
        else:
            assert tensor[3] == same[3]


def test_verify_finds_it_right_and_the_same_model_as_in_the_published_order(
    model: Synthetic, file: Path, published: Path
) -> None:
    results = [bitconv.verify(path, against=model.path, strict=True) for path in (file, published)]
    assert all(result.right for result in results)
    assert results[0].digests == results[1].digests


@pytest.mark.parametrize("order", ["published", "row4"])
def test_the_option_overrules_the_record(model: Synthetic, file: Path, order: str) -> None:
    assert not bitconv.verify(file, against=model.path, i2_s_order=order).right


def test_bytes_in_another_order_than_the_record_says_are_found_against_the_checkpoint(
    model: Synthetic, file: Path, published: Path, tmp_path: Path
) -> None:
    for source, order in ((published, "arm64"), (file, None)):
        rebuilt = Rebuilt(source)
        rebuilt.metadata.pop(KEY, None)
        if order is not None:
            rebuilt.metadata[KEY] = order
        swapped = rebuilt.write(tmp_path / "swapped.gguf")
        assert bitconv.verify(swapped).right  # every code is one in either order: nothing alone can tell
        result = bitconv.verify(swapped, against=model.path)
        assert any("the trit is not the checkpoint's" in fault for t in result.tensors for fault in t.faults)


def test_repack_reads_and_writes_the_record(file: Path, published: Path, tmp_path: Path) -> None:
    bitconv.repack(file, tmp_path / "a.gguf", type="i2_s")
    assert (tmp_path / "a.gguf").read_bytes() == published.read_bytes()
    bitconv.repack(tmp_path / "a.gguf", tmp_path / "b.gguf", type="i2_s", runner=RUNNER)
    assert (tmp_path / "b.gguf").read_bytes() == file.read_bytes()
    bitconv.repack(file, tmp_path / "c.gguf", type="q2_0")
    assert KEY not in File(tmp_path / "c.gguf").metadata


def test_eval_export_and_compare_need_no_option(tmp_path: Path) -> None:
    source = FIXTURES / "Llama3-1.58-tiny"
    results = []
    for runner in ("bitnet.cpp", RUNNER):
        path = tmp_path / f"{runner}.gguf"
        bitconv.convert(source, path, runner=runner)
        bitconv.export(path, tmp_path / runner)
        results.append(bitconv.evaluate(path, FIXTURES / "eval.txt", window=64, max_tokens=64).perplexity)
    assert results[0] == results[1]
    one, other = ((tmp_path / runner / "model.safetensors").read_bytes() for runner in ("bitnet.cpp", RUNNER))
    assert one == other


@pytest.mark.torch
def test_compare_agrees(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "out.gguf", runner=RUNNER)
    assert bitconv.compare(tmp_path / "out.gguf", FIXTURES / "Llama3-1.58-tiny").agrees


def test_it_takes_columns_in_multiples_of_64(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=320, layers=1)
    with pytest.raises(BitconvError, match="i2_s needs columns in multiples of 128, and 320 are not"):
        bitconv.convert(model.path, tmp_path / "out.gguf")
    bitconv.convert(model.path, tmp_path / "out.gguf", runner=RUNNER)
    assert bitconv.verify(tmp_path / "out.gguf", against=model.path).right
    file, trits = File(tmp_path / "out.gguf"), model.trits["blk.0.ffn_down.weight"]
    wanted = ROW_LAYOUTS["i2_s_arm64"].pack(trits, 0).tobytes()
    assert trits.shape[1] == 320 and file.bytes("blk.0.ffn_down.weight", len(wanted)) == wanted
    with pytest.raises(BitconvError, match="i2_s needs columns in multiples of 128"):
        bitconv.repack(tmp_path / "out.gguf", tmp_path / "other.gguf", type="i2_s")


def test_columns_that_it_cannot_take_are_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=352, layers=1)
    with pytest.raises(BitconvError, match="i2_s_arm64 needs columns in multiples of 64, and 352 are not"):
        bitconv.convert(model.path, tmp_path / "out.gguf", runner=RUNNER)


@pytest.mark.parametrize("record", ["middle-endian", "", np.uint32(1), ["arm64"]])
def test_a_record_that_makes_no_sense_is_a_fault(file: Path, tmp_path: Path, record: object) -> None:
    rebuilt = Rebuilt(file)
    rebuilt.metadata[KEY] = record  # type: ignore[assignment]
    (fault,) = bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults
    assert f"{KEY} is not one of published, arm64, row4" in fault


def test_a_record_of_a_file_without_i2_s_is_a_fault(model: Synthetic, tmp_path: Path) -> None:
    bitconv.convert(model.path, tmp_path / "good.gguf", type="q2_0")
    rebuilt = Rebuilt(tmp_path / "good.gguf")
    rebuilt.metadata[KEY] = "arm64"
    assert bitconv.verify(rebuilt.write(tmp_path / "bad.gguf")).faults == (
        f"{KEY} says arm64, and no tensor of the file is i2_s",
    )


def test_no_type_is_chosen_for_it_unless_it_is_named(tmp_path: Path) -> None:
    """320 columns: its files are garbage on other machines, and what convert writes depends on none."""
    model = make_checkpoint(tmp_path / "model", "llama", ffn=320, layers=1)
    assert bitconv.convert(model.path, tmp_path / "out.gguf", type="auto").runner == "llama.cpp"
    named = bitconv.convert(model.path, tmp_path / "out.gguf", type="auto", runner=RUNNER, force=True)
    assert (named.type, named.runner) == ("i2_s", RUNNER)
