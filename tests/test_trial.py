"""try: a runner that is right, ones with each known fault, and ones that do not load the file."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.commands.evaluate import log_probabilities
from bitconv.gguf import read_gguf
from bitconv.inference.forward import Floats, ForwardPass
from bitconv.inference.tokenizer import load_tokenizer
from bitconv.packed.inspection import inspect_file
from typer.testing import CliRunner

from forward_reference import Reference
from synthetic import FIXTURES
from test_doctor import make_program
from test_verify import Rebuilt

Model: TypeAlias = ForwardPass | Reference
MICROSOFT, LLAMA = "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("files")
    for name in (MICROSOFT, LLAMA):
        bitconv.convert(FIXTURES / name, directory / f"{name}.gguf")
    return {name: directory / f"{name}.gguf" for name in (MICROSOFT, LLAMA)}


class Runner:
    """llama-server as far as it is asked, or what serves OpenAI's completions alone; with a fault of the test's own.

    model: computes; tokenizer: splits; bos: puts the tokens around a prompt that the file asks for.
    """

    def __init__(self, file: Path, model: Callable[[Path], Model], *, openai: bool = False, bos: bool = True) -> None:
        self.model = model(file)
        self.tokenizer = load_tokenizer(read_gguf(file).metadata, file)
        self.openai = openai
        self.bos = bos

    def answer(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "the model"}]}
        if self.openai:
            return {"choices": [{"text": self.go_on(body["prompt"], body["max_tokens"])}]} if body else None
        if path == "/tokenize":
            return {"tokens": self.tokenizer.encode(body["content"], add_special_tokens=body["add_special"]).ids}
        if path == "/completion":
            ids = np.array(body["prompt"])
            row = log_probabilities(self.model.logits(ids, self.model.new_cache(len(ids)))[-1])
            top = np.argsort(-row)[: body["n_probs"]]
            told = [{"id": int(token), "logprob": float(row[token])} for token in top]
            return {"content": "", "completion_probabilities": [{"top_logprobs": told}]}
        return {"default_generation_settings": {}} if path == "/props" else {"status": "ok"}

    def go_on(self, prompt: str, count: int) -> str:
        ids = list(self.tokenizer.encode(prompt, add_special_tokens=self.bos).ids)
        start = len(self.tokenizer.decode(ids))
        for _ in range(count):
            ids.append(int(self.model.logits(np.array(ids), self.model.new_cache(len(ids)))[-1].argmax()))
        return str(self.tokenizer.decode(ids))[start:]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, runner: Runner, *arguments: object) -> None:
        self.runner = runner
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        answer = self.runner.answer(self.path, json.loads(self.rfile.read(length)) if length else None)
        data = json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(runner: Runner) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, runner))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def plain(file: Path, order: str | None = None, **options: Any) -> ForwardPass:
    opened = read_gguf(file)
    return ForwardPass(opened, inspect_file(opened, None, order), threads=1, **options)


class WithSilu(Reference):
    def activation(self, x: Floats) -> Floats:
        return x / (1 + np.exp(-x))


class WithoutSubNorms(Reference):
    def norm(self, x: Floats, name: str) -> Floats:
        return x if "sub_norm" in name else super().norm(x, name)


def changed(change: Callable[[Rebuilt], None]) -> Callable[[Path], ForwardPass]:
    """A runner that computes a file as if it were another one."""

    def model(file: Path) -> ForwardPass:
        rebuilt = Rebuilt(file)
        change(rebuilt)
        return plain(rebuilt.write(file.with_name(f"{time.monotonic_ns()}.gguf")))

    return model


def rope_base(rebuilt: Rebuilt) -> None:
    name = rebuilt.metadata["general.architecture"]
    assert rebuilt.metadata[f"{name}.rope.freq_base"] != np.float32(10_000)
    rebuilt.metadata[f"{name}.rope.freq_base"] = np.float32(10_000)


def inverted(rebuilt: Rebuilt) -> None:
    for tensor in rebuilt.tensors:
        if tensor[2] == 36:
            at = tensor[1][0] * tensor[1][1] // 4
            scale = np.frombuffer(tensor[3], "<f4", 1, at)
            tensor[3] = tensor[3][:at] + (1 / scale).astype("<f4").tobytes() + tensor[3][at + 4 :]


def other_pairs(heads: dict[str, int], rebuilt: Rebuilt) -> None:
    """Rows 2j and 2j + 1 of a head become those that were j and j + half."""
    for tensor in rebuilt.tensors:
        kind = tensor[0].split(".")[2] if tensor[0].startswith("blk.") else ""
        if kind in heads:
            rows, columns = tensor[1]
            size = rows * columns // 4
            codes = np.frombuffer(tensor[3][:size], np.uint8).reshape(heads[kind], 2, -1, columns // 4)
            tensor[3] = codes.swapaxes(1, 2).tobytes() + tensor[3][size:]


FAULTS: dict[str, tuple[str, Callable[[Path], Model], str]] = {
    "silu for relu2": (MICROSOFT, WithSilu, "it applies silu where the model has relu2"),
    "no sub-norms": (MICROSOFT, WithoutSubNorms, "it leaves out the sub-norms"),
    "another rope base": (LLAMA, changed(rope_base), "it rotates by the base 10000, and the file says 500000"),
    "inverted scales": (LLAMA, changed(inverted), "it divides by the scales of the weights"),
    "other pairs": (
        LLAMA,
        changed(partial(other_pairs, {"attn_q": 8, "attn_k": 4})),
        "it rotates other rows of q and k together",
    ),
    "order of arm64": (LLAMA, partial(plain, order="arm64"), "it reads I2_S in the byte order arm64"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name: str, files: dict[str, Path]) -> None:
    model, fault, says = FAULTS[name]
    calls: list[tuple[int, int]] = []
    with serving(Runner(files[model], fault)) as url:
        found = bitconv.try_runner(files[model], url, threads=1, progress=lambda *now: calls.append(now))
    (trial,) = found.trials
    assert (trial.verdict, trial.measured, trial.tokens) == ("wrong", "next tokens", True)
    assert trial.difference is not None and trial.limit is not None and trial.difference > 2 * trial.limit
    assert len(trial.causes) == 1 and trial.causes[0].startswith(says)
    assert calls[-1][0] == calls[-1][1] and not found.right


@pytest.mark.parametrize("model", [MICROSOFT, LLAMA])
@pytest.mark.parametrize("options", [{}, {"float_activations": True}])
def test_a_runner_that_computes_the_model_is_right(
    model: str, options: dict[str, bool], files: dict[str, Path]
) -> None:
    with serving(Runner(files[model], partial(plain, **options))) as url:
        (trial,) = bitconv.try_runner(files[model], url, threads=1).trials
    assert (trial.verdict, trial.tokens, trial.causes) == ("right", True, ())
    assert trial.difference is not None and trial.limit is not None and trial.difference < trial.limit / 2


def test_what_no_known_fault_explains_is_said(files: dict[str, Path]) -> None:
    with serving(Runner(files[LLAMA], changed(partial(other_pairs, {"attn_v": 4})))) as url:
        (trial,) = bitconv.try_runner(files[LLAMA], url, threads=1).trials
    assert trial.causes == ("it computes something else, and no known fault has its numbers",)


def test_another_pre_tokenizer_is_named(files: dict[str, Path]) -> None:
    runner = Runner(files[LLAMA], plain)
    metadata = {**read_gguf(files[LLAMA]).metadata, "tokenizer.ggml.pre": "gpt-2"}
    runner.tokenizer = load_tokenizer(metadata, files[LLAMA])
    with serving(runner) as url:
        (trial,) = bitconv.try_runner(files[LLAMA], url, threads=1).trials
    assert (trial.verdict, trial.tokens) == ("wrong", False)
    assert trial.causes[0] == "it splits texts otherwise than the file's own tokenizer"
    assert "and the file says llama-bpe" in trial.causes[1]


@pytest.mark.parametrize("bos", [True, False])
def test_where_only_text_comes_back_it_is_compared(bos: bool, files: dict[str, Path]) -> None:
    with serving(Runner(files[LLAMA], plain, openai=True, bos=bos)) as url:
        (trial,) = bitconv.try_runner(files[LLAMA], url, threads=1).trials
    assert (trial.measured, trial.tokens) == ("continuations", None)
    if bos:
        assert (trial.verdict, trial.difference) == ("right", 0)
    else:
        assert trial.causes == ("it does not put the begin token in front of a prompt, which the file asks for",)


def test_the_forward_pass_is_as_before_when_a_fault_has_been_tried(files: dict[str, Path]) -> None:
    from bitconv.commands.trial.faults import known_faults

    model, ids = plain(files[MICROSOFT]), np.arange(10, 20)
    expected = model.logits(ids, model.new_cache(10))
    faults = list(known_faults(model))
    assert len(faults) >= 8
    for fault in faults:
        faulty = fault.put()
        assert not np.array_equal(faulty.logits(ids, faulty.new_cache(10)), expected), fault.says
        np.testing.assert_array_equal(model.logits(ids, model.new_cache(10)), expected)


@pytest.mark.runners
@pytest.mark.parametrize(("type_name", "verdict"), [("tq1_0", "right"), ("q2_0", "right"), ("i2_s", "cannot load")])
def test_llama_cpp_computes_its_types_and_loads_no_other(type_name: str, verdict: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    bitconv.convert(FIXTURES / LLAMA, tmp_path / "out.gguf", type=type_name)
    (trial,) = bitconv.try_runner(tmp_path / "out.gguf", "xllamacpp", threads=1).trials
    assert trial.verdict == verdict
    if verdict == "right":
        assert trial.difference is not None and trial.limit is not None and trial.difference < trial.limit / 2
        assert trial.tokens and not trial.causes
    else:
        assert trial.causes[0].startswith("llama.cpp does not compute i2_s") and "failed to load" in trial.causes[1]


@pytest.mark.runners
@pytest.mark.parametrize(
    ("name", "type_name", "verdict"),
    [
        (LLAMA, "iq2_bn", "right"),
        (MICROSOFT, "iq1_bn", "right"),
        (LLAMA, "tq2_0", "cannot load"),
        (LLAMA, "i2_s", "cannot load"),
        (MICROSOFT, "i2_s", "wrong"),
    ],
)
def test_ik_llama_cpp_computes_its_types_and_no_other(name: str, type_name: str, verdict: str, tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    bitconv.convert(FIXTURES / name, tmp_path / "out.gguf", type=type_name)
    (trial,) = bitconv.try_runner(tmp_path / "out.gguf", "ik-llama-cpp-python", threads=1).trials
    assert trial.verdict == verdict, trial
    says = f"ik_llama.cpp does not compute {type_name}: bitconv repack makes a file for it"
    assert trial.causes[:1] == (() if verdict == "right" else (says,))


@pytest.mark.runners
@pytest.mark.skipif("BITCONV_BITNET_CPP" not in os.environ, reason="BITCONV_BITNET_CPP names no binary")
def test_bitnet_cpp_computes_i2_s(files: dict[str, Path]) -> None:
    """llama-perplexity of bitnet.cpp, and llama-cli where it lies beside it."""
    binary = Path(os.environ["BITCONV_BITNET_CPP"])
    for path in filter(Path.is_file, (binary, binary.with_name("llama-cli"))):
        (trial,) = bitconv.try_runner(files[LLAMA], path, threads=1).trials
        assert (trial.verdict, trial.project) == ("right", "bitnet.cpp"), trial


def fake(path: Path, help: str, code: str) -> Path:
    """A program whose --help is that of one of llama.cpp's."""
    program = make_program(path, "version: 1")
    program.write_text(f'#!/bin/sh\ncase " $* " in *" --help "*) echo "{help}"; exit 0;; esac\n{code}\n')
    return program


