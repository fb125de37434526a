"""The tokenizer files of a Hugging Face model directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import is_there
from bitconv.system.json_files import read_json

# Every file that this package reads, but for config.json; patterns.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


class AddedToken(NamedTuple):
    """A token that is matched in the text before anything else. special: a control token, not text."""

    content: str
    special: bool


@dataclass(frozen=True)
class TokenizerFiles:
    """What the directory says, each file parsed once; files that are missing are empty, `json` is None.

    added: all added tokens by id, from added_tokens.json, tokenizer.json and tokenizer_config.json; where they
    differ in `special` the last of these holds, as in transformers.
    """

    directory: Path
    config: Mapping[str, Any]
    json: Mapping[str, Any] | None
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    added: Mapping[int, AddedToken]

    @property
    def is_llama(self) -> bool:
        """Whether transformers runs LlamaTokenizer, whose settings say what other classes find in the vocabulary."""
        name = str(self.tokenizer_config.get("tokenizer_class") or self.config.get("tokenizer_class"))
        return name.removeprefix("Code").startswith("LlamaTokenizer")

    @property
    def json_path(self) -> Path:
        return self.directory / "tokenizer.json"

    @property
    def vocab_size(self) -> int:
        size = self.config.get("vocab_size")
        if not isinstance(size, int) or size < 1:
            raise BitconvError(
                f"vocab_size is {size!r}; expected the number of tokens",
                code=Code.CONFIG,
                file=self.directory / "config.json",
            )
        return size


def read_files(directory: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Read the tokenizer files of `directory`. Raises BitconvError for one that is there and malformed."""
    tokenizer_json = directory / "tokenizer.json"
    json = read_json(tokenizer_json, directory) if is_there(tokenizer_json) else None
    tokenizer_config = _read_optional(directory / "tokenizer_config.json")
    special_tokens_map = _read_optional(directory / "special_tokens_map.json")
    return TokenizerFiles(
        directory=directory,
        config=config,
        json=json,
        tokenizer_config=tokenizer_config,
        special_tokens_map=special_tokens_map,
        generation_config=_read_optional(directory / "generation_config.json"),
        added=_added_tokens(directory, json, tokenizer_config, special_tokens_map),
    )


def _is_id(key: str) -> bool:
    """Whether a key is a number, and not one of so many digits that Python does not take it."""
    return key.isdecimal() and len(key) < 20


def read_settings(directory: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """The small files alone: as if there were neither tokenizer.json nor an added token."""
    return TokenizerFiles(
        directory=directory,
        config=config,
        json=None,
        tokenizer_config=_read_optional(directory / "tokenizer_config.json"),
        special_tokens_map=_read_optional(directory / "special_tokens_map.json"),
        generation_config=_read_optional(directory / "generation_config.json"),
        added={},
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path, path.parent) if is_there(path) else {}


def _added_tokens(
    directory: Path,
    json: Mapping[str, Any] | None,
    tokenizer_config: Mapping[str, Any],
    special_tokens_map: Mapping[str, Any],
) -> dict[int, AddedToken]:
    sources: list[tuple[Path, list[tuple[Any, Any]]]] = []
    path = directory / "added_tokens.json"
    # This file does not say what is special: tokens with a role are.
    special = {*_named_tokens(tokenizer_config), *_named_tokens(special_tokens_map)}
    texts = _read_optional(path).items()
    sources.append((path, [(token_id, {"content": text, "special": text in special}) for text, token_id in texts]))
    path = directory / "tokenizer.json"
    entries = (json or {}).get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BitconvError("added_tokens is no list of objects", code=Code.TOKENIZER, file=path)
    sources.append((path, [(entry.get("id"), entry) for entry in entries]))
    path = directory / "tokenizer_config.json"
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise BitconvError("added_tokens_decoder is no object", code=Code.TOKENIZER, file=path)
    sources.append((path, [(int(key) if _is_id(key) else key, entry) for key, entry in decoder.items()]))

    added: dict[int, AddedToken] = {}
    for path, tokens in sources:
        for token_id, entry in tokens:
            content = entry.get("content") if isinstance(entry, dict) else None
            if not isinstance(token_id, int) or token_id < 0 or not isinstance(content, str):
                raise BitconvError(
                    f"added token {token_id!r:.80} has no id and content", code=Code.TOKENIZER, file=path
                )
            if token_id in added and added[token_id].content != content:
                raise BitconvError(
                    f"added token {token_id} is {content!r}, and {added[token_id].content!r} in another entry",
                    code=Code.TOKENIZER,
                    file=path,
                )
            added[token_id] = AddedToken(content, bool(entry.get("special", False)))
    return added


def _named_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts of bos_token, pad_token and so on, and of additional_special_tokens."""
    for key, value in config.items():
        if key.endswith("_token") or key == "additional_special_tokens":
            for entry in value if isinstance(value, list) else [value]:
                text = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(text, str):
                    yield text


def steps(node: Any, children: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a tokenizer.json component in order, nested sequences flattened.

    children: the key that a Sequence of this component lists its steps under.
    """
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += reversed(node)
        elif isinstance(node, dict) and node.get("type") == "Sequence":
            waiting.append(node.get(children))
        elif isinstance(node, dict):
            yield node
