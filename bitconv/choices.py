"""The words that parameters take, in the Python API and on the command line alike.

Case and the signs between letters do not matter: I2_S, i2s and I2-S all mean i2_s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitconv.backends import BACKENDS
from bitconv.layouts import DENSE_TYPES, EIGHT_BIT, I2_S_ORDERS, PACKED, QUANTIZED, TERNARY_TYPES
from bitconv.runners import RUNNERS
from bitconv.system.errors import BitconvError, Code, option

# Presets, by what each gives the embedding and an untied head. small: what the publishers' own files have.
PRESETS = {"exact": "f16", "small": "q6_k, or a ternary type where they are ternary"}


@dataclass(frozen=True)
class Choice:
    """parameter: its name in the Python API. what: in a message. words: as they are written, and told to users."""

    parameter: str
    what: str
    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        """The word that is meant. BitconvError where there is none, with the nearest."""
        known = {_letters(word): word for word in self.words}
        letters = _letters(str(text))
        if letters in known:
            return known[letters]
        from difflib import get_close_matches

        nearest = get_close_matches(letters, known, n=1)
        *others, last = self.words
        raise BitconvError(
            f"{self.what} {text!r} is not known; {', '.join(others)} and {last} are",
            code=Code.USAGE,
            way_out=f"did you mean {option(self.parameter, known[nearest[0]])}?" if nearest else None,
        )

    def optional(self, text: str | None) -> str | None:
        return None if text is None else self.parse(text)

    def complete(self, incomplete: str) -> list[str]:
        """The words that begin so, for a shell."""
        return [word for word in self.words if _letters(word).startswith(_letters(incomplete))]


def _letters(text: str) -> str:
    return re.sub(r"[-_. ]", "", text).lower()


TYPE = Choice("type", "type", (*TERNARY_TYPES, "auto"))
REPACKED_TYPE = Choice("type", "type", TERNARY_TYPES)
TENSOR_TYPE = Choice("tensor_types", "type", (*TERNARY_TYPES, *QUANTIZED))
TILED_TYPE = Choice("type", "type with tiles", ("tl1", "tl2"))
EMBED_TYPE = Choice("embed_type", "embedding type", (*DENSE_TYPES, *PACKED))
PRESET = Choice("preset", "preset", tuple(PRESETS))
HEAD_TYPE = Choice("head_type", "head type", EMBED_TYPE.words)
FALLBACK = Choice("fallback", "fallback", ("error", "f16", "bf16", "f32", EIGHT_BIT))
RUNNER = Choice("runner", "runner", tuple(runner.name for runner in RUNNERS))
BACKEND = Choice("backend", "backend", BACKENDS)
SCALE_CONVENTION = Choice("scale_convention", "scale convention", ("multiply", "divide"))
TERNARIZE = Choice("ternarize", "rule to ternarize by", ("absmean", "absmean-bf16", "absmedian", "absmax"))
I2_S_ORDER = Choice("i2_s_order", "I2_S byte order", I2_S_ORDERS)
STORED = Choice("stored", "way to store weights", ("bf16", "f32", "packed"))