@pytest.mark.parametrize(
    ("help", "code", "cause"),
    [
        ("--no-display-prompt", "echo 'error: unknown model architecture' >&2; exit 1", "unknown model architecture"),
        ("--ppl-stride", "echo 'llama_model_load: error: bad type'; exit 0", "bad type"),
        ("--slots", "echo 'error: no such thing'; exit 3", "no such thing"),
        ("--show-count", "kill -SEGV $$", "it crashes, with signal 11"),
    ],
)
def test_a_program_that_does_not_load_the_file_is_said_to(
    help: str, code: str, cause: str, files: dict[str, Path], tmp_path: Path
) -> None:
    program = fake(tmp_path / "llama-x", help, code)
    result = CliRunner().invoke(app, ["try", str(files[LLAMA]), "--runner", str(program)])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith(f"{files[LLAMA]} in {program}") and "cannot load" in result.stdout
    assert cause in result.stdout


def test_llama_tokenize_is_compared_in_tokens_alone(files: dict[str, Path], tmp_path: Path) -> None:
    program = fake(tmp_path / "llama-tokenize", "--show-count", "echo '[1, 2, 3]'")
    (trial,) = bitconv.try_runner(files[LLAMA], program).trials
    assert (trial.verdict, trial.measured, trial.tokens) == ("wrong", None, False)


