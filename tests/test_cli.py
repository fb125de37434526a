"""The command line as a user meets it: exit codes, streams, interrupts, a full disk."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import bitconv
import pytest
import typer.main
from bitconv.cli import app
from typer.testing import CliRunner

from synthetic import FIXTURES

MODEL = FIXTURES / "Llama3-1.58-tiny"
# Scripts run in a directory of their own: beside the sources, `import bitconv` would find them, not the package.
BITCONV = [sys.executable, "-c", "from bitconv.cli import main; main()"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def good(tmp_path: Path) -> Path:
    bitconv.convert(MODEL, tmp_path / "good.gguf")
    return tmp_path / "good.gguf"


@pytest.mark.parametrize(
    "words", [["convert"], ["convrt"], ["--foo"], ["convert", "a", "b", "--threads", "x"], ["convert", "a", "b", "c"]]
)
def test_a_command_line_that_does_not_parse_is_one_line(words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("bitconv: error: ") and "--help" in err


def test_convert_prints_what_it_wrote_and_the_line_that_runs_it(tmp_path: Path) -> None:
    code, out, err = run("convert", MODEL, tmp_path / "out.gguf")
    assert (code, err) == (0, "")
    assert f"{(tmp_path / 'out.gguf').stat().st_size:,} bytes" in out
    assert f"llama-cli -m {tmp_path / 'out.gguf'}" in out
    assert "i2_s: 14 tensors" in out


def test_printed_commands_are_quoted_for_a_shell(good: Path, tmp_path: Path) -> None:
    for command in (["convert", MODEL], ["repack", good, "--type", "tl1"]):
        _, out, _ = run(*command, tmp_path / "my model's file.gguf", "--force")
        for name in ("check it:", "run it:"):
            (line,) = (line for line in out.splitlines() if line.startswith(name))
            assert shlex.split(line.removeprefix(name))[2] == str(tmp_path / "my model's file.gguf")


def test_convert_json_is_the_typed_result(tmp_path: Path) -> None:
    code, out, _ = run("convert", MODEL, tmp_path / "out.gguf", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["architecture"] == "llama"
    assert result["size"] == (tmp_path / "out.gguf").stat().st_size
    q = next(tensor for tensor in result["tensors"] if tensor["name"] == "blk.0.attn_q.weight")
    assert (q["type"], q["shape"], q["nbytes"]) == ("i2_s", [512, 512], 512 * 512 // 4 + 32)
    assert 0.01 < q["scale"] < 0.1


def test_a_dry_run_lists_the_tensors(tmp_path: Path) -> None:
    code, out, _ = run("convert", MODEL, tmp_path / "out.gguf", "--dry-run")
    assert code == 0
    assert "blk.1.ffn_down.weight" in out
    assert "would be written" in out
    assert list(tmp_path.iterdir()) == []


def test_verify_exits_with_0_where_the_file_is_right(good: Path) -> None:
    code, out, err = run("verify", good, "--against", MODEL, "-v")
    assert (code, err) == (0, "")
    assert out.count(" ok\n") == 21
    assert "not covered" in out
    assert out.endswith(f"right, equal to {MODEL}\n")


def test_verify_of_a_right_file_prints_one_line(good: Path) -> None:
    assert run("verify", good)[1] == f"{good}: right\n"


def test_verify_exits_with_1_where_the_file_is_wrong(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-100])
    code, out, _ = run("verify", good)
    assert code == 1
    assert "WRONG  output.weight: truncated" in out


def test_verify_exits_with_2_where_it_cannot_judge(tmp_path: Path) -> None:
    code, out, err = run("verify", MODEL / "tokenizer.json")
    assert (code, out) == (2, "")
    assert err == f"bitconv: error: {MODEL / 'tokenizer.json'}: not a GGUF file\n"
    code, _, err = run("verify", tmp_path / "nothing.gguf")
    assert code == 2
    assert "nothing.gguf" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--revision", "main"),
        ("--token", "hf_x"),
        ("--scale-convention", "multiply"),
        ("--ternarize", "absmean"),
        ("--group", "64"),
        ("--pre", "gpt-2"),
    ],
)
def test_verify_refuses_options_of_a_checkpoint_without_one(good: Path, option: str, value: str) -> None:
    code, out, err = run("verify", good, option, value)
    assert (code, out) == (2, "")
    assert err == f"bitconv: error: {option} is for --against MODEL, which is missing\n"


def test_an_unknown_byte_order_is_one_line(good: Path) -> None:
    code, out, err = run("verify", good, "--i2-s-order", "middle-endian")
    assert (code, out) == (2, "")
    assert "arm64 and row4" in err and err.count("\n") == 1


def test_verify_json_states_the_verdict(good: Path) -> None:
    code, out, _ = run("verify", good, "--json")
    assert code == 0
    assert json.loads(out)["right"] is True
    data = bytearray(good.read_bytes())
    data[-1] = 0x7F  # the last value of the head, in float16, becomes NaN or huge
    data[-2] = 0xFF
    good.write_bytes(data)
    code, out, _ = run("verify", good, "--json")
    assert code == 1
    result = json.loads(out)
    assert result["right"] is False
    assert [tensor["name"] for tensor in result["tensors"] if tensor["faults"]] == ["output.weight"]


def test_kernel_config_writes_the_ini_and_says_how_to_build(tmp_path: Path) -> None:
    code, out, err = run("kernel-config", MODEL, "--type", "tl2", "-o", tmp_path / "k.ini")
    assert (code, err) == (0, "")
    assert "512x1024: " in out
    assert "utils/codegen_tl2.py" in out and "-DBITNET_X86_TL2=ON" in out
    assert (tmp_path / "k.ini").read_text().count("[Kernels_") == 4
    code, _, err = run("convert", MODEL, tmp_path / "out.gguf", "--type", "tl2", "--kernel-config", tmp_path / "k.ini")
    assert (code, err) == (0, "")
    code, _, err = run("kernel-config", MODEL, "--type", "tl2", "-o", tmp_path / "k.ini")
    assert code == 2 and "--force" in err


def test_a_kernel_configuration_without_the_model_s_shapes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k.ini").write_text("[Kernels_0]\nm = 512\nk = 512\nbm = 256\nbk = 96\nbmm = 32\n")
    code, out, err = run("convert", MODEL, tmp_path / "o.gguf", "--type", "tl2", "--kernel-config", tmp_path / "k.ini")
    assert (code, out) == (2, "")
    assert "256x512" in err and "bitconv kernel-config" in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["convert"], ["convert", "x", "y", "--type", "q9"], ["frobnicate"], ["--what"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_the_version_is_the_package_s() -> None:
    assert run("--version")[1] == f"bitconv {bitconv.__version__}\n"


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from bitconv.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = ('numpy', 'torch', 'transformers', 'gguf', 'safetensors', 'huggingface_hub')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path).stdout == "[]\n"


def test_converting_and_verifying_need_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import bitconv\n"
        f"bitconv.convert({str(MODEL)!r}, {str(tmp_path / 'out.gguf')!r})\n"
        f"print(bitconv.verify({str(tmp_path / 'out.gguf')!r}, against={str(MODEL)!r}).right)\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path).stdout == "True\n"
    )


def stop_in_the_middle(
    tmp_path: Path, number: signal.Signals, *, first_lines: str = "", ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run convert and send it a signal while it writes its first ternary tensor. ignored: it was started so."""
    script = (
        f"{first_lines}"
        "import os, bitconv.commands.convert as c\n"
        "first = c._write_ternary\n"
        "def slow(*arguments):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    import time\n"
        f"    for _ in range({0 if ignored else 1000}):\n"
        "        arguments[-1]()\n"
        "        time.sleep(0.01)\n"
        "    return first(*arguments)\n"
        "c._write_ternary = slow\n"
        "from bitconv.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "convert", "--force", str(MODEL), str(tmp_path / "out.gguf")]

    def start() -> None:  # as the tests themselves may have been started to ignore it
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, preexec_fn=start)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "out.gguf").write_text("precious")
    result = stop_in_the_middle(tmp_path, number)
    assert (result.returncode, result.stdout) == (128 + number, "")
    assert result.stderr == "bitconv: error: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "precious"


