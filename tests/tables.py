"""python tests/tables.py: write the tables anew that stand between comments in docs. Tests hold each of them."""

from __future__ import annotations

import re
from pathlib import Path

from bitconv.commands import families, layouts
from bitconv.layouts import PACKED

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    pages = {"types.md": layouts.tables(), "families.md": {"families": families.markdown()}}
    pages["runners.md"] = {"backends": layouts.backends_table(), "milliseconds": layouts.milliseconds_table()}
    pages |= {f"layouts/{name}.md": {name: layouts.facts(name)} for name in PACKED}
    for page, tables in pages.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, table in tables.items():
            old = re.compile(f"(?<=<!-- bitconv {name} -->\n).*(?=\n<!-- /bitconv {name} -->)", re.DOTALL)
            text = old.sub(lambda _, table=table: table, text)  # type: ignore[misc]
        (DOCS / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
