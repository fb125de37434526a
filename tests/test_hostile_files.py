"""Model directories and files that somebody made to hang, to fill memory, or to be read where they should not be."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bitconv
import pytest
from bitconv import BitconvError
from bitconv.checkpoint.model_card import read_card
from bitconv.models.model import _Listed
from bitconv.system.files import open_input

from synthetic import Synthetic, make_checkpoint

SECONDS = 10
MEMORY = 4 << 30


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in little memory, for a short time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    command = [sys.executable, "-c", "from bitconv.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, preexec_fn=limit)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 600
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Synthetic:
    return make_checkpoint(tmp_path / "model", "llama", packed=False)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


# Every file of a model directory that is read.
READ = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool.jinja",
    "README.md",
)


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, make_endless, Path.mkdir])
@pytest.mark.parametrize("name", READ)
def test_what_is_no_regular_file_is_not_read(
    tmp_path: Path, model: Synthetic, name: str, make: Callable[[Path], None]
) -> None:
    file = model.path / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    make(file)
    words = "is a link that leads out" if make is make_endless else "expected a file"
    with pytest.raises(BitconvError, match=f"{Path(name).name}: .*{words}"):
        bitconv.convert(model.path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "modules.json", "pytorch_model.bin", "model.safetensors.index.json"]
)
def test_a_pipe_is_not_read_whatever_file_it_stands_for(tmp_path: Path, name: str) -> None:
    model = make_checkpoint(tmp_path / "model", "llama").path
    os.mkfifo(model / "pipe")
    with pytest.raises(BitconvError, match="pipe: is a device, a pipe or a socket"):
        os.close(open_input(model / "pipe", model))
    (model / "pipe").rename(model / name)
    if name.endswith((".bin", ".index.json")):
        (model / "model.safetensors").unlink()
    if name == "tokenizer.model":
        (model / "tokenizer.json").unlink()
    if name == "modules.json":
        return  # of embedding models alone
    with pytest.raises(BitconvError, match="is a device, a pipe or a socket"):
        bitconv.convert(model, tmp_path / "out.gguf")


@pytest.mark.parametrize("verb", ["verify", "repack", "export", "eval", "convert"])
def test_a_pipe_in_place_of_a_file_that_is_named(tmp_path: Path, verb: str) -> None:
    os.mkfifo(tmp_path / "in")
    arguments = {
        "verify": (),
        "repack": (tmp_path / "out", "--type", "tq2_0"),
        "export": (tmp_path / "out",),
        "eval": (tmp_path / "in",),
        "convert": (tmp_path / "out",),
    }[verb]
    assert run(verb, tmp_path / "in", *arguments).returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_text_and_a_kernel_config_that_are_pipes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", hidden=512, ffn=1024).path
    bitconv.convert(model, tmp_path / "in.gguf")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BitconvError, match="pipe: is a device"):
        bitconv.evaluate(tmp_path / "in.gguf", tmp_path / "pipe")
    with pytest.raises(BitconvError, match="pipe: is a device"):
        bitconv.repack(tmp_path / "in.gguf", tmp_path / "out.gguf", type="tl2", kernel_config=tmp_path / "pipe")


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_model_directory_is_not_followed(tmp_path: Path, model: Synthetic, name: str) -> None:
    """What it leads to would stand in the GGUF file."""
    file = model.path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(
        BitconvError, match=r"is a link that leads out of the model directory.*put a copy or a hard link"
    ):
        bitconv.convert(model.path, tmp_path / "out.gguf")
    file.unlink()
    file.symlink_to("../gone")
    with pytest.raises(BitconvError, match=r"is a link to '\.\./gone', where there is nothing; download it again"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_a_folder_of_templates_that_is_a_link(tmp_path: Path, model: Synthetic) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jinja").write_text("secret")
    (model.path / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BitconvError, match="a link that leads out of the model directory"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_links_that_are_followed(tmp_path: Path, model: Synthetic) -> None:
    """Within the directory, into the blobs of the Hub's cache, and that of the directory itself."""
    cache = tmp_path / "hub" / "models--of--somebody"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.path.iterdir())):
        blob = cache / "blobs" / f"{number:064x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (snapshot / "chat_template.jinja").symlink_to("config.json")
    (tmp_path / "link").symlink_to(snapshot)
    bitconv.convert(tmp_path / "link", tmp_path / "out.gguf")
    bitconv.convert(model.path, tmp_path / "plain.gguf")
    assert (tmp_path / "out.gguf").stat().st_size > (tmp_path / "plain.gguf").stat().st_size
    (snapshot / "README.md").symlink_to("../../blobs/secret")
    (cache / "blobs" / "secret").symlink_to(tmp_path / "plain.gguf")
    with pytest.raises(BitconvError, match="a link that leads out"):
        bitconv.convert(snapshot, tmp_path / "other.gguf")


