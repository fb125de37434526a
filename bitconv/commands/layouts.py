"""The packed layouts in tables, for docs/types.md and for their pages in docs/layouts.

Nothing is stated here: all of it is the layouts' own, and the runners'.
"""

from __future__ import annotations

import numpy as np

from bitconv.backends import BACKENDS, MILLISECONDS, sources, table_rows
from bitconv.commands.families import table
from bitconv.layouts import PACKED
from bitconv.layouts.layout import Layout, float16_scale
from bitconv.layouts.registry import make_layout
from bitconv.layouts.tiled import TiledLayout
from bitconv.runners import RUNNERS, Runner, default_runner

# Rows and columns that every layout takes, tiled ones in the tile that bitconv chooses.
_ROWS, _COLUMNS = 3072, 3072
# A scale that float16 does not hold.
_SCALE = np.float32(0.3)


def tables() -> dict[str, str]:
    """The tables of docs/types.md by the comments around them. A test holds them; tests/tables.py writes them."""
    layouts = [make_layout(name, (_ROWS, _COLUMNS)) for name in PACKED]
    types = (
        (f"[`{x.name}`](layouts/{x.name}.md)", _bits(x), _scale(x), _implied_runner(x), _columns(x)) for x in layouts
    )
    several = ((f"`{x.name}`", _several(x, _COLUMNS), _several(x, None)) for x in layouts)
    return {
        "layouts": table(("type", "bits a weight", "scale", "runner", "columns in multiples of"), types),
        "scales": table(("type", "a scale a row", "a scale for each group of columns"), several),
    }


def backends_table() -> str:
    """The table of docs/runners.md. A test holds it; print this to write it anew."""
    rows = ((f"`{runner}`", f"`{name}`", *cells) for runner, name, *cells in table_rows())
    listed = "\n".join(f"{number}. {source}" for number, source in enumerate(sources(), 1))
    return f"{table(('runner', 'type', *BACKENDS), rows)}\n\n{listed}"


def milliseconds_table() -> str:
    """The same of what was measured on x86."""
    rows = (
        (f"`{runner}`", f"`{name}`", f"{milliseconds:.3g} ms")
        for runner, times in MILLISECONDS.items()
        for name, milliseconds in sorted(times.items(), key=lambda one: one[1])
    )
    return table(("runner", "type", "a token"), rows)


def facts(name: str) -> str:
    """The table on a layout's own page, between comments that name it. See tables."""
    layout = make_layout(name, (_ROWS, _COLUMNS))
    rows = [
        ("bits a weight", _bits(layout)),
        ("columns in multiples of", _columns(layout)),
        ("scale", _scale(layout)),
        ("a scale a row", _several(layout, _COLUMNS)),
        ("a scale for each group of columns", _several(layout, None)),
        *(
            (f"in {r.name}", f"type {r.type_ids[name]}, file type {r.types[name]}{_least(r, name)}")
            for r in RUNNERS
            if name in r.types
        ),
        *(
            (f"in {r.name}", f"type {r.type_ids[name]}, file type {r.unproven[name]}; read, not written: unproven")
            for r in RUNNERS
            if name in r.unproven
        ),
    ]
    if layout.max_batch is not None:
        rows.append(("tokens at a time", f"{layout.max_batch} at most (`-b {layout.max_batch}`)"))
    return table(("", ""), rows)


def _bits(layout: Layout) -> str:
    """Of the rows alone, in the limit of long ones."""
    columns = 64 * _COLUMNS
    wide = make_layout(layout.name, (_ROWS, columns))
    return f"{sum(region.row_bytes for region in wide.regions(_ROWS, columns)) * 8 / columns:.4g}"


def _columns(layout: Layout) -> str:
    if isinstance(layout, TiledLayout):
        return "see `bitconv kernel-config`"
    least = next(columns for columns in range(1, 1 << 12) if layout.obstacle(_ROWS, columns) is None)
    return f"{least}{_least(default_runner(layout.name, 'llama'), layout.name)}"


def _least(runner: Runner, name: str) -> str:
    return f", at least {runner.min_columns[name]} columns" if name in runner.min_columns else ""


def _scale(layout: Layout) -> str:
    columns = layout.scale_columns(_COLUMNS)
    where = "a tensor" if columns is None else "a row" if columns == _COLUMNS else f"for each {columns} columns"
    text = f"{_float(layout)} {where}"
    return text + (", or 1 there and float32 in a `.scale` tensor" if layout.scale_beside else "")


def _float(layout: Layout) -> str:
    stored = layout.stored_scale(_SCALE)
    return "float32" if stored == _SCALE else "float16" if stored == float16_scale(_SCALE) else "rounded"


def _several(layout: Layout, group: int | None) -> str:
    """How scales of `group` columns each are kept, or where that is None, of the fewest columns that have one."""
    columns = layout.scale_columns(_COLUMNS)
    if columns is None or (group is None and columns == _COLUMNS):
        return "refused"
    kept = "exact" if layout.exact_scale else f"exact where {_float(layout)} holds every scale"
    return kept if group is not None else f"{kept}, in groups of {columns} or a multiple"


def _implied_runner(layout: Layout) -> str:
    return default_runner(layout.name, "llama").name + (", built for the shapes" if layout.tile is not None else "")
