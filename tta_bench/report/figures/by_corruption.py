"""Figure: error by corruption, grouped bars, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import FEW, INK, MUTED, MethodStyle
from tta_bench.report.table import CORRUPTIONS, ErrorTable, MethodErrors, shifted_of

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
    styles, left_out = section.drawn((row.label for row in rows), FEW)
    rows = [row for row in rows if row.label in styles]
    cells = [table.cell(row, name) for row in rows for name in table.columns]
    spread = plot.Spread.of(cells)
    own = {label: [row for row in rows if row.label == label] for label in styles}
    errors = {label: plot.means(table.cell(r, n) for r in of for n in table.columns) for label, of in own.items()}
    shared = Range.of(errors, section.content.baseline, start=0.0)
    notes = [_averaging(section), *plot.notes(spread, cells), *left_out, *limits.notes({"": shared})]
    notes += [*(["× no result"] if any(cell.mean is None for cell in cells) else [])]
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
        _panel(axes, table, [row for row in rows if row.model == model], styles, spread)
    top = max(1.0, 1.04 * float(np.nanmax(plot.means(cells) + spread.lengths(cells)[1])))
    grid[0].set_ylim(0, top)
    for axes, model in zip(grid, models, strict=True):
        shared.apply(axes)
        for row, x in _places(table, [row for row in rows if row.model == model]):
            values = plot.means(table.cell(row, name) for name in table.columns)
            shared.mark(axes, x, values, {"marker": "none", "color": styles[row.label].colour})
    yield Drawing(text, figure)


def _averaging(section: Section) -> str:
    """What a bar is a mean over."""
    seeds = f"Bars: means over {section.worst.seeds} seeds" if section.worst.seeds > 1 else ""
    shifts = len(shifted_of(section.worst.corruptions))
    mean = f"mean: over the {shifts} {section.worst.setting.noun}, without clean" if section.worst.averaged else ""
    text = "; ".join(filter(None, [seeds, mean]))
    return text[:1].upper() + text[1:]


def _places(table: ErrorTable, rows: Sequence[MethodErrors]) -> Iterator[tuple[MethodErrors, np.ndarray]]:
    """Each row of a panel with the middles of its bars."""
    for number, row in enumerate(rows):
        yield row, np.arange(len(table.columns)) + (number + 0.5) * _FILLED / len(rows) - _FILLED / 2


def _panel(
    axes: Axes, table: ErrorTable, rows: Sequence[MethodErrors], styles: Mapping[str, MethodStyle], spread: plot.Spread
) -> None:
    width = _FILLED / len(rows)
    for row, x in _places(table, rows):
        cells = [table.cell(row, name) for name in table.columns]
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