def test_a_second_signal_does_not_end_the_cleaning_up(tmp_path: Path) -> None:
    """A terminal that is closed tells the processes in it, and then the shell does."""
    again = (
        "import pathlib, os, signal\n"
        "unlink = pathlib.Path.unlink\n"
        "def late(self, missing_ok=False):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    unlink(self, missing_ok)\n"
        "pathlib.Path.unlink = late\n"
    )
    result = stop_in_the_middle(tmp_path, signal.SIGHUP, first_lines=again)
    assert (result.returncode, result.stderr) == (129, "bitconv: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_under_nohup_goes_on_when_the_terminal_is_closed(tmp_path: Path) -> None:
    result = stop_in_the_middle(tmp_path, signal.SIGHUP, ignored=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out.gguf").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize(("encoding", "name"), [("ascii", "\\udcffg\\xf6d.gguf"), ("utf-8", "\\udcffgöd.gguf")])
def test_a_name_that_stdout_cannot_encode_is_escaped(good: Path, encoding: str, name: str) -> None:
    file = good.rename(Path(os.fsdecode(os.fsencode(good.parent) + b"/\xffg\xc3\xb6d.gguf")))

    def verify(*options: str) -> str:
        result = subprocess.run(
            [*BITCONV, "verify", file, *options],
            capture_output=True,
            cwd=good.parent,
            encoding="utf-8",
            env=os.environ | {"PYTHONIOENCODING": encoding},
            timeout=60,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    assert verify().endswith(f"/{name}: right\n")
    assert json.loads(verify("--json"))["file"] == str(file)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_changes_nothing(good: Path, stream: str) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    file = good if stream == "stdout" else good.parent / "none.gguf"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writable}
    result = subprocess.run([*BITCONV, "verify", str(file)], **pipes, text=True, cwd=good.parent, timeout=60)
    os.close(writable)
    assert (result.returncode, result.stdout or "", result.stderr or "") == (0 if file == good else 2, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_result_that_is_lost_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*BITCONV, "runners"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60
        )
    assert (result.returncode, result.stderr) == (2, "bitconv: error: stdout: No space left on device\n")


def test_a_file_size_limit_ends_in_one_line(tmp_path: Path) -> None:
    """The nearest thing to a full disk that a test can make: the system refuses to let the file grow."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [*BITCONV, "convert", str(MODEL), str(tmp_path / "out.gguf")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"bitconv: error: {tmp_path / 'out.gguf'}: cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    code, out, err = run("convert", MODEL, tmp_path / "out.gguf")
    assert (code, out) == (2, "")
    assert err == f"bitconv: error: {tmp_path / 'out.gguf'}: cannot be written: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        bitconv.convert(MODEL, tmp_path / "out.gguf")
    finally:
        os.umask(before)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o640


def test_a_link_as_output_keeps_being_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_text("old")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real.gguf")
    bitconv.convert(MODEL, tmp_path / "link.gguf", force=True)
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "real.gguf").read_bytes()[:4] == b"GGUF"


def test_export_writes_a_model_directory_that_converts_to_the_same_file(good: Path, tmp_path: Path) -> None:
    code, out, err = run("export", good, tmp_path / "model")
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM" in out and "tokenizer.json" in out
    code, out, err = run("export", good, tmp_path / "model")
    assert (code, out) == (2, "")
    assert "--force" in err and err.count("\n") == 1
    code, out, _ = run("convert", tmp_path / "model", tmp_path / "again.gguf", "--embed-type", "f16")
    assert code == 0
    assert run("verify", tmp_path / "again.gguf", "--against", MODEL)[0] == 0


def test_eval_prints_the_perplexity_of_the_reference(good: Path) -> None:
    code, out, err = run("eval", good, "--text", FIXTURES / "eval.txt", "--json")
    assert (code, err) == (0, "")
    reference = json.loads((FIXTURES / "reference.json").read_text())[MODEL.name]
    result = json.loads(out)
    assert (result["tokens"], result["scored"]) == (reference["tokens"], reference["scored"])
    assert abs(result["perplexity"] / reference["ppl"] - 1) < 0.005
    code, out, _ = run("eval", good, "--text", FIXTURES / "eval.txt", "--max-tokens", 300)
    assert code == 0 and "perplexity" in out and "255 of 300 tokens scored" in out


@pytest.mark.torch
def test_compare_exits_with_0_where_the_models_agree_and_1_where_not(good: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert run("compare", good, MODEL)[0] == 0
    bitconv.convert(MODEL, tmp_path / "inverse.gguf", scale_convention="multiply")
    code, out, _ = run("compare", tmp_path / "inverse.gguf", MODEL)
    assert code == 1
    assert "WRONG" in out and "DISAGREES" in out


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)  # type: ignore[attr-defined]
def test_help_has_an_example_that_parses_and_no_notation_of_typer_s(command: str) -> None:
    parsed = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.endswith(f"\nExample:\n  {parsed.epilog}\n")
    assert not re.search(r"\{|<\w+>|\[x[<>]|\[required", out)
    program, name, *arguments = shlex.split(parsed.epilog)
    assert (program, name) == ("bitconv", command)
    parsed.make_context(command, arguments)


def test_long_help_is_in_groups_and_each_option_in_one() -> None:
    _, out, _ = run("convert", "--help")
    heads = re.findall(r"^(\w.*):$", out, re.MULTILINE)
    assert heads == ["Arguments", "What it does", "How the input is read", "In general", "Example"]
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.MULTILINE)
    assert len(options) == len(set(options)) and {"--type", "--token", "--force", "--help"} <= set(options)


def test_the_root_s_help_cuts_no_sentence() -> None:
    _, out, _ = run("--help")
    assert "..." not in out.partition("Commands:")[2]
