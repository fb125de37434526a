"""The metadata of a GGUF file that bitconv writes."""

from __future__ import annotations

import datetime
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.hub import model_name
from bitconv.checkpoint.model_card import MAX_NAME, read_card
from bitconv.checkpoint.pooling import pooling_metadata
from bitconv.gguf import Metadata, Value
from bitconv.models.weights import ComputedWeight, Model
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import is_there
from bitconv.system.json_files import read_json
from bitconv.tokenizer import tokenizer_metadata

# GGML_QNT_VERSION: which encoding of ggml's quantized blocks the file uses.
QUANTIZATION_VERSION = 2

# general.sampling.* -> the key of generation_config.json, as in the gguf package.
_SAMPLING = {
    "sequence": "sequence",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}

_NUMBERS = {
    gguf.GGUFValueType.UINT8: np.uint8,
    gguf.GGUFValueType.INT8: np.int8,
    gguf.GGUFValueType.UINT16: np.uint16,
    gguf.GGUFValueType.INT16: np.int16,
    gguf.GGUFValueType.UINT32: np.uint32,
    gguf.GGUFValueType.INT32: np.int32,
    gguf.GGUFValueType.FLOAT32: np.float32,
    gguf.GGUFValueType.UINT64: np.uint64,
    gguf.GGUFValueType.INT64: np.int64,
    gguf.GGUFValueType.FLOAT64: np.float64,
}


def build_metadata(checkpoint: Checkpoint, model: Model, file_type: int, pre: str | None) -> Metadata:
    """All metadata of the file: general keys, the architecture's sizes, the tokenizer."""
    architecture, embedding = model.family.architecture.name, model.family.embedding
    parameters = sum(prod(w.shape) for w in model.weights if not isinstance(w, ComputedWeight))
    # First, since it names the file that is no JSON object, where the gguf package below does not.
    tokenizer = tokenizer_metadata(checkpoint.path, model.config, pre=pre, embedding=embedding)
    return {
        "general.architecture": architecture,
        "general.type": "model",
        **_authorship(checkpoint, architecture, parameters),
        "general.file_type": np.uint32(file_type),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        **model.sizes.metadata(architecture),
        **(pooling_metadata(checkpoint.path, architecture) if embedding else {}),
        **tokenizer,
    }


def _authorship(checkpoint: Checkpoint, architecture: str, parameters: int) -> Metadata:
    """Name, basename, size label, license, source and what else the model card says, by the gguf package's rules."""
    directory = checkpoint.path
    name = model_name(directory)
    said = read_card(directory)
    generation = directory / "generation_config.json"
    generated = read_json(generation, directory) if is_there(generation) else {}
    named = checkpoint.config.get("_name_or_path")
    if isinstance(named, str) and len(named) > MAX_NAME:  # of no model, and the package takes long to take it apart
        named = None
    try:
        # Of config.json it takes the name of the model that this one was made of.
        card = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), said, {"_name_or_path": named}, Path(name), parameters
        )
    except Exception as error:  # whatever a value of another type makes the library raise
        cause = " ".join(str(error).split())
        what = "README.md's front matter, or _name_or_path in config.json"
        raise BitconvError(f"{what}, cannot be read: {cause}", code=Code.MALFORMED, file=directory) from None
    for key, source in _SAMPLING.items():
        if source in generated:
            setattr(card, f"sampling_{key}", generated[source])
    card.name = card.name or name
    card.basename = card.basename or card.name
    card.size_label = gguf.size_label(parameters, 0, 0, 0)
    writer = gguf.GGUFWriter(None, architecture)
    if isinstance(card.license, list):
        card.license = ",".join(_texts(card.license))
    card.set_gguf_meta_model(writer)
    values = {key: _value(field) for key, field in writer.kv_data[0].items() if key != "general.architecture"}
    return {key: value for key, value in values.items() if value is not None}


def _value(field: Any) -> Value | None:
    """A value of the gguf package in the form of bitconv.gguf; None where the model's files have none for this key.

    The package takes it from them as it is, whatever its type.
    """
    if field.type is gguf.GGUFValueType.STRING:
        return next(iter(_texts([field.value])), None)
    if field.type is gguf.GGUFValueType.ARRAY:
        return _texts(field.value) or None
    try:
        with np.errstate(over="ignore"):
            number: Any = _NUMBERS[field.type](field.value)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if np.ndim(number) == 0 and np.isfinite(number) else None


def _texts(values: list[object]) -> list[str]:
    """Those that are texts, or that YAML makes numbers and dates of, without surrogates, which are no text."""
    scalars = [str(value) for value in values if isinstance(value, str | int | float | datetime.date)]
    return [text.encode("utf-8", "replace").decode("utf-8") for text in scalars]
