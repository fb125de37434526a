"""The front matter of README.md, which says whose a model is: YAML between two lines of ---.

Read by libyaml's events, in time linear in its size and without aliases: a few lines of those stand for any number of
values. What it is taken to say is as in the gguf package (gguf/metadata.py), which reads it for llama.cpp's converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import MAX_FRONT_MATTER, decode, is_there, read_start

_SURROGATE = re.compile(r"\\u[dD][89A-Fa-f][0-9A-Fa-f]{2}")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 20
# Longer plain scalars are text, whatever they look like: numbers of so many digits take Python long.
_MAX_NUMBER = 100
# Of models and data sets that are named, in characters and in number; each becomes several metadata keys.
MAX_NAME, _MAX_NAMES = 1000, 1000
_NAMED = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")


def read_card(directory: Path) -> dict[str, Any]:
    """What the front matter of README.md says, by its keys; empty where there is none.

    BitconvError where it is not YAML, or YAML that nobody writes by hand.
    """
    path = directory / "README.md"
    if not is_there(path):
        return {}
    text = _front_matter(path, directory)
    # A language list's Norway, which is no boolean; and tabs, which some published cards indent by.
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    text = _SURROGATE.sub("?", text)  # libyaml takes no half of a pair, and it is no text
    try:
        card = _document(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BitconvError(
            f"its front matter cannot be read: {cause}",
            code=Code.MALFORMED,
            file=path,
            way_out="correct it, or take the file away",
        ) from None
    if not isinstance(card, dict):
        return {}
    return {key: _names(value, path, key) if key in _NAMED else value for key, value in card.items()}


def _front_matter(path: Path, directory: Path) -> str:
    """The lines between the first two of ---, or to the end where there is one alone."""
    start = read_start(path, directory, MAX_FRONT_MATTER)
    end = max(start.find(b"\n---\n"), start.find(b"\n---\r"))
    if end < 0 and len(start) == MAX_FRONT_MATTER:
        if not start.removeprefix(b"\xef\xbb\xbf").startswith(b"---"):
            return ""
        raise BitconvError(
            f"its front matter is longer than {MAX_FRONT_MATTER >> 10} KiB",
            code=Code.TOO_LARGE,
            file=path,
            way_out="make it shorter",
        )
    lines = decode(start if end < 0 else start[: end + 4], path).splitlines()
    if not lines or lines[0] != "---":
        return ""
    body = lines[1:]
    return "\n".join(body[: body.index("---")] if "---" in body else body) + "\n"


def _names(value: Any, path: Path, key: str) -> Any:
    """Of models or data sets: their names, or what is said of each, and nothing else."""
    values = [entry for entry in value if isinstance(entry, str | dict)] if isinstance(value, list) else value
    names = [entry for entry in (values if isinstance(values, list) else [values]) if isinstance(entry, str)]
    if len(names) > _MAX_NAMES or any(len(name) > MAX_NAME for name in names):
        raise BitconvError(
            f"its front matter names too much: {key} takes {_MAX_NAMES} names of {MAX_NAME} characters",
            code=Code.TOO_LARGE,
            file=path,
        )
    return values


def _document(text: str) -> Any:
    events = (event for event in yaml.parse(text, Loader=_Loader))
    scalars = _Scalars()
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            value = _value(next(events), events, scalars, 0)
            following = [type(event) for event in events]
            if following != [yaml.DocumentEndEvent, yaml.StreamEndEvent]:
                raise ValueError("it has more than one document")
            return value
    return None


def _value(event: Any, events: Iterator[Any], scalars: _Scalars, depth: int) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return scalars.value(event)
    if isinstance(event, yaml.AliasEvent):
        raise ValueError("it has an alias, *" + event.anchor)
    if depth > _MAX_DEPTH:
        raise ValueError("its values are nested too deep")
    if isinstance(event, yaml.SequenceStartEvent):
        values = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            values.append(_value(event, events, scalars, depth + 1))
        return values
    mapping = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, scalars, depth + 1)
        value = _value(next(events), events, scalars, depth + 1)
        if isinstance(key, str):
            mapping[key] = value
    return mapping


class _Scalars(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):  # type: ignore[misc]
    """Plain scalars become what YAML makes of them: numbers, booleans, dates."""

    def __init__(self) -> None:
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    def value(self, event: Any) -> Any:
        if not event.implicit[0] or len(event.value) > _MAX_NUMBER:
            return event.value
        tag = self.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == self.DEFAULT_SCALAR_TAG:
            return event.value
        return self.construct_object(yaml.ScalarNode(tag, event.value))
