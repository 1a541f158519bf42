"""Figure: methods × corruptions, error relative to the baseline, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from tta_bench.report.figures import layout, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import GRID
from tta_bench.report.render.grids import number_cell
from tta_bench.report.table import Cell, ErrorTable

_WIDTH, _HEIGHT = 0.37, 0.2  # of a cell, inches
_SCALE_HEIGHT = 0.9  # of the colour scale, at least, inches
_COLOURS = "RdBu_r"  # distinguishable for colour-blind readers
_LEAST = 1.0  # points: smaller differences never have the strongest colour


def draw(section: Section) -> Iterator[Drawing]:
    """The figure at the most severe severity, of the source models whose baseline has a result; none of one column."""
    if section.compound:
        return
    table, baseline = section.worst, section.content.baseline
    rows = [row for row in table.rows if row.label != baseline]
    labels = list(section.styles_of(row.label for row in rows if has_result(row)))
    grids = {model: relative(table, model, labels, baseline) for model in table.models}
    shown = {model: grid for model, grid in grids.items() if np.isfinite(grid.values).any()}
    if not shown:
        return
    scales = {model: _scale(grid, labels) for model, grid in shown.items()}
    summary = f"Error minus the error of {baseline} with the same source model, points; the mean leaves clean out."
    text = section.text("heatmap", f"Error relative to {baseline}", summary, rows=rows,
                        notes=_notes(table, shown, scales, baseline))  # fmt: skip
    width = 1.1 + _WIDTH * len(table.columns) + layout.widest(labels)
    height = 0.35 + max(_HEIGHT * len(labels), _SCALE_HEIGHT)
    figure, grid = layout.panels(text, list(shown), [], width=max(layout.COLUMN_WIDTH, width), height=height,
                                 below=layout.names_height(table.columns), sharex=True)  # fmt: skip
    for axes, (model, values) in zip(grid, shown.items(), strict=True):
        mesh = _panel(axes, values, scales[model])
        axes.set_yticks(range(len(labels)), [layout.shorten(label) for label in labels])
        layout.name_columns(axes, table.columns)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        extend = "both" if _beyond(values, scales[model]) else "neither"
        bar = axes.figure.colorbar(
            mesh, ax=axes, extend=extend, aspect=max(8, 10 * height), shrink=min(1.0, 1.5 / height)
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7)
    yield Drawing(text, figure)


class RelativeErrors(NamedTuple):
    """Methods × columns of a table.

    Attributes:
        values: error minus the baseline's, points; not a number where one of the two has no result.
        fewer: whether one of the two is a mean over fewer cells than planned.
    """

    values: np.ndarray
    fewer: np.ndarray


def relative(table: ErrorTable, model: str, labels: Sequence[str], baseline: str) -> RelativeErrors:
    """Errors of methods on a source model relative to the baseline's."""
    rows = {row.label: row for row in table.of(model)}
    none = Cell(None, None, "missing")
    cells = [[table.cell(rows[k], n) if k in rows else none for n in table.columns] for k in (*labels, baseline)]
    errors = np.stack([plot.means(line) for line in cells])
    fewer = np.array([[cell.state != "ok" for cell in line] for line in cells])
    values = errors[:-1] - errors[-1]
    return RelativeErrors(values, (fewer[:-1] | fewer[-1]) & np.isfinite(values))


def _scale(grid: RelativeErrors, labels: Sequence[str]) -> float:
    """The largest difference with a colour of its own in a panel, points: a few bad methods do not make others pale."""
    differences = {"": np.zeros(1), **dict(zip(labels, np.abs(grid.values), strict=True))}  # the baseline's own are 0
    return max(_LEAST, Range.of(differences, "", start=0.0).high)


def _beyond(grid: RelativeErrors, scale: float) -> bool:
    return bool((np.abs(grid.values[np.isfinite(grid.values)]) > scale).any())


def _notes(
    table: ErrorTable, shown: Mapping[str, RelativeErrors], scales: Mapping[str, float], baseline: str
) -> Iterator[str]:
    yield "Points of error: below zero (blue) is better" + "; each panel has its own colours" * (len(shown) > 1)
    if any(_beyond(grid, scales[model]) for model, grid in shown.items()):
        yield "Differences beyond a scale have its last colour"
    if any(np.isnan(grid.values).any() for grid in shown.values()):
        yield "Hatched: no result"
    if any(grid.fewer.any() for grid in shown.values()):
        yield plot.FEWER
    if without := [model for model in table.models if model not in shown]:
        yield f"Nothing to compare: {baseline} or all other methods have no result on {', '.join(without)}"


def _panel(axes: Axes, grid: RelativeErrors, most: float) -> QuadMesh:
    y, x = (np.arange(count + 1) - 0.5 for count in grid.values.shape)
    mesh = axes.pcolormesh(x, y, grid.values, cmap=_COLOURS, vmin=-most, vmax=most, edgecolor="white", linewidth=0.5)
    axes.invert_yaxis()
    axes.patch.set(facecolor="white", edgecolor=GRID, hatch="//////", linewidth=0)
    for row, column in np.argwhere(np.isfinite(grid.values)):
        value = grid.values[row, column]
        label = number_cell(value, sign=True).value + "*" * bool(grid.fewer[row, column])
        dark = abs(value) > 0.65 * most
        axes.text(column, row, label, ha="center", va="center", size=6.5, color="white" if dark else "black")
    return mesh
