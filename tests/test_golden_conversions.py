"""The bytes of conversions do not change unless somebody means them to.

`python tests/test_golden_conversions.py` writes tests/golden/conversions.json anew, for a change that is meant: say in
its commit which bytes changed and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path

import bitconv
import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "conversions.json"
RUNS = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def sha256_of(run: str, output: Path) -> str:
    """run: "CHECKPOINT RUNNER TYPE", and "in-blocks" for scales in the blocks."""
    checkpoint, runner, type_name, *options = run.split()
    in_blocks = options == ["in-blocks"]
    model = ROOT / "fixtures" / checkpoint
    bitconv.convert(model, output, type=type_name, runner=runner, scale_in_blocks=in_blocks, force=True)
    return hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.mark.parametrize("run", RUNS)
def test_a_conversion_has_the_recorded_bytes(run: str, tmp_path: Path) -> None:
    assert sha256_of(run, tmp_path / "out.gguf") == RUNS[run]


def _record() -> None:
    from bitconv.runners import RUNNERS

    checkpoints = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")
    runs = [f"{c} {runner.name} {name}" for c in checkpoints for runner in RUNNERS for name in runner.types]
    runs += [f"{c} llama.cpp {name} in-blocks" for c in checkpoints for name in ("tq1_0", "tq2_0", "q2_0")]
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for run in sorted(runs):
            with contextlib.suppress(bitconv.BitconvError):  # a combination that bitconv refuses
                found[run] = sha256_of(run, Path(directory, "out.gguf"))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _record()
