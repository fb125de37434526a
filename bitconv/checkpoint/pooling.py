"""How an embedding model makes one vector of a text's."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bitconv.gguf import Metadata
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import is_there
from bitconv.system.json_files import read_json, read_json_value

# The flag in sentence-transformers' Pooling config -> llama.cpp's number.
_TYPES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_LAST_TOKEN = 3
MODULES = "modules.json"


def pooling_metadata(directory: Path, architecture: str) -> Metadata:
    """`{architecture}.pooling_type`, as modules.json and the config of its Pooling module say.

    Without a modules.json: the last token, which is how Microsoft's embedding models are described (bitnet.cpp's
    docs/bitnet-embeddings-i2s-guide.md). BitconvError where they say none, several, or one that runners lack.
    """
    pooling_type = _LAST_TOKEN
    if is_there(directory / MODULES):
        config = directory / pooling_config(directory)
        modes = read_json(config, directory).items()
        flags = [key for key, value in modes if key.startswith("pooling_mode_") and value is True]
        if len(flags) != 1 or flags[0] not in _TYPES:
            raise BitconvError(
                f"pools by {flags}; runners have one of {', '.join(_TYPES)}", code=Code.UNSUPPORTED, file=config
            )
        pooling_type = _TYPES[flags[0]]
    return {f"{architecture}.pooling_type": np.uint32(pooling_type)}


def pooling_config(directory: Path) -> str:
    """The config of the Pooling module that modules.json names, within the model directory, by a path with slashes."""
    path = directory / MODULES
    try:
        modules: Any = read_json_value(path, directory)
        module = next(str(module["path"]) for module in modules if module["type"].endswith("Pooling"))
    except (AttributeError, LookupError, StopIteration, TypeError):
        raise BitconvError("lists no Pooling module with its path", code=Code.MALFORMED, file=path) from None
    within = PurePosixPath(module)
    # A list from a stranger must not make us read files elsewhere.
    if within.is_absolute() or {"..", "\\", ":", "\0"} & {*within.parts, *module}:
        raise BitconvError(
            f"its Pooling module's path {module!r} is not in the model directory", code=Code.MALFORMED, file=path
        )
    return str(within / "config.json")