BAD_JSON = {
    "digits": ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    "deep": ('{"a": ' + "[" * 300 + "]" * 300 + "}", "nested too deep"),
    "very deep": ('{"a": ' * 200_000, "nested too deep"),
    "twice": ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
    "nan": ('{"a": NaN}', "NaN is no number"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is no number"),
    "cut": ('{"a": ', "Expecting value"),
}


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".json")])
@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_parsers_choke_on_or_read_differently(tmp_path: Path, model: Synthetic, name: str, kind: str) -> None:
    text, words = BAD_JSON[kind]
    (model.path / name).write_text(text)
    with pytest.raises(BitconvError, match=f"{name}: not valid JSON: .*{words}"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def test_json_with_a_byte_order_mark(tmp_path: Path, model: Synthetic) -> None:
    for file in model.path.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    bitconv.convert(model.path, tmp_path / "out.gguf")
    text = (model.path / "config.json").read_text(encoding="utf-8-sig")
    (model.path / "config.json").write_text(text, encoding="utf-16")
    with pytest.raises(BitconvError, match=r"config\.json: is UTF-16; save it as UTF-8"):
        bitconv.convert(model.path, tmp_path / "out2.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in READ if name not in ("model.safetensors", "README.md")])
def test_a_file_that_is_larger_than_any_of_its_kind(tmp_path: Path, model: Synthetic, name: str) -> None:
    """A terabyte of zeros that takes no place on the disk."""
    (model.path / name).parent.mkdir(exist_ok=True)
    with (model.path / name).open("wb") as stream:
        stream.truncate(1 << 40)
    refused(run("convert", model.path, tmp_path / "out.gguf"), f"{Path(name).name}: is larger than", "MiB")


def test_an_added_token_whose_number_has_5000_digits(tmp_path: Path, model: Synthetic) -> None:
    text = json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}})
    (model.path / "tokenizer_config.json").write_text(text)
    with pytest.raises(BitconvError, match="has no id and content"):
        bitconv.convert(model.path, tmp_path / "out.gguf")


def kept(model: Synthetic, *patterns: str) -> None:
    quantization = model.config["quantization_config"] | {"modules_to_not_convert": ["lm_head", *patterns]}
    model.rewrite_config(quantization_config=quantization)


REFUSED_PATTERNS = [
    "a{99999999999999999999}",
    "(" * 5000,
    "(?=x)",
    r"(a)\1",
    "a{1000}{1000}{1000}",
    "[",
    "\ud800",
    "[[:alpha:]]",
    r"\Qa",
]


@pytest.mark.parametrize("pattern", REFUSED_PATTERNS)
def test_a_pattern_that_cannot_be_matched_in_bounded_time(tmp_path: Path, model: Synthetic, pattern: str) -> None:
    kept(model, pattern)
    with pytest.raises(BitconvError, match=r"config\.json: .*modules_to_not_convert: .* cannot be matched"):
        bitconv.convert(model.path, tmp_path / "out.gguf")
    kept(model)
    with pytest.raises(BitconvError, match=r"tensor.type.* is not a regular expression"):
        bitconv.convert(model.path, tmp_path / "out.gguf", tensor_types=[(pattern, "f16")])


