"""Where the bundled checkpoints are."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"
CHECKPOINTS = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Each bundled, really trained checkpoint in turn."""
    return FIXTURES / request.param
