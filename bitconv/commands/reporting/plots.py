"""The plots of a report, by matplotlib, as SVG that takes the page's own colours for text and lines."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from textwrap import shorten
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from bitconv.commands.inspect import InspectedPart, InspectedTensor, kind_of

# Stands for the page's colour of text until the SVG is in it.
_TEXT = "#010203"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bitconv",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT),
}
_MOST_LABELS = 16
_WIDTH = 4.5  # inches, of all alike: the page scales them to one width, and a phone has not more
P = ParamSpec("P")


def _as_svg(plot: Callable[P, Figure]) -> Callable[P, str]:
    """The plot's SVG, without a size of its own: the page says how wide it is."""

    @wraps(plot)
    def svg(*given: P.args, **named: P.kwargs) -> str:
        with mpl.rc_context(_STYLE), io.StringIO() as text:
            plot(*given, **named).savefig(
                text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
            )
            written = text.getvalue()
        written = re.sub(r"\s*\n\s*", " ", written[written.index("<svg") :].replace(_TEXT, "currentColor"))
        return re.sub(r'^<svg (.*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", written)

    return svg


@_as_svg
def size_by_part(parts: Sequence[InspectedPart]) -> Figure:
    """A bar a part, in MB."""
    figure = Figure((_WIDTH, 0.4 + 0.3 * len(parts)))
    axes = figure.subplots()
    names = [f"{part.name} ({shorten(', '.join(part.types), 24, placeholder=' …')})" for part in reversed(parts)]
    size = max(sum(part.nbytes for part in parts), 1)
    bars = axes.barh(range(len(names)), [part.nbytes / 1e6 for part in reversed(parts)], color="#4c78a8")
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, [f" {part.nbytes / 1e6:,.2f} ({part.nbytes / size:.1%})" for part in reversed(parts)])
    axes.set_xlabel("MB")
    axes.margins(x=0.3)
    return figure


@_as_svg
def heat_map(
    tensors: Sequence[InspectedTensor],
    value: Callable[[InspectedTensor], float],
    colours: str,
    *,
    centred: bool = False,
) -> Figure:
    """Of a value in percent, by layer and kind of tensor. centred: 0 is in the middle of the colours."""
    kinds, layers, values = _grid(tensors, value)
    figure = Figure((_WIDTH, 0.8 + 0.26 * len(kinds)))
    axes = figure.subplots()
    far = float(np.nanmax(np.abs(values))) or 1.0
    limits: dict[str, Any] = {"vmin": -far, "vmax": far} if centred else {}
    image = axes.imshow(values, colours, aspect="auto", interpolation="nearest", **limits)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xticks(range(0, layers, -(-layers // _MOST_LABELS)))
    axes.set_xlabel("layer")
    figure.colorbar(image, format="%.3g %%", pad=0.02)
    return figure


@_as_svg
def scales_by_layer(tensors: Sequence[InspectedTensor]) -> Figure:
    """A line a kind of tensor."""
    kinds, layers, values = _grid(tensors, lambda tensor: np.nan if tensor.scale is None else tensor.scale)
    figure = Figure((_WIDTH, 3.2))
    axes = figure.subplots()
    for kind, row in zip(kinds, values, strict=True):
        axes.plot(range(layers), row, marker=".", linewidth=1, label=kind)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.set_xticks(range(0, layers, -(-layers // _MOST_LABELS)))
    axes.set_xlabel("layer")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _grid(
    tensors: Sequence[InspectedTensor], value: Callable[[InspectedTensor], float]
) -> tuple[list[str], int, npt.NDArray[np.float64]]:
    """Kinds, layers, and (kinds, layers), NaN where there is no such tensor. Of tensors of layers alone."""
    found: Mapping[tuple[str, int], float] = {
        (kind_of(tensor.name), int(tensor.name.split(".")[1])): value(tensor) for tensor in tensors
    }
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    layers = 1 + max(layer for _, layer in found)
    values = np.full((len(kinds), layers), np.nan)
    for (kind, layer), number in found.items():
        values[kinds.index(kind), layer] = number
    return kinds, layers, values
