"""Print the lowest versions that pyproject.toml declares of what is needed directly, a requirement a line.

For what is built with, what runs, and the tests that need neither PyTorch nor real runners.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
extras = project["project"]["optional-dependencies"]
needed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
needed += [line for line in extras["test-core"] + extras["eval"] + extras["report"] if not line.startswith("bitconv[")]
pinned = (re.sub(">=", "==", line, count=1) if ";" not in line else line for line in needed)
print("\n".join(dict.fromkeys(pinned)))
