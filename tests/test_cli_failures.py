"""What goes wrong on the command line: one line on stderr, an exit code of one meaning, JSON where it is asked."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import bitconv
import pytest
import typer.main
from bitconv.choices import TERNARIZE, TILED_TYPE, TYPE
from bitconv.cli import app
from bitconv.commands.dummy import SHAPES
from bitconv.layouts.registry import TILED
from bitconv.models.quantization import ABSMEAN, ScaleConvention, rule_of, scale_convention_of
from typer.testing import CliRunner

from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "Llama3-1.58-tiny"
MAIN = "from bitconv.cli import main; main()"
COMMANDS = {
    "convert": bitconv.convert,
    "verify": bitconv.verify,
    "repack": bitconv.repack,
    "export": bitconv.export,
    "eval": bitconv.evaluate,
    "compare": bitconv.compare,
    "kernel-config": bitconv.kernel_config,
    "dummy": bitconv.dummy,
    "diff": bitconv.diff,
    "audit": bitconv.audit,
    "report": bitconv.report,
    "try": bitconv.try_runner,
}


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def python(tmp_path: Path, script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | environment,
        timeout=60,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_parameters_of_its_function(command: str) -> None:
    declared = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    names = {parameter.name for parameter in declared} - {"as_json", "verbose", "quiet", "help"}
    assert names == set(inspect.signature(COMMANDS[command]).parameters) - {"progress"}


@pytest.mark.parametrize("command", [*COMMANDS, "runners", "families"])
def test_every_option_has_the_name_that_it_is_declared_by(command: str) -> None:
    """Not of its metavar, as in --TYPE, which typer 0.27.0 to 0.27.2 make of one that is the name in capitals."""
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "option":
            assert all(name == name.lower() for name in parameter.opts)


@pytest.mark.parametrize("word", ["i2_s", "I2_S", "i2s", "I2-S"])
def test_the_spelling_of_a_type_does_not_matter(tmp_path: Path, word: str) -> None:
    assert bitconv.convert(MODEL, tmp_path / "out.gguf", type=word, dry_run=True).type == "i2_s"
    code, out, err = run("convert", MODEL, tmp_path / "out.gguf", "--type", word, "--dry-run", "--json")
    assert (code, err, json.loads(out)["type"]) == (0, "", "i2_s")


def test_the_spelling_of_other_words_does_not_matter(tmp_path: Path) -> None:
    words = {"type": "TQ2_0", "runner": "Llama-CPP", "embed_type": "BF16", "fallback": "Q8-0"}
    assert bitconv.convert(MODEL, tmp_path / "out.gguf", **words, dry_run=True).runner == "llama.cpp"
    assert rule_of("AbsMean") is ABSMEAN
    assert scale_convention_of("DIVIDE") is ScaleConvention.DIVIDE


@pytest.mark.parametrize(
    ("option", "word", "meant"),
    [
        ("--type", "tq20_", "tq2_0"),
        ("--type", "iq2bm", "iq2_bn"),
        ("--runner", "lama.cpp", "llama.cpp"),
        ("--fallback", "fp16", "f16"),
        ("--ternarize", "absmaen", "absmean"),
    ],
)
def test_a_near_miss_is_told_what_is_meant(tmp_path: Path, option: str, word: str, meant: str) -> None:
    code, out, err = run("convert", MODEL, tmp_path / "out.gguf", option, word)
    if word == "tq20_":  # the same letters
        assert code == 0
        return
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{word!r} is not known" in err and err.endswith(f"; did you mean {option} {meant}?\n")


def test_what_is_like_no_word_gets_no_proposal() -> None:
    code, _, err = run("convert", MODEL, "out.gguf", "--type", "zebra")
    assert code == 2 and "did you mean" not in err and "tq2_0" in err


def test_the_words_are_those_of_the_registries() -> None:
    assert set(TILED_TYPE.words) == set(TILED)
    rules = map(rule_of, TERNARIZE.words)
    assert [rule and rule.name for rule in rules] == list(TERNARIZE.words)
    assert [scale_convention_of(c.value) for c in ScaleConvention] == list(ScaleConvention)
    _, out, _ = run("dummy", "--help")
    assert all(name in out for name in SHAPES)
    _, out, _ = run("convert", "--help")
    assert all(re.search(rf"\b{name}\b", out) for name in TYPE.words)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bitconv convert a b --type tq", ["tq1_0", "tq2_0"]),
        ("bitconv convert a b --runner ik", ["ik_llama.cpp"]),
        ("bitconv dummy d --shape 2", ["2b-4t"]),
        ("bitconv dummy d --stored ", ["bf16", "f32", "packed"]),
        ("bitconv ve", ["verify"]),
    ],
)
def test_the_shell_completes_words(tmp_path: Path, line: str, expected: list[str]) -> None:
    words = line.split(" ")
    script = f"import sys; sys.argv[0] = 'bitconv'; {MAIN}"
    completed = python(
        tmp_path,
        script,
        _BITCONV_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(words),
        COMP_CWORD=str(len(words) - 1),
    )
    assert completed.stdout.split() == expected


def test_completion_is_installed_for_a_shell(tmp_path: Path) -> None:
    script = f"import sys; sys.argv[0] = 'bitconv'; {MAIN}"
    shown = python(tmp_path, script, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0 and "_BITCONV_COMPLETE=complete_bash" in shown.stdout


def test_python_m_bitconv_is_the_command(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "bitconv", "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, f"bitconv {bitconv.__version__}\n")


def test_with_json_an_error_is_json_too(tmp_path: Path) -> None:
    bitconv.convert(MODEL, tmp_path / "out.gguf")
    code, out, err = run("convert", MODEL, tmp_path / "out.gguf", "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert error.pop("title")
    assert error == {
        "code": "BC012",
        "file": str(tmp_path / "out.gguf"),
        "tensor": None,
        "cause": "exists",
        "way_out": "pass --force to overwrite it",
        "message": f"{tmp_path / 'out.gguf'}: exists; pass --force to overwrite it",
    }
    assert err == f"bitconv: error: {error['message']}\n"


def test_the_json_of_an_error_names_the_tensor(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", ffn=384)
    _, out, _ = run("convert", model.path, tmp_path / "out.gguf", "--type", "tq1_0", "--json")
    error = json.loads(out)["error"]
    assert error["tensor"] == "model.layers.0.mlp.down_proj.weight"
    assert error["file"] == str(model.path / "model.safetensors")


@pytest.mark.parametrize("words", [["convert", "--json"], ["convrt", "--json"], ["verify", "x", "--what", "--json"]])
def test_a_command_line_that_does_not_parse_is_json_too(words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert json.loads(out)["error"]["code"] == "BC001"


HUGE = "9" * 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["eval", "FILE", "--text", "TEXT", "--window", "9" * 12],
        ["eval", "FILE", "--text", "TEXT", "--window", "9" * 30],
        ["eval", "FILE", "--text", "TEXT", "--window", HUGE],
        ["eval", "FILE", "--text", "TEXT", "--max-tokens", HUGE],
        ["eval", "FILE", "--text", "TEXT", "--batch", HUGE],
        ["dummy", "OUT", "--stored", "bf16", "--shape", "9999999999x256x512"],
        ["dummy", "OUT", "--stored", "bf16", "--shape", f"2x{HUGE}x512"],
        ["dummy", "OUT", "--stored", "bf16", "--shape", f"2x256x512x4x2x{'9' * 20}"],
        ["dummy", "OUT", "--stored", "bf16", "--shape", "2x256x512", "--seed", HUGE],
        ["dummy", "OUT", "--stored", "bf16", "--shape", "2x256x512", "--layers", "9" * 20],
        ["convert", "MODEL", "OUT", "--threads", HUGE],
        ["convert", "MODEL", "OUT", "--tensor-type", "(" * 5000 + "=f16"],
    ],
    ids=lambda words: f"{words[0]}{words[-2]}{len(words[-1])}",
)
def test_a_huge_number_is_one_line(tmp_path: Path, words: list[str]) -> None:
    bitconv.convert(MODEL, tmp_path / "in.gguf")
    known = {"FILE": tmp_path / "in.gguf", "TEXT": FIXTURES / "eval.txt", "OUT": tmp_path / "out", "MODEL": MODEL}
    result = python(tmp_path, MAIN, *(known.get(word, word) for word in words))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("bitconv: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_an_unknown_instruction_set_is_one_line(tmp_path: Path) -> None:
    result = python(tmp_path, MAIN, "convert", MODEL, tmp_path / "out.gguf", BITCONV_ISA="bogus")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "BITCONV_ISA names 'bogus'" in result.stderr
    script = "import bitconv\ntry:\n    bitconv.verify\nexcept bitconv.BitconvError as error:\n    print(error)"
    assert "BITCONV_ISA names 'bogus'" in python(tmp_path, script, BITCONV_ISA="bogus").stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["RuntimeError('a\\nb')", "MemoryError()", "RecursionError()", "AssertionError()"])
def test_a_fault_of_bitconv_is_one_line_that_names_the_traceback(tmp_path: Path, fault: str) -> None:
    script = f"import bitconv.commands.verify as v\ndef broken(*a, **k): raise {fault}\nv.verify = broken\n{MAIN}"
    result = python(tmp_path, script, "verify", "x.gguf", TMPDIR=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (70, "", 1)
    (file,) = tmp_path.glob("bitconv-*")
    assert f"please report it; the traceback is in {file}\n" in result.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "in broken" in file.read_text() and fault.split("(")[0] in result.stderr
    result = python(tmp_path, script, "verify", "x.gguf", "--json", TMPDIR=str(tmp_path))
    assert (result.returncode, json.loads(result.stdout)["error"]["code"]) == (70, "BC099")


def test_a_fault_without_room_for_its_traceback_is_one_line(tmp_path: Path) -> None:
    script = (
        "import tempfile, bitconv.commands.verify as v\n"
        "def full(*a, **k): raise OSError(28, 'No space left on device')\n"
        "def broken(*a, **k): raise KeyError('x')\n"
        f"v.verify, tempfile.mkstemp = broken, full\n{MAIN}"
    )
    result = python(tmp_path, script, "verify", "x.gguf")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (70, "", 1)
    assert "could not be written: No space left on device" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["typer", "bitconv.cli.options", "numpy"])
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path: Path, number: signal.Signals, module: str) -> None:
    script = (
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, signal.default_int_handler if {int(number)} == 2 else signal.SIG_DFL)\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"{MAIN}"
    )
    result = python(tmp_path, script, "verify", tmp_path / "none.gguf")
    assert (result.returncode, result.stdout, result.stderr) == (128 + number, "", "bitconv: error: interrupted\n")


def test_an_interrupt_is_json_too(tmp_path: Path) -> None:
    script = f"import bitconv.commands.verify as v\ndef stop(*a, **k): raise KeyboardInterrupt\nv.verify = stop\n{MAIN}"
    result = python(tmp_path, script, "verify", "x.gguf", "--json")
    assert (result.returncode, json.loads(result.stdout)["error"]["code"]) == (130, "BC090")