def test_a_server_that_does_not_get_ready_is_ended_with_all_that_it_started(
    files: dict[str, Path], tmp_path: Path
) -> None:
    program = fake(
        tmp_path / "llama-server", "--slots", f"trap '' TERM\nsleep 600 &\necho $! > {tmp_path}/child\nwait\nwait"
    )
    (trial,) = bitconv.try_runner(files[LLAMA], program, timeout=1).trials
    assert (trial.verdict, trial.causes) == ("cannot load", ("it was not ready after 1 seconds",))
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--runner", "http://127.0.0.1:1"], "gives no answer"),
        (["--runner", "/nowhere/llama-cli"], "no such program; name a program or a URL"),
        (["--runner", "xllamacpp"], "xllamacpp is not installed; pip install xllamacpp"),
        (["--runner", "ik-llama-cpp-python"], "ik-llama-cpp-python is not installed"),
        (["--runner", "/bin/true"], "is no program that can be asked"),
        (["--runner", "/etc/passwd"], "does not run: Permission denied"),
    ],
)
def test_a_runner_that_cannot_be_asked_is_one_line(
    arguments: list[str], cause: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["try", str(files[LLAMA]), *arguments])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and cause in result.stderr, result.stderr


class Stranger(Runner):
    """Answers something else at one path."""

    def __init__(self, file: Path, path: str, instead: Any, *, openai: bool = False) -> None:
        super().__init__(file, plain, openai=openai)
        self.path, self.instead = path, instead

    def answer(self, path: str, body: Any) -> Any:
        return self.instead if path == self.path else super().answer(path, body)


