"""python -m bench: write the page and the chart, or with --quick print a smaller page."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from bench.measure import BenchError
from bench.suite import FULL, QUICK, measure

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    quick = sys.argv[1:] == ["--quick"]
    if sys.argv[1:] and not quick:
        raise SystemExit("usage: python -m bench [--quick]")
    try:
        with tempfile.TemporaryDirectory(prefix="bitconv-bench-", dir=os.environ.get("BITCONV_BENCH_DIR")) as directory:
            results = measure(QUICK if quick else FULL, Path(directory))
            # Imported late: their memory would count as that of the commands, see measure.run.
            from bench.machine import machine
            from bench.report import chart, markdown

            description = machine(Path(directory))
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    if quick:
        print(markdown(results, description, None))
        return
    DOCS.mkdir(exist_ok=True)
    chart(results, DOCS / "bench.png")
    (DOCS / "bench.md").write_text(markdown(results, description, "bench.png"), encoding="utf-8")
    print(f"wrote {DOCS / 'bench.md'} and bench.png")


if __name__ == "__main__":
    main()