@pytest.mark.parametrize(
    "pattern", ["(.|.)*!", "(a*)*$b", "((a|a)+)+!", "(.*)*(.*)*(.*)*!", "(x+x+)+y", "(" * 30 + "!" + ")" * 30]
)
def test_a_pattern_that_would_take_for_ever(tmp_path: Path, model: Synthetic, pattern: str) -> None:
    kept(model, pattern)
    start = time.monotonic()
    bitconv.convert(model.path, tmp_path / "out.gguf")
    kept(model)
    with pytest.raises(BitconvError, match="is found in the name of no tensor"):
        bitconv.convert(model.path, tmp_path / "out2.gguf", tensor_types=[(pattern, "f16")])
    assert time.monotonic() - start < SECONDS


def test_more_patterns_than_a_model_has_modules(tmp_path: Path, model: Synthetic) -> None:
    kept(model, *(f"model.layers.{number}.other" for number in range(9_000)))
    start = time.monotonic()
    bitconv.convert(model.path, tmp_path / "out.gguf")
    assert time.monotonic() - start < SECONDS
    kept(model, *"a" * 20_000)
    with pytest.raises(BitconvError, match="lists 20001 names; 10000 are the most"):
        bitconv.convert(model.path, tmp_path / "out2.gguf")


MODULES = [f"model.layers.{layer}.{part}" for layer in (1, 11) for part in ("mlp.gate_proj", "self_attn.q_proj")]
PATTERNS = ["lm_head", "model.layers.1", "gate", "_proj", "layers", "model", r"model\.layers\.\d+\.mlp", "model.*mlp"]
PATTERNS += [
    r"model\.",
    "model.layers.1.",
    "mlp|model.layers.1",
    "q_proj$",
    "model.layers.1[.]",
    "",
    ".*gate_proj$",
    "^model",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_module_is_kept_as_transformers_keeps_it(pattern: str) -> None:
    utilities = pytest.importorskip("transformers.quantizers.quantizers_utils")
    is_listed = _Listed([pattern], Path("config.json"))
    for module in MODULES:
        assert is_listed(module) is not utilities.should_convert_module(module, [pattern])


CARDS = {
    "aliases": "a: &a [x,x]\n"
    + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "recursive": "base_model: &a [*a]\n",
    "merge": "a: &a {b: c}\nd: {<<: *a}\n",
    "deep": "tags: " + "[" * 2000 + "]" * 2000,
    "many names": "base_model: [" + "a/b, " * 50_000 + "]",
    "endless": "license: mit\n" * 100_000,
    "documents": "license: mit\n--- \nlicense: apache\n",
    "broken": "license: [mit\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CARDS)
def test_front_matter_that_nobody_writes_by_hand(tmp_path: Path, model: Synthetic, kind: str) -> None:
    (model.path / "README.md").write_text(f"---\n{CARDS[kind]}\n---\n# Toy\n")
    refused(run("convert", model.path, tmp_path / "out.gguf"), "README.md: its front matter")


@pytest.mark.parametrize(
    "text",
    [
        "tags: [" + "x," * 200_000 + "]",
        "tags:\n" + "- 1\n" * 100_000,
        "a: " + "1:" * 200_000 + "1",
        "a: " + "9" * 400_000,
    ],
)
def test_long_front_matter_takes_little_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    start = time.process_time()
    assert len(read_card(tmp_path)) == 1
    assert time.process_time() - start < 4


def test_what_stands_below_the_front_matter_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe" + bytes(1 << 20))
    assert read_card(tmp_path) == {"license": "mit"}
    (tmp_path / "README.md").write_bytes(b"# Toy\n" * 500_000)
    assert read_card(tmp_path) == {}


def test_a_header_that_lists_more_than_any_model_has(tmp_path: Path) -> None:
    count = (1 << 16) + 1
    entry = (1).to_bytes(8, "little") + b"a" + (7).to_bytes(4, "little") + b"\0"
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + count.to_bytes(8, "little")
    (tmp_path / "in.gguf").write_bytes(header + entry * count)
    assert "of each are the most" in bitconv.verify(tmp_path / "in.gguf").faults[0]


@pytest.mark.parametrize(
    ("value", "size", "cause"),
    [
        ((8, 1 << 30), 1 << 31, "its header is larger than 64 MiB"),
        ((9, 11 | 1 << 30 + 32), 1 << 34, "its header is larger than 64 MiB"),
        ((9, 8 | 1 << 29 + 32), 1 << 33, "its header has more than 2,097,152 strings"),
    ],
    ids=["a string", "an array of numbers", "an array of strings"],
)
def test_a_header_of_zeros_that_no_disk_holds(tmp_path: Path, value: tuple[int, int], size: int, cause: str) -> None:
    kind, said = value
    key = (1).to_bytes(8, "little") + b"a" + kind.to_bytes(4, "little")
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    (tmp_path / "in.gguf").write_bytes(header + key + said.to_bytes(8 if kind == 8 else 12, "little"))
    os.truncate(tmp_path / "in.gguf", size)
    for read in (bitconv.verify, lambda file: bitconv.repack(file, tmp_path / "out.gguf", type="tq2_0")):
        with pytest.raises(BitconvError, match=cause):
            read(tmp_path / "in.gguf")


def test_a_gguf_file_that_is_cut_while_it_is_evaluated(tmp_path: Path) -> None:
    """Where it was mapped into memory, the process died of SIGBUS."""
    model = Path(__file__).parent.parent / "fixtures" / "Llama3-1.58-tiny"
    bitconv.convert(model, tmp_path / "in.gguf")
    (tmp_path / "text").write_text("In the beginning God created the heaven and the earth. " * 100)

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "in.gguf", 1000)

    found = bitconv.evaluate(tmp_path / "in.gguf", tmp_path / "text", window=64, progress=cut)
    assert found.perplexity < 1000
    with pytest.raises(BitconvError, match="truncated"):
        bitconv.evaluate(tmp_path / "in.gguf", tmp_path / "text")


def rewrite(file: Path) -> None:
    """In place, with the same bytes: only the time tells."""
    with file.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(first)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("change", [rewrite, Path.unlink, lambda file: file.with_name("copy").replace(file)])
def test_a_checkpoint_that_changes_while_it_is_converted(
    tmp_path: Path, model: Synthetic, name: str, change: Callable[[Path], None]
) -> None:
    bitconv.convert(model.path, tmp_path / "good.gguf")
    file = model.path / name
    (model.path / "copy").write_bytes(file.read_bytes())
    changed: list[Path] = []
    size = (tmp_path / "good.gguf").stat().st_size

    def change_once(done: int, total: int) -> None:
        if not changed and total == size:  # when all has been read but weights
            changed.append(file)
            change(file)

    before = file.stat().st_mtime_ns
    with pytest.raises(BitconvError, match=f"{name}: has changed while it was read"):
        bitconv.convert(model.path, tmp_path / "out.gguf", progress=change_once)
    assert changed and (not file.exists() or file.stat().st_mtime_ns != before)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("verb", ["repack", "export", "verify"])
def test_a_gguf_file_that_changes_while_it_is_read(tmp_path: Path, verb: str) -> None:
    model = Path(__file__).parent.parent / "fixtures" / "Llama3-1.58-tiny"
    file = tmp_path / "in.gguf"
    bitconv.convert(model, file)
    changed: list[int] = []

    def change(done: int, total: int) -> None:
        if not changed:
            changed.append(done)
            rewrite(file)

    with pytest.raises(BitconvError, match="has changed while it was read"):
        if verb == "repack":
            bitconv.repack(file, tmp_path / "out", type="tq2_0", progress=change)
        elif verb == "export":
            bitconv.export(file, tmp_path / "out", progress=change)
        else:
            bitconv.verify(file, progress=change)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf"]
