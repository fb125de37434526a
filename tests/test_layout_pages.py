"""A layout is code, golden vectors, a test and a page: what the tables and pages say is what the registry says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bitconv.commands.layouts import facts, tables
from bitconv.layouts import PACKED
from bitconv.runners import RUNNERS

ROOT = Path(__file__).parent.parent


def between(text: str, name: str) -> str:
    return text.split(f"<!-- bitconv {name} -->\n")[1].split(f"\n<!-- /bitconv {name} -->")[0]


@pytest.mark.parametrize("name", tables())
def test_the_page_of_types_has_the_tables_of_the_layouts(name: str) -> None:
    page = (ROOT / "docs" / "types.md").read_text(encoding="utf-8")
    assert between(page, name) == tables()[name], "run python tests/tables.py"


@pytest.mark.parametrize("name", PACKED)
def test_a_page_has_the_facts_of_its_layout(name: str) -> None:
    page = (ROOT / "docs" / "layouts" / f"{name}.md").read_text(encoding="utf-8")
    assert between(page, name) == facts(name), "run python tests/tables.py"


def test_there_are_pages_and_golden_vectors_of_layouts_alone_and_of_each() -> None:
    assert {page.stem for page in (ROOT / "docs" / "layouts").glob("*.md")} == set(PACKED)
    golden = json.loads((ROOT / "tests" / "golden" / "layouts.json").read_text())
    assert {vector["layout"] for vector in golden} >= set(PACKED)


def test_every_layout_has_a_runner_and_every_packed_type_of_a_runner_is_a_layout() -> None:
    assert {name for runner in RUNNERS for name in runner.type_ids} == set(PACKED)


def test_names_of_layouts_and_runners_cost_no_numpy() -> None:
    code = "import sys, bitconv.layouts, bitconv.runners; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
