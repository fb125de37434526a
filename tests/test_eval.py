"""What evaluate computes: the perplexity that PyTorch finds, from every type and every architecture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.commands.evaluate import evaluate, log_probabilities
from bitconv.gguf import read_gguf
from bitconv.inference.forward import ForwardPass
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.packed.inspection import inspect_file
from bitconv.system.errors import BitconvError
from typer.testing import CliRunner

from conftest import FIXTURES
from synthetic import make_checkpoint
from test_verify import Rebuilt

TEXT = FIXTURES / "eval.txt"
REFERENCE = json.loads((FIXTURES / "reference.json").read_text())
MICROSOFT = FIXTURES / "bitnet-b1.58-2B-4T-tiny"
LLAMA = FIXTURES / "Llama3-1.58-tiny"
# The types besides i2_s whose scales are float32 where bitconv is not told to round them.
EXACT = ("tl1", "tl2", "tq1_0", "tq2_0", "q2_0", "iq2_bn", "f32")


# What no runner takes: too few columns for ik_llama.cpp, and an architecture that llama.cpp does not know.
NOT_TAKEN = {
    ("bitnet_b1_58-tiny", "iq1_bn"),
    ("bitnet_b1_58-tiny", "iq2_bn"),
    ("bitnet-b1.58-2B-4T-tiny", "q2_0"),
}


def convert(model: Path, path: Path, type_name: str, **options: object) -> Path:
    """A file of any type that some runner takes for the model. Only a refusal that is known skips a test."""
    if (model.name, type_name) in NOT_TAKEN:
        with pytest.raises(BitconvError):
            bitconv.convert(model, path, type=type_name, **options)
        pytest.skip(f"no runner takes {type_name} for this model")
    runner = "bitnet.cpp" if model == MICROSOFT and type_name in ("tq1_0", "tq2_0") else None
    bitconv.convert(model, path, type=type_name, runner=runner, **options)
    return path


def logits_of(file: Path, tokens: np.ndarray, batch: int = 1000, **options: object) -> np.ndarray:
    gguf = read_gguf(file)
    model = ForwardPass(gguf, inspect_file(gguf), **options)
    cache = model.new_cache(len(tokens))
    parts = [model.logits(tokens[at : at + batch], cache) for at in range(0, len(tokens), batch)]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    bitconv.convert(MICROSOFT, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("type_name", ["i2_s", "iq1_bn"])
def test_the_perplexity_of_packed_types_is_pytorch_s(tmp_path: Path, checkpoint: Path, type_name: str) -> None:
    """iq1_bn has rounded scales; those with exact ones are i2_s to the last bit."""
    result = evaluate(convert(checkpoint, tmp_path / "out.gguf", type_name), TEXT)
    reference = REFERENCE[checkpoint.name]
    assert (result.tokens, result.scored) == (reference["tokens"], reference["scored"])
    assert result.perplexity == pytest.approx(reference["ppl"], rel=5e-3)
    assert result.perplexity == math.exp(result.nll)


@pytest.mark.slow
def test_the_perplexity_of_the_float_type_with_exact_scales_is_pytorch_s_closely(
    tmp_path: Path, checkpoint: Path
) -> None:
    file = convert(checkpoint, tmp_path / "out.gguf", "f32", embed_type="f32")
    assert evaluate(file, TEXT).perplexity == pytest.approx(REFERENCE[checkpoint.name]["ppl"], rel=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("type_name", "tolerance"), [("f16", 1e-3), ("bf16", 1.5e-3)])
def test_f16_and_bf16_differ_from_pytorch_by_their_rounded_scales_alone(
    tmp_path: Path, checkpoint: Path, type_name: str, tolerance: float
) -> None:
    """These types cannot hold the scales. A file with the same rounded scales in float32 computes the same bits."""
    file = convert(checkpoint, tmp_path / "out.gguf", type_name, embed_type="f32")
    assert evaluate(file, TEXT).perplexity == pytest.approx(REFERENCE[checkpoint.name]["ppl"], rel=tolerance)
    bitconv.repack(file, tmp_path / "i2_s.gguf", type="i2_s")
    tokens = np.arange(5, 45)
    assert np.array_equal(logits_of(file, tokens), logits_of(tmp_path / "i2_s.gguf", tokens))


@pytest.mark.slow
@pytest.mark.parametrize("type_name", EXACT)
def test_types_with_exact_scales_agree_to_the_last_bit(tmp_path: Path, checkpoint: Path, type_name: str) -> None:
    tokens = np.arange(5, 45)
    i2_s = logits_of(convert(checkpoint, tmp_path / "i2_s.gguf", "i2_s"), tokens)
    other = logits_of(convert(checkpoint, tmp_path / "other.gguf", type_name), tokens)
    assert np.array_equal(i2_s, other)


@pytest.mark.parametrize("model", [m for m in REFERENCE if m != "bitnet-b1.58-2B-4T-tiny-bf16"])
def test_the_likeliest_tokens_are_pytorch_s(tmp_path: Path, model: str) -> None:
    reference = REFERENCE[model]
    file = convert(FIXTURES / model, tmp_path / "out.gguf", "i2_s", embed_type="f32")
    logits = logits_of(file, np.array(reference["prompt_ids"]))[-1].astype(np.float64)
    found = logits - np.log(np.exp(logits).sum())
    assert found[reference["top5"]] == pytest.approx(reference["top5_logprob"], abs=0.1)  # one of them is from bfloat16
    assert logits.argmax() == reference["top5"][0]


def test_tokens_one_at_a_time_and_in_batches_are_the_same(good: Path) -> None:
    tokens = np.arange(100, 160)
    whole = logits_of(good, tokens)
    assert all(np.array_equal(logits_of(good, tokens, batch), whole) for batch in (1, 7))


def test_the_batch_does_not_change_what_is_scored(good: Path) -> None:
    once, parts = (evaluate(good, TEXT, max_tokens=300, window=100, batch=batch) for batch in (100, 33))
    assert once.scored == parts.scored == 297
    assert parts.nll == once.nll


def test_windows_that_overlap_score_each_token_once_after_what_precedes_it(good: Path) -> None:
    result = evaluate(good, TEXT, max_tokens=40, window=16, stride=6, batch=5)
    opened = read_gguf(good)
    tokens = load_tokenizer(opened.metadata, good).encode(TEXT.read_text(), add_special_tokens=False).ids[:40]
    windows = [(0, 1), (6, 16), (12, 22), (18, 28), (24, 34)]  # where each starts, and the first token that it scores
    expected = 0.0
    for start, first in windows:
        logits = logits_of(good, np.array(tokens[start : start + 16]))
        for position in range(first, start + 16):
            expected -= float(log_probabilities(logits[position - start - 1])[tokens[position]])
    assert (result.scored, result.stride) == (39, 6)
    assert result.nll == pytest.approx(expected / 39, rel=1e-12)


def test_a_stride_of_the_window_is_what_is_taken_without_one(good: Path) -> None:
    assert (
        evaluate(good, TEXT, max_tokens=70, window=32).nll
        == evaluate(good, TEXT, max_tokens=70, window=32, stride=32).nll
    )


@pytest.mark.parametrize("stride", [0, 33])
def test_a_stride_that_is_none_is_refused(good: Path, stride: int) -> None:
    with pytest.raises(bitconv.BitconvError, match="stride"):
        evaluate(good, TEXT, window=32, stride=stride)


def test_threads_do_not_change_a_bit(good: Path) -> None:
    tokens = np.arange(50)
    one = logits_of(good, tokens, threads=1)
    assert all(np.array_equal(one, logits_of(good, tokens, threads=threads)) for threads in (2, 3))


@pytest.mark.parametrize("family", ["microsoft", "llama"])
def test_the_older_name_and_an_embedding_of_another_type_compute_the_same(tmp_path: Path, family: str) -> None:
    """Bfloat16 values in float32."""
    model = make_checkpoint(tmp_path / "model", family)
    tokens = np.arange(30)
    files = [convert(model.path, tmp_path / f"{t}.gguf", "i2_s", embed_type=t) for t in ("bf16", "f32")]
    if family == "microsoft":
        older = Rebuilt(files[1])
        older.metadata = {k.replace("bitnet-b1.58.", "bitnet-25."): v for k, v in older.metadata.items()}
        older.metadata["general.architecture"] = "bitnet-25"
        files.append(older.write(tmp_path / "older.gguf"))
    first, *others = (logits_of(file, tokens) for file in files)
    assert all(np.array_equal(first, other) for other in others)


def test_a_tensor_that_fell_back_computes_nearly_the_same(tmp_path: Path) -> None:
    """Q8_0 has a float16 scale."""
    options = {"tensor_types": [("ffn_down", "q8_0")]}
    tokens = np.arange(50)
    packed = logits_of(convert(MICROSOFT, tmp_path / "i2_s.gguf", "i2_s"), tokens)
    mixed = logits_of(convert(MICROSOFT, tmp_path / "q8_0.gguf", "i2_s", **options), tokens)
    assert not np.array_equal(packed, mixed)
    assert np.abs(packed - mixed).mean() < 0.05


def test_float_activations_are_not_rounded(good: Path) -> None:
    exact = evaluate(good, TEXT, max_tokens=1024)
    without = evaluate(good, TEXT, max_tokens=1024, float_activations=True)
    assert (exact.activations, without.activations) == ("int8", "float32")
    assert without.nll != exact.nll
    assert without.nll == pytest.approx(exact.nll, rel=5e-3)


def test_rope_factors_divide_the_frequencies(tmp_path: Path) -> None:
    """All factors the same are a linear scaling: a model at positions 0, 2, 4 is one with the factor 1/2 at 0, 1, 2."""
    file = Rebuilt(convert(LLAMA, tmp_path / "plain.gguf", "i2_s"))
    plain = logits_of(tmp_path / "plain.gguf", np.arange(40))
    for factor, same in ((1.0, True), (0.5, False)):
        factors = np.full(32, factor, np.float32)
        changed = Rebuilt(tmp_path / "plain.gguf")
        changed.tensors.insert(1, ["rope_freqs.weight", (32,), 0, factors.tobytes()])
        logits = logits_of(changed.write(tmp_path / "changed.gguf"), np.arange(40))
        assert np.array_equal(logits, plain) == same
    halved = logits
    file.metadata["llama.rope.scaling.type"] = "linear"
    file.metadata["llama.rope.scaling.factor"] = np.float32(0.5)
    assert np.array_equal(logits_of(file.write(tmp_path / "linear.gguf"), np.arange(40)), halved)


def test_reports_progress_in_tokens(good: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(good, TEXT, max_tokens=250, window=100, batch=50, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(50, 200), (100, 200), (150, 200), (200, 200)]


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("factor", "value"), [(1e4, "Infinity"), (3e38, "NaN")])
def test_a_perplexity_beyond_floats_is_infinite_and_null_in_json(
    good: Path, tmp_path: Path, factor: float, value: str
) -> None:
    file = Rebuilt(good)
    norm = file.tensor("output_norm.weight")
    with np.errstate(over="ignore"):
        norm[3] = (np.frombuffer(norm[3], np.float32) * np.float32(factor)).tobytes()
    bad = file.write(tmp_path / "bad.gguf")
    assert json.dumps(evaluate(bad, TEXT, max_tokens=300).perplexity) == value
    for command in (["eval", bad, "--text", TEXT, "--max-tokens", 300], ["compare", bad, MICROSOFT]):
        result = CliRunner().invoke(app, [*map(str, command), "--json"])
        found = json.loads(result.stdout)
        assert result.stderr == ""
        assert found.get("perplexity") is None and found.get("file_perplexity") is None


def test_the_line_ends_of_a_text_are_kept(good: Path, tmp_path: Path) -> None:
    for name, end in (("lf", "\n"), ("crlf", "\r\n")):
        (tmp_path / name).write_bytes((f"one line{end}" * 100).encode())
    lf, crlf = (evaluate(good, tmp_path / name) for name in ("lf", "crlf"))
    assert lf.tokens != crlf.tokens


def test_refuses_no_threads(good: Path) -> None:
    with pytest.raises(BitconvError, match="threads=0: at least 1 is needed"):
        evaluate(good, TEXT, threads=0)


def test_refuses_a_text_shorter_than_a_window(good: Path) -> None:
    with pytest.raises(BitconvError, match="100 tokens, less than a window of 256; pass window=100"):
        evaluate(good, TEXT, max_tokens=100)


def test_refuses_a_text_that_is_not_utf_8(good: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"caf\xe9")
    with pytest.raises(BitconvError, match="not UTF-8"):
        evaluate(good, tmp_path / "text")


def test_refuses_a_faulty_file(good: Path, tmp_path: Path) -> None:
    file = Rebuilt(good)
    file.tensors.remove(file.tensor("blk.0.attn_sub_norm.weight"))
    with pytest.raises(BitconvError, match=r"blk\.0\.attn_sub_norm\.weight is missing; see bitconv verify"):
        evaluate(file.write(tmp_path / "bad.gguf"), TEXT)


def test_refuses_an_embedding_that_is_not_finite(good: Path, tmp_path: Path) -> None:
    file = Rebuilt(good)
    embedding = file.tensor("token_embd.weight")
    embedding[3] = embedding[3][:-2] + b"\x00\x7c"
    last = embedding[1][0] - 1
    with pytest.raises(BitconvError, match=f"the embedding of token {last} holds NaN or infinity"):
        logits_of(file.write(tmp_path / "bad.gguf"), np.array([3, last]))


def test_refuses_an_invalid_code(good: Path, tmp_path: Path) -> None:
    file = Rebuilt(good)
    tensor = file.tensor("blk.1.ffn_up.weight")
    tensor[3] = b"\xff" + tensor[3][1:]
    with pytest.raises(BitconvError, match=r"blk\.1\.ffn_up\.weight: row 0, column 0 holds an invalid code"):
        evaluate(file.write(tmp_path / "bad.gguf"), TEXT)
