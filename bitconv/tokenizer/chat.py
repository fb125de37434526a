"""Chat templates."""

from __future__ import annotations

import re
from pathlib import Path

from bitconv.gguf import Metadata
from bitconv.system.errors import BitconvError, Code
from bitconv.system.files import is_there, read_text
from bitconv.tokenizer.files import TokenizerFiles


def chat_metadata(files: TokenizerFiles) -> Metadata:
    """tokenizer.chat_template, and tokenizer.chat_template.NAME with tokenizer.chat_templates for the others.

    chat_template.jinja with additional_chat_templates/NAME.jinja wins over chat_template in tokenizer_config.json (a
    template, or a list of names and templates), as in transformers 5. In a name, what is no ASCII letter or digit
    becomes "_", as in the gguf package.
    """
    templates = _from_files(files.directory) or _from_config(files)
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items() if name != "default"}
    metadata: Metadata = {}
    if "default" in templates:
        metadata["tokenizer.chat_template"] = templates["default"]
    if named:
        metadata["tokenizer.chat_templates"] = sorted(named)
        metadata |= {f"tokenizer.chat_template.{name}": named[name] for name in sorted(named)}
    return metadata


def _from_files(directory: Path) -> dict[str, str]:
    paths = {"default": directory / "chat_template.jinja"}
    paths |= {path.stem: path for path in (directory / "additional_chat_templates").glob("*.jinja")}
    texts = {name: read_text(path, directory) for name, path in paths.items() if is_there(path)}
    # As in Python's text files, which is how transformers reads them.
    return {name: text.replace("\r\n", "\n").replace("\r", "\n") for name, text in texts.items()}


def _from_config(files: TokenizerFiles) -> dict[str, str]:
    value = files.tokenizer_config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        templates = {entry["name"]: entry["template"] for entry in value}
    except (LookupError, TypeError):
        templates = {"": None}
    if not all(isinstance(text, str) for item in templates.items() for text in item):
        raise BitconvError(
            "chat_template is neither text nor a list of names and texts",
            code=Code.TOKENIZER,
            file=files.directory / "tokenizer_config.json",
        )
    return templates
