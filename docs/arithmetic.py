"""Draws docs/arithmetic.svg: bfloat16 latents around a threshold, and what two arithmetics make of them.

python docs/arithmetic.py writes it anew.
"""

from pathlib import Path

import numpy as np
from bitconv.models.arithmetic import Arithmetic, rounded

# A mean that bfloat16 rounds, so that thresholds and ties both show.
MEAN = np.float32(0.0229)
FIRST, LAST = -3, 6  # latents, counted in steps of bfloat16 from the first that float32 makes a 1
WIDTH, STEP, TOP = 720, 62, 74
COLOURS = {0: "#9aa5b1", 1: "#c2410c"}


def latent(pattern: int) -> np.float32:
    return np.float32(np.array([pattern << 16], "<u4").view("<f4")[0])


def svg() -> str:
    least = Arithmetic("f32").threshold("bf16", MEAN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 300" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="300" fill="white"/>',
        f'<text x="16" y="24" font-size="14">Neighbouring bfloat16 latents, their mean magnitude being {MEAN:g}:'
        " the product with its inverse, and the code</text>",
    ]
    rows = (("float32", "f32"), ("bfloat16", "bf16"))
    for column, steps in enumerate(range(FIRST, LAST)):
        value = latent(least + steps)
        parts.append(f'<text x="{150 + STEP * column}" y="{TOP - 16}" text-anchor="middle">{value:.5g}</text>')
    for row, (name, dtype) in enumerate(rows):
        arithmetic, y = Arithmetic(dtype), TOP + 24 + 90 * row
        threshold = arithmetic.threshold("bf16", MEAN)
        inverse = arithmetic.inverse(MEAN)
        parts.append(f'<text x="16" y="{y + 4}" font-size="14">{name}</text>')
        parts.append(f'<text x="16" y="{y + 20}" fill="#52606d">inverse {inverse:.6g}</text>')
        for column, steps in enumerate(range(FIRST, LAST)):
            x, pattern = 150 + STEP * column, least + steps
            product = rounded(latent(pattern) * inverse, dtype)
            code = int(pattern >= threshold)
            tie = ' stroke="black" stroke-width="3"' if product == 0.5 else ""
            parts.append(f'<circle cx="{x}" cy="{y}" r="15" fill="{COLOURS[code]}"{tie}/>')
            parts.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle" fill="white">{code}</text>')
            parts.append(f'<text x="{x}" y="{y + 34}" text-anchor="middle" fill="#52606d">{product:.5g}</text>')
    parts.append(
        '<text x="16" y="276" fill="#52606d">Ringed: the product is exactly one half, a tie, and half to even'
        " makes it 0. Of negative latents the same with -1.</text></svg>"
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("arithmetic.svg").write_text(svg(), encoding="utf-8")
