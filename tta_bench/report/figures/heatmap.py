"""Figure: methods × corruptions, error relative to the baseline, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from tta_bench.report.figures import plot, sheet, text
from tta_bench.report.figures.section import Drawn, Section, is_known
from tta_bench.report.figures.style import GRID, MUTED
from tta_bench.report.table import Cell, ErrorTable

_WIDTH, _HEIGHT = 0.4, 0.2  # of a cell, inches
_LEVELS = 10  # of colour on each side of zero
_MAP = "RdBu_r"  # blue and red stay apart for colour-blind readers
_LEAST = 1.0  # points: smaller differences never have the strongest colour
_LONGEST = 2.6  # label, inches
_NONE = {"facecolor": "none", "edgecolor": GRID, "hatch": "//////", "linewidth": 0}


def draw(section: Section) -> Iterator[Drawn]:
    """The figure at the most severe severity, of the source models whose baseline has a result."""
    table, baseline = section.worst, section.content.baseline
    rows = [row for row in table.rows if row.label != baseline]
    labels = list(dict.fromkeys(row.label for row in rows if is_known(row)))
    found = {model: relative(table, model, labels, baseline) for model in table.models}
    panels = {model: grid for model, grid in found.items() if np.isfinite(grid.values).any()}
    if not panels:
        return
    every = np.concatenate([grid.values for grid in panels.values()])
    most = max(_LEAST, float(np.nanpercentile(np.abs(every), 95)))
    title, conditions, notes = (
        f"Error relative to {baseline}",
        section.conditions(),
        list(_notes(table, panels, baseline)),
    )
    words = section.words(title, _legend(most, empty=bool(np.isnan(every).any())), rows, conditions, notes)
    page = sheet.Sheet(words, list(panels), _room(table, labels))
    for axes, grid, last in zip(page.axes, panels.values(), page.last_rows, strict=True):
        _panel(axes, grid, most)
        _axes(axes, table, labels, names=last)
    what = f"Error minus the error of {baseline} with the same source model, points; the mean leaves clean out."
    yield Drawn(f"heatmap{section.suffix}", title, section.caption(what, conditions, rows, notes), page.figure)


class Grid(NamedTuple):
    """Methods × columns of a table: ``values`` minus the baseline's, points, not a number where one of the two has none;
    ``fewer``: whether one of the two is a mean over fewer cells than planned."""

    values: np.ndarray
    fewer: np.ndarray


def relative(table: ErrorTable, model: str, labels: Sequence[str], baseline: str) -> Grid:
    """Errors of methods on a source model relative to the baseline's."""
    found = {row.label: row for row in table.of(model)}
    none = Cell(None, None, "missing")
    cells = [[table.cell(found[k], n) if k in found else none for n in table.columns] for k in (*labels, baseline)]
    means = np.array([[np.nan if cell.mean is None else cell.mean for cell in line] for line in cells])
    fewer = np.array([[cell.state != "ok" for cell in line] for line in cells])
    values = means[:-1] - means[-1]
    return Grid(values, (fewer[:-1] | fewer[-1]) & np.isfinite(values))


def _notes(table: ErrorTable, panels: Mapping[str, Grid], baseline: str) -> Iterator[str]:
    yield "Points of error: below zero (blue) is better"
    if any(grid.fewer.any() for grid in panels.values()):
        yield plot.FEWER
    if without := [model for model in table.models if model not in panels]:
        yield f"Nothing to compare: {baseline} or all others have no result on {', '.join(without)}"


def _room(table: ErrorTable, labels: Sequence[str]) -> sheet.Room:
    left = 0.1 + min(_LONGEST, text.widest(labels, 8))
    below = 0.12 + 0.72 * text.widest([name.replace("_", " ") for name in table.columns], 8)
    return sheet.Room(_WIDTH * len(table.columns), _HEIGHT * len(labels), left=left, bottom=0.05, below=below)


def _legend(most: float, *, empty: bool) -> list[sheet.Entry]:
    said = [f"≤ −{most:.1f}", f"−{most / 2:.1f}", "0", f"+{most / 2:.1f}", f"≥ +{most:.1f}"]
    shades = [_colour(level) for level in (-_LEVELS, -_LEVELS // 2, 0, _LEVELS // 2, _LEVELS)]
    bars = [{"facecolor": shade, "edgecolor": GRID, "linewidth": 0.4} for shade in shades]
    entries = [sheet.Entry(label, bar=bar) for label, bar in zip(said, bars, strict=True)]
    return entries + ([sheet.Entry("no result", bar=_NONE | {"edgecolor": MUTED})] if empty else [])


def _colour(level: int) -> str:
    return to_hex(matplotlib.colormaps[_MAP](0.5 + 0.46 * level / _LEVELS))


def _panel(axes: Axes, grid: Grid, most: float) -> None:
    values = grid.values
    levels = np.clip(np.round(values / most * _LEVELS), -_LEVELS, _LEVELS)
    for level in np.unique(levels[np.isfinite(levels)]):
        _fill(axes, np.argwhere(levels == level), {"facecolor": _colour(int(level)), "linewidth": 0})
    if np.isnan(levels).any():
        _fill(axes, np.argwhere(np.isnan(levels)), _NONE)
    for y, x in np.argwhere(np.isfinite(levels)):
        strong = abs(levels[y, x]) > 0.65 * _LEVELS  # on dark colours
        said = f"{values[y, x]:+.1f}".replace("-", "−") + "*" * bool(grid.fewer[y, x])
        axes.text(x, y, said, ha="center", va="center", fontsize=6.5, color="#ffffff" if strong else "#000000")


def _fill(axes: Axes, places: np.ndarray, style: dict[str, object]) -> None:
    """Cells of one colour as one artist."""
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])
    vertices = (places[:, None, ::-1] + corners).reshape(-1, 2)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(vertices, codes), antialiased=False, **style))


def _axes(axes: Axes, table: ErrorTable, labels: Sequence[str], *, names: bool) -> None:
    axes.set_xlim(-0.5, len(table.columns) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    below = [name.replace("_", " ") if names else "" for name in table.columns]
    axes.set_xticks(range(len(below)), below, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), [text.shortened(label, _LONGEST, 8) for label in labels])
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
