"""Seeded mutations: bytes flipped, numbers and values replaced, pieces cut out, doubled and moved."""

from __future__ import annotations

import random
import re

from fuzz.targets import NUMBERS, TOKENS

_VALUE = re.compile(rb'"[^"\\]{0,40}"|-?\d+(?:\.\d+)?|true|false|null')
# Of a large file, its start is what is parsed.
_HEADER = 4096


def mutated(seed: bytes, numbers: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(numbers.choice((1, 1, 1, 2, 4))):
        end = min(len(data), _HEADER) if numbers.random() < 0.8 else len(data)
        at = numbers.randrange(max(end, 1))
        kind = numbers.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << numbers.randrange(8)
        elif kind == 1:
            number = numbers.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 2:
            del data[at : at + numbers.choice((1, 4, 8, 100))]
        elif kind == 3:
            piece = data[at : at + numbers.choice((1, 8, 64))]
            other = numbers.randrange(max(end, 1))
            data[other:other] = piece
        elif kind == 4:
            values = [*_VALUE.finditer(data[:_HEADER])]
            if values:
                value = numbers.choice(values)
                data[value.start() : value.end()] = numbers.choice(TOKENS)
        else:
            del data[at:]
    return bytes(data)