@pytest.mark.parametrize(
    ("path", "instead", "openai"),
    [
        ("/tokenize", {"tokens": None}, False),
        ("/tokenize", {"tokens": ["x"]}, False),
        ("/tokenize", [], False),
        ("/completion", {"completion_probabilities": 5}, False),
        ("/completion", {"completion_probabilities": [{"top_logprobs": [{"id": 1e400, "logprob": 0}]}]}, False),
        ("/completion", "text", False),
        ("/v1/models", {"data": [{"name": "x"}]}, True),
        ("/v1/completions", {"choices": []}, True),
    ],
)
def test_answers_of_another_form_are_one_line(path: str, instead: Any, openai: bool, files: dict[str, Path]) -> None:
    with serving(Stranger(files[LLAMA], path, instead, openai=openai)) as url:
        result = CliRunner().invoke(app, ["try", str(files[LLAMA]), "--runner", url])
    assert result.exit_code == 2 and "gives answers of another form" in result.stderr, result.output
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("told", [[{"id": 5, "logprob": "NaN"}], [{"id": 1 << 40, "logprob": 0.0}], []])
def test_numbers_that_make_no_sense_are_wrong_and_no_fault_of_bitconv(told: Any, files: dict[str, Path]) -> None:
    runner = Stranger(files[LLAMA], "/completion", {"completion_probabilities": [{"top_logprobs": told}]})
    with serving(runner) as url:
        (trial,) = bitconv.try_runner(files[LLAMA], url, threads=1).trials
    assert trial.verdict == "wrong" and trial.difference == float("inf")


def test_without_a_runner_anywhere_it_is_one_line(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("bitconv.commands.trial.trial.find_wheels", lambda: iter(()))
    result = CliRunner().invoke(app, ["try", str(files[LLAMA])])
    assert result.exit_code == 2 and "no runner is on PATH" in result.stderr


def test_the_json_has_every_trial(files: dict[str, Path]) -> None:
    with serving(Runner(files[LLAMA], plain)) as url:
        told = json.loads(CliRunner().invoke(app, ["try", str(files[LLAMA]), "--runner", url, "--json"]).stdout)
    assert told["right"] is True and told["trials"][0]["runner"] == url
