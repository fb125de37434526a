"""JSON files that must hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitconv.system.errors import BitconvError, Code


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BitconvError("missing", code=Code.NOT_FOUND, file=path) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise BitconvError(f"not valid JSON: {error}", code=Code.MALFORMED, file=path) from None
    if not isinstance(value, dict):
        raise BitconvError("holds no JSON object", code=Code.MALFORMED, file=path)
    return value
