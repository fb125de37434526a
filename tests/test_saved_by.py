"""Checkpoints saved again by other libraries: every result is right, or refused with a line. saved_by.py says the rest.

Where BITCONV_SAVED_BY names a directory of environments (made there if need be), in all of them; else with the
libraries that are installed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import saved_by

pytestmark = [pytest.mark.slow, pytest.mark.torch]

DIRECTORY = os.environ.get("BITCONV_SAVED_BY")


def test_what_other_libraries_save_is_converted_right_or_refused(tmp_path: Path) -> None:
    pythons = saved_by.in_environments(Path(DIRECTORY)) if DIRECTORY else saved_by.installed()
    found = list(saved_by.cells(pythons, saved_by.checkpoints(tmp_path), tmp_path))
    assert [cell for cell in found if cell.saved and not (cell.right or cell.refused)] == []
    assert {cell.checkpoint for cell in found if cell.right} == set(saved_by.checkpoints(tmp_path / "again"))
