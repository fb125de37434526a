"""How far a command is: a bar in terminals of any width, lines where there is none, nothing with -q."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import bitconv
import pytest
from bitconv.cli import app, progress
from bitconv.cli.progress import progress_bar
from typer.testing import CliRunner

from synthetic import FIXTURES, make_checkpoint

MODEL = FIXTURES / "Llama3-1.58-tiny"
BAR = """
import time
from bitconv.cli.progress import progress_bar
with progress_bar("converting", {unit!r}) as progress:
    for done in range(0, 6):
        progress(done * 10**8, 5 * 10**8)
        time.sleep(0.15)
"""
MAIN = "from bitconv.cli import main; main()"


def in_a_terminal(columns: int, code: str, *arguments: str, **environment: str) -> str:
    """What a Python program prints to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=known | {"TERM": "xterm"} | environment,
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # so a terminal ends
            break
        if not data:
            break
        printed += data
    os.close(ours)
    assert process.wait(60) == 0, printed
    return printed.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(("columns", "unit"), [(40, "bytes"), (100, "bytes"), (40, "tokens"), (100, "tokens")])
def test_a_bar_is_one_line_however_narrow_the_terminal(columns: int, unit: str) -> None:
    shown = plain(in_a_terminal(columns, BAR.format(unit=unit)))
    drawn = [line.strip() for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert drawn and max(map(len, drawn)) <= columns
    assert any(re.match(r"converting \d+ % .*0:0\d left", line) for line in drawn), drawn
    rate = "MB/s" if unit == "bytes" else "tokens/s"
    assert any(rate in line and "so far" in line for line in drawn) == (columns == 100)


def test_without_color_none_is_written() -> None:
    assert re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", in_a_terminal(80, BAR.format(unit="bytes")))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", in_a_terminal(80, BAR.format(unit="bytes"), NO_COLOR="1"))


def test_where_there_is_no_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 10.0)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("verifying") as report:
        for second in range(0, 45, 5):
            now[0] = float(second)
            report(second * 10**8, 40 * 10**8)
    assert capsys.readouterr() == (
        "",
        "bitconv: verifying: 25%, 100 MB/s, 0:30 left, 0:10 so far\n"
        "bitconv: verifying: 50%, 100 MB/s, 0:20 left, 0:20 so far\n"
        "bitconv: verifying: 75%, 100 MB/s, 0:10 left, 0:30 so far\n",
    )


def test_a_rate_is_of_the_time_since_the_pass_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("evaluating", "tokens") as report:
        for second, done, total in ((20.0, 50, 100), (30.0, 75, 100), (30.1, 200, 300), (40.0, 250, 300)):
            now[0] = second
            report(done, total)
    assert capsys.readouterr().err == (
        "bitconv: evaluating: 50%, 2.5 tokens/s, 0:20 left, 0:20 so far\n"
        "bitconv: evaluating: 75%, 2.5 tokens/s, 0:10 left, 0:30 so far\n"
        "bitconv: evaluating: 67%\n"
        "bitconv: evaluating: 83%, 25 tokens/s, 0:02 left, 0:10 so far\n"
    )


def test_a_short_run_writes_no_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(MODEL), str(tmp_path / "out.gguf")])
    assert (result.exit_code, result.stderr) == (0, "")


def test_quiet_prints_nothing_and_the_exit_code_tells(tmp_path: Path) -> None:
    file, other = str(tmp_path / "out.gguf"), str(tmp_path / "other.gguf")
    lines = [
        (["convert", str(MODEL), file], 0),
        (["verify", file], 0),
        (["repack", file, other, "--type", "tq2_0"], 0),
        (["diff", file, other], 0),
        (["diff", file, str(FIXTURES / "bitnet_b1_58-tiny")], 1),
        (["export", file, str(tmp_path / "dir")], 0),
    ]
    for line, code in lines:
        expecting = f"import sys\ntry:\n {MAIN}\nexcept SystemExit as end:\n sys.exit(end.code != {code})"
        assert in_a_terminal(80, expecting, *line, "-q") == "", line


def test_looking_at_float_weights_is_a_pass_that_shows(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "plain_qwen3", ternary_floats=True, marked=False, head_dim=64, ffn=512)
    calls: list[tuple[int, int]] = []
    result = bitconv.convert(
        model.path, tmp_path / "out.gguf", type="q2_0", progress=lambda done, total: calls.append((done, total))
    )
    looked, weights = [call for call in calls if call[1] != result.size], sum(t.size for t in model.trits.values())
    assert len(looked) == len(model.trits) and looked[-1] == (2 * weights, 2 * weights)
    assert calls[-1][1] == result.size and calls[-1][0] > 0.99 * result.size


@pytest.mark.parametrize("command", ["runners", "families", "doctor"])
def test_lists_break_at_the_terminal_s_width(command: str) -> None:
    lines = in_a_terminal(72, MAIN, command).splitlines()
    text = lines[: next((i for i, line in enumerate(lines) if line.startswith("what each has")), None)]
    assert not [line for line in text if len(line) > 72 and " " in line.strip()]
    assert len(CliRunner().invoke(app, [command]).stdout.splitlines()) < len(lines)
