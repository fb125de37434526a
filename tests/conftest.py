"""Where the bundled checkpoints are."""

from importlib.util import find_spec
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"
TORCH = ("compare", "gpu_pipeline", "mixtral", "real_runners", "torch_files")  # modules that use it throughout
collect_ignore = [] if find_spec("torch") else [f"test_{name}.py" for name in TORCH]
CHECKPOINTS = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Each bundled, really trained checkpoint in turn."""
    return FIXTURES / request.param
