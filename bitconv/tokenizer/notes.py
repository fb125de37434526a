"""What of a checkpoint's tokenizer a file cannot hold, though all that it holds is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitconv.gguf import Metadata
from bitconv.tokenizer.files import read_settings
from bitconv.tokenizer.special import ENDS_BY_TEXT, LATER_ENDS_BY_TEXT, configured_ids

# The keys whose tokens end a generation.
_ENDS_BY_KEY = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def tokenizer_notes(directory: Path, config: Mapping[str, Any], metadata: Metadata) -> list[str]:
    """A line for each thing. metadata: what the file has of the tokenizer."""
    files = read_settings(directory, config)
    tokens: Any = metadata["tokenizer.ggml.tokens"]
    kept = {metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ENDS_BY_KEY}
    ends = configured_ids(files, "eos_token_id")
    lost = [end for end in ends if end not in kept and tokens[end] not in ENDS_BY_TEXT]
    notes = []
    if lost:
        which = ", ".join(f"{tokens[end][:40]!r} ({end})" for end in lost[:8])
        which += f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        later = [end for end in lost if tokens[end] in LATER_ENDS_BY_TEXT]
        known = f" (llama.cpp of 2026 does, by their texts, at {len(later)} of them)" if later else ""
        notes.append(
            f"eos_token_id lists {len(ends)} tokens, and GGUF has a place for 3: runners will not stop at {which}"
            f"{known}; name them as stop words where you run the file"
        )
    after_special = metadata.get("tokenizer.ggml.add_space_prefix") and files.tokenizer_config.get("legacy") is not True
    if after_special and metadata["tokenizer.ggml.model"] == "llama" and files.is_llama:
        notes.append(
            "legacy is not true: within a text, runners put a space behind a special token, as this tokenizer does not"
        )
    return notes
