"""The README and the pages beside it say what the code does: output, commands, codes and links."""

from __future__ import annotations

import platform
import re
import shlex
from pathlib import Path

import bitconv
import pytest
from bitconv.cli import app
from bitconv.system.errors import Code
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")]
QUICK_START = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
# The rows of the table that name a runner, and what is typed for it.
ROWS = re.findall(r"^\| ([^|`]+) \| `(bitconv convert MODEL OUT\.gguf[^`]*)` \|$", QUICK_START, re.MULTILINE)


def run(line: str) -> str:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_readme_shows_what_the_demo_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text()
    model = re.search(r"^DEMO_MODEL := (\S+)$", makefile, re.MULTILINE)[1]  # type: ignore[index]
    commands = re.findall(r"^\t\$\(BIN\)/(bitconv .*demo\.gguf.*)$", makefile, re.MULTILINE)
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")  # an ARM machine gets a note more
    printed = "".join(run(command.replace("$(DEMO_MODEL)", model)) for command in commands)
    shown = README.split("<!-- demo -->\n")[1].split("<!-- /demo -->")[0]
    printed = re.sub(r", in \d+ s$", "", printed, flags=re.MULTILINE)  # on a slow machine alone
    assert shown == f"```\n{printed}```\n"


@pytest.mark.parametrize(("runner", "line"), ROWS, ids=[runner for runner, _ in ROWS])
def test_what_the_quick_start_says_to_type_is_for_the_runner_named(tmp_path: Path, runner: str, line: str) -> None:
    line = line.replace("MODEL", str(FIXTURES / "Llama3-1.58-tiny")).replace("OUT.gguf", str(tmp_path / "out.gguf"))
    named = {"bitnet.cpp from July 2026": "bitnet.cpp-2026", "bitnet.cpp built for arm64": "bitnet.cpp-arm64"}
    assert f", for {named.get(runner.split(',')[0], runner)}\n" in run(line)


def test_the_quick_start_has_a_row_for_every_runner() -> None:
    from bitconv.runners import RUNNERS

    assert len(ROWS) == len(RUNNERS)


def test_the_python_page_s_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "model_dir").symlink_to(FIXTURES / "Llama3-1.58-tiny")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    conversion, verdict, tensors = capsys.readouterr().out.splitlines()
    assert conversion == "llama.cpp True []"
    assert verdict.startswith("True () ")
    assert tensors == "(512, 512) float32"


def test_the_page_of_errors_has_a_section_for_every_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (BC\d+): (.*)\n\n(.+)", page, re.MULTILINE)
    assert [(number, title) for number, title, _ in sections] == [(code.number, code.title) for code in Code]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_the_site_has_every_page_once() -> None:
    nav = re.findall(r": (\S+\.md)$", (ROOT / ".mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(nav) == sorted(str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md"))


def test_the_python_page_has_all_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: bitconv\.(\w+)$", page, re.MULTILINE))
    records = {name for name in bitconv.__all__ if re.fullmatch(r"(\w+Tensor|\w+Part|\w+Kind|Extra|FoundRunner)", name)}
    assert named == {*bitconv.__all__} - records - {"__version__", "Catalogue"} | {"OpenTensor"}


def test_what_the_table_of_types_says_is_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "which-type.md").read_text(encoding="utf-8")
    taken = re.findall(r"`(--type [\w-]+(?: --backend \w+)?|--runner [\w.-]+)`", page)
    assert len(taken) >= 8
    for options in taken:
        if options != "--type tl1":  # of a tile that the bundled shapes have not
            run(f"bitconv convert {FIXTURES / 'Llama3-1.58-tiny'} {tmp_path / 'out.gguf'} {options} --dry-run")
