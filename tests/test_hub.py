"""Models by their id: what is downloaded, and the one line for each way in which that fails."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import bitconv
import huggingface_hub
import pytest
from bitconv.checkpoint.hub import local_model
from bitconv.checkpoint.hub_ranges import PartialFiles
from bitconv.cli import app
from typer.testing import CliRunner

from gguf_file import File
from hub_server import Hub, Repository, commit
from synthetic import FIXTURES, make_checkpoint
from tokenizer_support import write_json

pytestmark = pytest.mark.slow

ID = "someone/Ternary-Toy-0.5M-Chat"
NAME = ID.rpartition("/")[2]
# All that conversion reads of the checkpoint `published`.
NEEDED = {
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "model.safetensors",
}
# What else such repositories hold.
IDLE = (
    ".gitattributes",
    "LICENSE",
    "config.json.bak",
    "flax_model.msgpack",
    "ggml-model-i2_s.gguf",
    "model-00001-of-00002.safetensors",
    "modeling_bitnet.py",
    "onnx/config.json",
    "onnx/model.onnx",
    "optimizer.pt",
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "rng_state.pth",
    "tf_model.h5",
    "training_args.bin",
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]

NOT_OURS = re.compile(r"HF_|HUGGING|TRANSFORMERS_OFFLINE|.*proxy", re.IGNORECASE)
MAIN = "from bitconv.cli import main; main()"
# The library waits before it asks a Hub again, and hands on what it has received only in pieces of 10 MB.
IMPATIENT = "import huggingface_hub.constants as c, time; c.DOWNLOAD_CHUNK_SIZE, time.sleep = 1000, lambda s: None; "
IMPATIENT += MAIN


def publish(directory: Path) -> Path:
    """A checkpoint with everything in it that conversion reads, and much that it does not."""
    make_checkpoint(directory, "llama")
    shutil.copy(FIXTURES / "Llama3-1.58-tiny" / "special_tokens_map.json", directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Toy\n")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    for name in IDLE:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("not to be read")
    return directory


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("published") / NAME)


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    with Hub() as server:
        server.repositories[ID] = Repository({"main": published})
        yield server


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process and in tmp_path / "work". huggingface_hub has read its environment long before."""
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
    for name in [name for name in os.environ if NOT_OURS.match(name)]:
        monkeypatch.delenv(name)
    huggingface_hub.close_session()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # a Hub that fails is asked again for half a minute
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the library is offline."""
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """For a process that finds the Hub as a user's does, but for the user's own settings and proxies."""
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    return {name: value for name, value in os.environ.items() if not NOT_OURS.match(name)} | ours


@pytest.fixture
def process(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run Python code in a process of its own."""

    def process(code: str, *arguments: object, limit: int | None = None, **variables: str) -> Result:
        def limit_file_size() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | variables,
            timeout=120,
            preexec_fn=limit_file_size,
        )
        return Result(result.returncode, result.stdout, result.stderr)

    return process


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"


def snapshot(cache: Path, revision: str = "main") -> Path:
    return cache / f"models--{ID.replace('/', '--')}" / "snapshots" / commit(revision)


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def assert_refused(result: Result, *parts: str) -> None:
    assert result.out == ""
    assert result.err.startswith("bitconv: error: ") and result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err
    assert result.code == 2


