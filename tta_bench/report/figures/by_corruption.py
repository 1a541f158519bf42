"""Figure: error by corruption, grouped bars, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from tta_bench.report.figures import layout, plot
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import INK, MUTED, MethodStyle
from tta_bench.report.table import CORRUPTIONS, ErrorTable

_FILLED = 0.86  # share of the distance between two corruptions
_BAR, _NARROWEST_BAR = 0.07, 0.025  # inches
_NO_RESULT: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 3.2, "color": MUTED, "clip_on": False}


def draw(section: Section) -> Iterator[Drawing]:
    """The figure of the most severe severity."""
    table = section.worst
    rows = [row for row in table.rows if has_result(row)]
    models = [model for model in table.models if any(row.model == model for row in rows)]
    if not models:
        return
    styles = section.styles_of(row.label for row in rows)
    cells = [table.cell(row, name) for row in rows for name in table.columns]
    spread = plot.Spread.of(cells)
    notes = [*plot.notes(spread, cells), *(["× no result"] if any(cell.mean is None for cell in cells) else [])]
    kind = "corruption" if table.setting.family == CORRUPTIONS else "shift"
    title = f"Error by {kind}"
    summary = f"Error in per cent by {kind}, a panel for each source model; the mean leaves clean out."
    if section.compound:
        title, summary = "Error", "Error in per cent on all images of the stream, a panel for each source model."
    text = section.text("errors", title, summary, rows=table.rows, notes=notes)
    bars = len(table.columns) * (len(styles) + 1)
    width = max(layout.COLUMN_WIDTH, min(layout.TEXT_WIDTH, _BAR * bars), _NARROWEST_BAR * bars)
    below = layout.names_height(table.columns)
    legend = [Patch(label=layout.shorten(label), **style.bar) for label, style in styles.items()]
    figure, grid = layout.panels(text, models, [legend], width=width, height=1.75, below=below,
                                 sharex=True, sharey=True)  # fmt: skip
    for axes, model in zip(grid, models, strict=True):
        _panel(axes, table, model, styles, spread)
    grid[0].set_ylim(0, max(1.0, 1.04 * float(np.nanmax(plot.means(cells) + spread.lengths(cells)[1]))))
    yield Drawing(text, figure)


def _panel(axes: Axes, table: ErrorTable, model: str, styles: Mapping[str, MethodStyle], spread: plot.Spread) -> None:
    rows = [row for row in table.of(model) if has_result(row)]
    width = _FILLED / len(rows)
    for number, row in enumerate(rows):
        cells = [table.cell(row, name) for name in table.columns]
        x = np.arange(len(cells)) + (number + 0.5) * width - _FILLED / 2
        errors = plot.means(cells)
        axes.bar(x, errors, 0.92 * width, yerr=spread.lengths(cells), error_kw={"elinewidth": 0.7, "ecolor": INK},
                 **styles[row.label].bar)  # fmt: skip
        plot.stars(axes, x, cells, spread)
        if np.isnan(errors).any():
            missing = x[np.isnan(errors)]
            axes.plot(missing, np.zeros_like(missing), **_NO_RESULT)
    axes.set_xlim(-0.6, len(table.columns) - 0.4)
    plot.error_axis(axes)
    layout.name_columns(axes, table.columns)
    begins = np.cumsum([0, *(len(members) for _, members in table.groups)])
    named = [(name, (a + b - 1) / 2) for (name, _), a, b in zip(table.groups, begins, begins[1:], strict=False) if name]
    plot.groups_above(axes, [name for name, _ in named], [middle for _, middle in named], begins[1:-1] - 0.5)
