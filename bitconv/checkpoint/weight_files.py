"""Which files of a model hold its weights, told by their names alone: of a directory, or of a listing of the Hub's."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from bitconv.system.errors import BitconvError, Code

# Of bitnet.cpp's GPU pipeline: packed, ternary in floats, and master weights. Its runtime needs the first two.
GPU_FILES = ("model_state_int2.pt", "model_state_fp16.pt", "model_state.pt")
# The first that a model has holds its weights; an index names the files that do. The order is that of transformers.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *GPU_FILES,
)
# A shard's name says how many there are, so that a whole set is known without an index.
_SHARD = re.compile(r"(?P<stem>model|pytorch_model)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>safetensors|bin)")
_STEMS = {"model": "safetensors", "pytorch_model": "bin"}
# Of a training.
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
# What downloads call files that they have not finished.
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".download")


@dataclass(frozen=True)
class WeightFiles:
    """index: the file that names the others, which then are not listed."""

    index: str | None
    files: tuple[str, ...]


def choose(names: Collection[str], where: object) -> WeightFiles | None:
    """The files that hold the weights of a model with files of these names; None where none does.

    where: the model. BitconvError where shards without an index are no whole set.
    """
    for name in WEIGHT_FILES:
        if name in names:
            return WeightFiles(name, ()) if name.endswith(".index.json") else WeightFiles(None, (name,))
        if name.endswith(".index.json"):
            shards = _shards(names, name.partition(".")[0], where)
            if shards:
                return WeightFiles(None, shards)
    return None


def _shards(names: Collection[str], stem: str, where: object) -> tuple[str, ...]:
    found = [match for match in map(_SHARD.fullmatch, names) if match and match["stem"] == stem]
    found = [match for match in found if match["kind"] == _STEMS[stem]]
    counts = sorted({match["count"] for match in found})
    index = f"{stem}.{_STEMS[stem]}.index.json"
    if len(counts) > 1:
        raise BitconvError(
            f"holds shards of sets of {' and of '.join(str(int(count)) for count in counts)}, and no {index} says "
            "which are the model's",
            code=Code.CONTRADICTION,
            file=where,
            way_out="remove those of the other set, or download the index too",
        )
    if not counts:
        return ()
    whole = tuple(f"{stem}-{number:05}-of-{counts[0]}.{_STEMS[stem]}" for number in range(1, int(counts[0]) + 1))
    missing = next((shard for shard in whole if shard not in names), None)
    if missing is not None or not whole:
        raise BitconvError(
            f"{missing or index}: missing; {len(found)} of {len(whole)} shards are there",
            code=Code.INCOMPLETE,
            file=where,
            way_out="download the model again: what is there already is not downloaded twice",
        )
    return whole


def none_error(names: Collection[str], where: object, *, unfinished: bool = False) -> BitconvError:
    """That a model with files of these names has no weights, and what may be taken for them.

    unfinished: a download into the directory was broken off.
    """
    cause = f"holds no weights: none of {', '.join(WEIGHT_FILES)}"
    begun = next((name for name in sorted(names) if name.endswith(_UNFINISHED)), None)
    if unfinished or begun is not None:
        begun = "a download" if begun is None else f"the download {begun}"
        return BitconvError(
            f"{cause}; {begun} was broken off", code=Code.INCOMPLETE, file=where, way_out="start it again, to go on"
        )
    others = [name for name in sorted(names) if name.endswith((".safetensors", ".bin")) and name not in _NO_WEIGHTS]
    if not others:
        return BitconvError(cause, code=Code.INCOMPLETE, file=where)
    name = "model.safetensors" if others[0].endswith(".safetensors") else "pytorch_model.bin"
    way_out = f"if {others[0]} holds them, and all of them, rename it to {name}"
    return BitconvError(cause, code=Code.INCOMPLETE, file=where, way_out=way_out)