def test_a_model_by_its_id_becomes_the_file_that_its_directory_becomes(
    hub: Hub, process: Run, published: Path, cache: Path, tmp_path: Path
) -> None:
    result = process(MAIN, "convert", ID, tmp_path / "out.gguf")
    assert (result.code, result.err) == (0, "")
    assert sorted(hub.downloads()) == sorted(NEEDED)
    assert files(snapshot(cache)) == NEEDED
    bitconv.convert(published, tmp_path / "local.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert File(tmp_path / "out.gguf").metadata["general.name"] == "Ternary Toy 0.5M Chat"


def test_a_directory_in_the_hub_s_cache_has_the_name_of_its_model(published: Path, tmp_path: Path) -> None:
    directory = snapshot(tmp_path)
    shutil.copytree(published, directory)
    bitconv.convert(directory, tmp_path / "out.gguf")
    assert File(tmp_path / "out.gguf").metadata["general.name"] == "Ternary Toy 0.5M Chat"


def test_of_an_index_the_shards_that_it_names_are_downloaded(hub: Hub, run: Run, cache: Path, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", shards=2)
    for name in ("model-00003-of-00003.safetensors", "pytorch_model.bin"):
        (model.path / name).write_text("not to be read")
    hub.repositories[ID] = Repository({"main": model.path})
    assert run("convert", ID, tmp_path / "out.gguf").code == 0
    weights = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert hub.downloads()[-3:] == weights
    assert {name for name in files(snapshot(cache)) if name.startswith(("model", "pytorch"))} == set(weights)
    assert "tokenizer.model" in hub.downloads()


def test_where_there_is_no_safetensors_pytorch_files_are_downloaded(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm").path
    (model / "model.safetensors").unlink()
    (model / "optimizer.bin").write_text("not to be read")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for name in index["weight_map"].values():
        (model / name).write_text("some weights")
    hub.repositories[ID] = Repository({"main": model})
    found = {name for name in files(local_model(ID)) if ".bin" in name}
    assert found == {"pytorch_model.bin.index.json", *index["weight_map"].values()}


def test_all_shards_without_their_index_are_downloaded(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", shards=2).path
    (model / "model.safetensors.index.json").unlink()
    hub.repositories[ID] = Repository({"main": model})
    assert run("convert", ID, tmp_path / "out.gguf").code == 0
    assert hub.downloads()[-2:] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (model / "model-00002-of-00002.safetensors").unlink()
    hub.repositories[ID] = Repository({"other": model})
    result = run("convert", ID, "out.gguf", "--revision", "other")
    assert_refused(result, f"{ID}: model-00002-of-00002.safetensors: missing; 1 of 2 shards are there")


@pytest.mark.parametrize(
    ("name", "cause"),
    [("adapter_model.safetensors", "LoRA adapter"), ("consolidated.00.pth", "original Llama layout")],
)
def test_what_lies_in_place_of_weights_is_not_downloaded(
    hub: Hub, run: Run, tmp_path: Path, name: str, cause: str
) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm").path
    (model / "model.safetensors").rename(model / name)
    hub.repositories[ID] = Repository({"main": model})
    assert_refused(run("convert", ID, "out.gguf"), f"{ID}/{name}: {cause}: ")
    assert hub.downloads() == ["config.json"]


def test_an_index_that_names_a_file_elsewhere_is_refused(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "1bitllm", shards=2).path
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../model.safetensors"}}')
    hub.repositories[ID] = Repository({"main": model})
    assert_refused(run("convert", ID, "out.gguf"), "is not in the model directory")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "missing.safetensors"}}')
    hub.repositories[ID] = Repository({"other": model})
    assert_refused(run("convert", ID, "out.gguf", "--revision", "other"), f"{ID}: missing.safetensors: missing")


def test_an_embedding_model_s_pooling_is_downloaded(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "embedding", head_dim=128).path
    pooling = {"path": "1_Pooling/", "type": "sentence_transformers.models.Pooling"}
    write_json(model, modules=[{"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}, pooling])
    write_json(model / "1_Pooling", config={"pooling_mode_mean_tokens": True})
    hub.repositories[ID] = Repository({"main": model})
    assert run("convert", ID, tmp_path / "out.gguf").code == 0
    assert File(tmp_path / "out.gguf").metadata["qwen3.pooling_type"] == 1
    assert bitconv.verify(tmp_path / "out.gguf", against=model).right
    for revision, path, cause in (
        ("above", "../1_Pooling", "is not in the model directory"),
        ("root", str(model / "1_Pooling"), "is not in the model directory"),
        ("gone", "3_Pooling", "3_Pooling/config.json: missing, though modules.json names it"),
    ):
        write_json(model, modules=[{**pooling, "path": path}])
        hub.repositories[ID] = Repository({revision: model})
        assert_refused(run("convert", ID, "none.gguf", "--revision", revision), cause)


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, run: Run, cache: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / NAME, "llama", seed=1).path
    hub.repositories[ID].revisions["packed"] = other
    bitconv.convert(other, tmp_path / "local.gguf")
    for revision in ("packed", commit("packed")):
        assert run("convert", ID, tmp_path / "out.gguf", "--force", "--revision", revision).code == 0
        assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert hub.downloads().count("model.safetensors") == 1
    assert not snapshot(cache).exists()


def test_verify_and_kernel_config_take_ids(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.repositories[ID].private = True
    options = (ID, "--revision", "main", "--token", hub.token)
    assert run("convert", *options, tmp_path / "out.gguf", "--embed-type", "f32").code == 0
    result = run("verify", tmp_path / "out.gguf", "--against", *options, "-v")
    assert (result.code, result.err) == (0, "")
    assert "trits equal to the checkpoint's" in result.out
    result = run("kernel-config", *options, "--type", "tl2", "--leave-out", "-o", tmp_path / "k.ini")
    assert (result.code, result.err) == (0, "")
    assert hub.downloads().count("model.safetensors") == 1


@pytest.mark.torch
def test_compare_takes_ids(run: Run, hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    hub.repositories[ID].private = True
    options = (ID, "--revision", "main", "--token", hub.token)
    assert run("convert", *options, tmp_path / "out.gguf", "--embed-type", "f32").code == 0
    result = run("compare", tmp_path / "out.gguf", *options)
    assert (result.code, result.err) == (0, "")
    assert f"agrees with {ID}" in result.out


def test_the_token_goes_to_the_hub_alone(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.repositories[ID].private = True
    assert run("convert", ID, "out.gguf", "--token", hub.token).code == 0
    assert {path for _, path, token in hub.requests if not token} == {
        path for _, path, _ in hub.requests if path.startswith("/storage/")
    }
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if hub.token.encode() in path.read_bytes()]


def test_the_token_may_come_from_the_environment(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[ID].private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert run("convert", ID, "out.gguf").code == 0


def test_a_wrong_token_is_one_line_without_it(run: Run) -> None:
    result = run("convert", ID, "out.gguf", "--token", "hf_another")
    assert_refused(result, ID, "does not know this token")
    assert "hf_another" not in result.err
    for token in ("hf_two\nlines", "hf_é"):
        result = run("convert", ID, "out.gguf", "--token", token)
        assert_refused(result, "--token: is empty, or has characters that no token has")
        assert "hf_" not in result.err


@pytest.mark.parametrize("model", ["someone/nothing", "someone/private"])
def test_a_wrong_id_is_one_line(hub: Hub, run: Run, model: str) -> None:
    hub.repositories["someone/private"] = Repository(hub.repositories[ID].revisions, private=True)
    result = run("convert", model, "out.gguf")
    assert_refused(result, f"{model}: no such directory, and no such model on the Hub; if it is private", "--token")


def test_a_wrong_revision_is_one_line(run: Run) -> None:
    result = run("convert", ID, "out.gguf", "--revision", "nowhere")
    assert_refused(result, f"{ID}: has no revision nowhere")


def test_a_gated_model_is_one_line_that_says_where_to_ask(hub: Hub, run: Run, offline: Callable[[], None]) -> None:
    hub.repositories[ID].gated = True
    assert_refused(run("convert", ID, "out.gguf"), ID, f"is gated; accept its terms at {hub.endpoint}/{ID}", "--token")
    assert run("convert", ID, "out.gguf", "--token", hub.token).code == 0
    offline()
    assert run("verify", "out.gguf", "--against", ID).code == 0


@pytest.mark.parametrize(("missing", "hint"), [("config.json", ""), ("model.safetensors", "GGUF")])
def test_a_repository_without_a_checkpoint_is_one_line(
    hub: Hub, run: Run, tmp_path: Path, missing: str, hint: str
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama").path
    (model / missing).unlink()
    if hint:
        (model / "model-i2_s.gguf").write_text("not to be read")
    hub.repositories[ID] = Repository({"main": model})
    result = run("convert", ID, "out.gguf")
    assert_refused(result, f"{ID}: is no checkpoint: holds no", missing)
    assert ("it holds GGUF files" in result.err) == bool(hint)
    assert set(hub.downloads()) <= {"config.json"}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration"),
        ({"quantization_config": {"quant_method": "awq"}}, "AWQ"),
        ({"architectures": ["Qwen3_5ForCausalLM"], "layer_types": ["linear_attention"]}, "hybrid attention"),
        ({"architectures": ["OLMoModelForCausalLM"], "layer_norm_type": "default"}, "OLMo-Bitnet with LayerNorm"),
    ],
)
def test_what_config_json_refuses_is_not_downloaded(
    hub: Hub, run: Run, tmp_path: Path, changes: dict[str, object], cause: str
) -> None:
    model = make_checkpoint(tmp_path / "model", "llama").path
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    hub.repositories[ID] = Repository({"main": model})
    assert_refused(run("convert", ID, "out.gguf"), cause)
    assert hub.downloads() == ["config.json"]


@pytest.mark.parametrize("kind", ["embedding", "qwen3"])
def test_what_only_tensors_tell_is_downloaded(hub: Hub, run: Run, tmp_path: Path, kind: str) -> None:
    hub.repositories[ID] = Repository({"main": make_checkpoint(tmp_path / "model", kind).path})
    assert "model.safetensors" in files(local_model(ID))


def test_a_revision_or_token_that_is_empty_is_one_line(hub: Hub, run: Run) -> None:
    """As from a variable of the shell that is not set."""
    assert_refused(run("convert", ID, "out.gguf", "--revision", ""), "--revision: is empty")
    assert_refused(run("convert", ID, "out.gguf", "--token", ""), "--token: is empty")
    assert hub.requests == []


def test_a_hub_that_fails_is_one_line(hub: Hub, run: Run) -> None:
    hub.status = 503
    assert_refused(run("convert", ID, "out.gguf"), ID, "503", "The Hub is on fire")


def test_a_hub_that_cannot_be_reached_is_one_line_even_with_a_cache(process: Run) -> None:
    assert process(MAIN, "convert", ID, "out.gguf").code == 0
    result = process(IMPATIENT, "convert", ID, "out.gguf", "--force", HF_ENDPOINT="http://127.0.0.1:1")
    assert_refused(result, ID, "http://127.0.0.1:1", "refused", "HF_HUB_OFFLINE=1")


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, process: Run, published: Path, tmp_path: Path) -> None:
    hub.truncate["model.safetensors"] = [10_000, 20_000]
    result = process(IMPATIENT, "convert", ID, tmp_path / "out.gguf")
    assert (result.code, result.err) == (0, "")
    assert hub.ranges == ["bytes=10000-", "bytes=30000-"]
    bitconv.convert(published, tmp_path / "local.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_a_lost_connection_is_one_line_and_the_next_run_goes_on(
    hub: Hub, process: Run, cache: Path, tmp_path: Path
) -> None:
    hub.truncate["model.safetensors"] = [10_000] + [0] * 10
    result = process(IMPATIENT, "convert", ID, tmp_path / "out.gguf")
    assert_refused(result, f"{ID}: model.safetensors: cannot be downloaded from {hub.endpoint}", "run it again")
    assert "Signature" not in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out.gguf").exists()
    assert not [name for name in files(cache) if "incomplete" in name]
    hub.truncate.clear()
    hub.requests.clear()
    assert process(MAIN, "convert", ID, tmp_path / "out.gguf").code == 0
    assert hub.downloads() == ["model.safetensors"]


def test_a_disk_that_is_full_is_one_line(process: Run, cache: Path) -> None:
    result = process(MAIN, "convert", ID, "out.gguf", limit=100_000)
    assert_refused(result, f"{ID}: model.safetensors: cannot be stored in {cache}: File too large")
    assert not [name for name in files(cache) if "incomplete" in name]


def test_a_disk_that_is_too_small_is_one_line_before_the_download(hub: Hub, process: Run, cache: Path) -> None:
    small = "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1_000_000); "
    result = process(small + MAIN, "convert", ID, "out.gguf")
    assert_refused(result, f"{ID}: model.safetensors: cannot be stored in {cache}: Not enough free disk space")
    assert "model.safetensors" not in hub.downloads()


def test_a_cache_that_cannot_be_written_is_one_line(run: Run, cache: Path) -> None:
    cache.parent.write_text("")
    assert_refused(run("convert", ID, "out.gguf"), ID, f"cannot be stored in {cache}: Not a directory")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_download_and_the_next_run_goes_on(
    hub: Hub, process: Run, environment: dict[str, str], cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    hub.stall = "model.safetensors"
    stopped = subprocess.Popen(
        [sys.executable, "-c", MAIN, "convert", ID, str(tmp_path / "out.gguf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests may have been started to ignore it
    )
    assert hub.stalled.wait(60)
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=60)
    assert (stopped.returncode, out, err) == (128 + number, "", "bitconv: error: interrupted\n")
    assert not [name for name in files(cache) if "incomplete" in name]
    hub.stall = None
    hub.requests.clear()
    assert process(MAIN, "convert", ID, tmp_path / "out.gguf").code == 0
    assert hub.downloads() == ["model.safetensors"]


def test_offline_the_cache_is_taken_and_the_hub_left_alone(hub: Hub, process: Run, tmp_path: Path) -> None:
    assert process(MAIN, "convert", ID, tmp_path / "out.gguf").code == 0
    before = (tmp_path / "out.gguf").read_bytes()
    hub.requests.clear()
    result = process(MAIN, "convert", ID, tmp_path / "out.gguf", "--force", HF_HUB_OFFLINE="1")
    assert (result.code, result.err) == (0, "")
    assert hub.requests == []
    assert (tmp_path / "out.gguf").read_bytes() == before


def test_offline_what_is_not_in_the_cache_is_one_line(
    hub: Hub, run: Run, offline: Callable[[], None], cache: Path
) -> None:
    offline()
    assert_refused(run("convert", ID, "out.gguf"), f"{ID}: not in the cache in {cache}", "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_offline_an_incomplete_model_is_one_line(run: Run, offline: Callable[[], None], cache: Path) -> None:
    assert run("convert", ID, "out.gguf").code == 0
    (snapshot(cache) / "chat_template.jinja").unlink()
    offline()
    result = run("convert", ID, "out.gguf", "--force")
    assert_refused(result, f"{ID}: chat_template.jinja: not in the cache")


def test_offline_a_model_whose_files_are_not_known_is_one_line(
    run: Run, offline: Callable[[], None], cache: Path, published: Path
) -> None:
    """A cache that another tool filled, file by file."""
    shutil.copytree(published, snapshot(cache))
    refs = snapshot(cache).parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit("main"))
    offline()
    assert_refused(run("convert", ID, "out.gguf"), ID, "does not say which files it has", "unset HF_HUB_OFFLINE")


def test_a_path_that_exists_wins_over_an_id(hub: Hub, run: Run, published: Path) -> None:
    shutil.copytree(published, ID)
    assert run("convert", ID, "out.gguf").code == 0
    assert_refused(run("convert", ID, "o.gguf", "--revision", "main"), f"{ID}: is no model on the Hub", "--revision")
    assert hub.requests == []


def test_a_directory_needs_no_huggingface_hub(process: Run, published: Path) -> None:
    code = "import sys, bitconv; bitconv.convert(sys.argv[1], 'o.gguf'); print('huggingface_hub' in sys.modules)"
    assert process(code, published) == Result(0, "False\n", "")


@pytest.mark.parametrize("model", ["nothing", "./some/thing", "some/thing/", "some/thing/more", "a--b/c", "a/b.git"])
def test_what_is_no_id_is_a_missing_directory(hub: Hub, run: Run, model: str) -> None:
    assert_refused(run("convert", model, "out.gguf"), "no such model directory")
    assert hub.requests == []


def test_a_revision_of_nothing_is_one_line(run: Run) -> None:
    assert_refused(run("verify", "out.gguf", "--revision", "main"), "--revision is for --against MODEL")


def test_an_output_that_exists_is_found_before_the_download(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("precious")
    assert_refused(run("convert", ID, tmp_path / "out.gguf"), "--force")
    assert hub.requests == []


def test_on_a_terminal_each_download_shows_its_progress(environment: dict[str, str], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "convert", ID, "out.gguf"],
        stderr=theirs,
        stdout=theirs,
        cwd=tmp_path,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(60) == 0
    assert b"model.safetensors: 100%" in shown


def requested(hub: Hub, name: str) -> int:
    """The bytes of a file that were asked for."""
    spans = [text.removeprefix("bytes=").split("-") for text in hub.ranges]
    return sum(int(end) - int(start) + 1 for start, end in spans) if name in hub.downloads() else 0


@pytest.mark.parametrize(
    ("kind", "options", "stored"),
    [
        ("llama", [], {}),
        ("microsoft", ["--type", "tl2"], {"hidden": 384, "ffn": 768}),
        ("plain_qwen3", ["--type", "q2_0"], {"ternary_floats": True, "marked": False, "group": 128, "head_dim": 64}),
        ("1bitllm", ["--type", "auto"], {"shards": 2}),
        ("1bitllm", ["--ternarize", "absmax", "--type", "q2_0"], {}),
    ],
)
def test_a_dry_run_of_a_model_on_the_hub_is_that_of_its_directory_and_downloads_no_weights(
    hub: Hub, run: Run, cache: Path, tmp_path: Path, kind: str, options: list[str], stored: dict[str, object]
) -> None:
    model = make_checkpoint(tmp_path / NAME, kind, vocab=4096, **stored)
    hub.repositories[ID] = Repository({"main": model.path})
    seen = run("convert", ID, "out.gguf", *options, "--dry-run")
    assert (seen.code, seen.err) == (0, "")
    note = "note: the weights were not downloaded: headers were read, scales, and rows of float weights\n"
    assert seen.out.replace(note, "") == run("convert", model.path, "out.gguf", *options, "--dry-run").out
    assert note in seen.out
    assert not [name for name in files(cache) if name.endswith(".safetensors")]


def test_of_a_model_on_the_hub_headers_are_read(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / NAME, "llama", vocab=20_000)
    weights = model.path / "model.safetensors"
    hub.repositories[ID] = Repository({"main": model.path})
    for name in (ID, f"hf://{ID}"):
        there = json.loads(run("inspect", name, "--json").out)
        here = json.loads(run("inspect", model.path, "--headers", "--json").out)
        assert there.pop("path") == name and here.pop("path") == str(model.path)
        assert [note[:31] for note in there.pop("notes")] == ["the weights were not downloaded"]
        assert here.pop("notes") == [] and there == here
    assert 0 < requested(hub, weights.name) < weights.stat().st_size / 4


def test_of_a_gguf_file_on_the_hub_the_header_is_read(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / NAME, "llama", vocab=20_000)
    (model.path / "q").mkdir()
    file = model.path / "q" / "some.gguf"
    assert run("convert", model.path, file).code == 0
    hub.repositories[ID] = Repository({"main": model.path, "v2": model.path}, private=True)
    here = json.loads(run("inspect", file, "--headers", "--json").out)
    for uri, options in (
        (f"hf://{ID}/q/some.gguf", []),
        (f"hf://{ID}@v2/q/some.gguf", []),
        (f"hf://{ID}/q/some.gguf", ["--revision", commit("v2")]),
    ):
        there = json.loads(run("inspect", uri, *options, "--token", hub.token, "--json").out)
        assert there == here | {"path": uri}
    assert 0 < requested(hub, file.name) < file.stat().st_size / 2


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (f"hf://{ID}/none.gguf", "has no file none.gguf"),
        ("hf://someone/nothing/x.gguf", "no such model on the Hub"),
        (f"hf://{ID}/../x.gguf", "expected hf://OWNER/NAME/FILE"),
        (f"hf://{ID}//tmp/x.gguf", "expected hf://OWNER/NAME/FILE"),
        (f"hf://{ID}/x/", "expected hf://OWNER/NAME/FILE"),
        ("hf://", "expected hf://OWNER/NAME/FILE"),
        ("hf://x", "expected hf://OWNER/NAME/FILE"),
        (f"hf://{ID}/README.md", "not a GGUF file"),
        (f"hf://{ID}@none/README.md", "has no revision none"),
        ("someone/nothing", "no such model on the Hub"),
    ],
)
def test_what_cannot_be_looked_into_on_the_hub_is_one_line(run: Run, path: str, cause: str) -> None:
    assert_refused(run("inspect", path), path.removeprefix("hf://").partition("@")[0][:15], cause)


def test_errors_name_the_hub_s_file_and_not_where_its_header_stood(hub: Hub, run: Run, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / NAME, "llama").path
    data = bytearray((model / "model.safetensors").read_bytes())
    data[9:12] = b"!!!"
    (model / "model.safetensors").write_bytes(data)
    hub.repositories[ID] = Repository({"main": model})
    result = run("convert", ID, "out.gguf", "--dry-run")
    assert_refused(result, f"error: hf://{ID}/model.safetensors: truncated or not a safetensors file")


def test_a_dry_run_takes_weights_that_are_in_the_cache(hub: Hub, run: Run) -> None:
    assert run("convert", ID, "out.gguf").code == 0
    hub.requests.clear()
    result = run("convert", ID, "again.gguf", "--dry-run")
    assert result.code == 0 and "not downloaded" not in result.out
    assert "model.safetensors" not in hub.downloads()


def test_a_server_without_ranges_is_one_line(hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.repositories[ID] = Repository({"main": make_checkpoint(tmp_path / NAME, "llama", vocab=20_000).path})
    hub.whole = True
    assert_refused(run("inspect", ID), "bytes came of 65536 that were asked for; download the model")


@pytest.mark.parametrize("name", ["/x", "../x", "a/../../x", "a//x", "./x", "a\\..\\x", ""])
def test_no_name_of_a_listing_leads_out_of_the_temporary_directory(name: str, tmp_path: Path) -> None:
    class Nothing:
        def cat_file(self, path: str, start: int, end: int, *, cache_type: str) -> bytes:
            return b""

    (tmp_path / "source").write_text("text")
    (tmp_path / "inside").mkdir()
    files = PartialFiles(tmp_path / "inside", Nothing(), "OWNER/NAME@COMMIT/")
    for put in (lambda: files.add(name, 5), lambda: files.copy(tmp_path / "source", name)):
        with pytest.raises(bitconv.BitconvError, match="is no name of a file in it"):
            put()
    assert {path.name for path in tmp_path.rglob("*")} == {"source", "inside"}
