"""Where the bundled checkpoints are, what is left out where torch is missing, and a warning of an old build."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from bitconv import _kernels

FIXTURES = Path(__file__).parent.parent / "fixtures"
KERNELS = Path(__file__).parent.parent / "kernels"
# Modules that use it throughout.
TORCH = ("compare", "forms", "gpu_pipeline", "longrope", "mixtral", "real_runners", "saved_by", "torch_files")
collect_ignore = [] if find_spec("torch") else [f"test_{name}.py" for name in TORCH]
CHECKPOINTS = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Each bundled, really trained checkpoint in turn."""
    return FIXTURES / request.param


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine prints none to the stderr that tests compare."""
    monkeypatch.setattr("bitconv.cli.progress.SECONDS", float("inf"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    extension = Path(_kernels.__file__)
    if any(file.stat().st_mtime > extension.stat().st_mtime for file in KERNELS.rglob("*.?pp")):
        terminalreporter.write_line(f"kernels/ has changed since {extension.name} was built: make dev", yellow=True)
