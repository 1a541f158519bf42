"""Figure: methods × corruptions, error relative to the baseline, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from tta_bench.report.figures import plot, sheet, text
from tta_bench.report.figures.section import Drawn, Section, is_known
from tta_bench.report.figures.style import GRID, MUTED
from tta_bench.report.table import ErrorTable

_WIDTH, _HEIGHT = 0.4, 0.2  # of a cell, inches
_LEVELS = 10  # of colour on each side of zero
_MAP = "RdBu_r"  # blue and red stay apart for colour-blind readers
_LEAST = 1.0  # points: smaller differences never have the strongest colour
_NONE = {"facecolor": "none", "edgecolor": GRID, "hatch": "//////", "linewidth": 0}


def draw(section: Section) -> Iterator[Drawn]:
    """The figure at the most severe severity, of the source models whose baseline has a result."""
    table, baseline = section.worst, section.content.baseline
    found = {model: relative(table, model, baseline) for model in table.models}
    panels = {model: cells for model, cells in found.items() if any(np.isfinite(v).any() for v, _ in cells.values())}
    if not panels:
        return
    every = np.concatenate([values for cells in panels.values() for values, _ in cells.values()])
    fewer = any(signs.any() for cells in panels.values() for _, signs in cells.values())
    most = max(_LEAST, float(np.nanpercentile(np.abs(every), 95)))
    title, conditions = f"Error relative to {baseline}", section.conditions()
    notes = ["Points of error: below zero (blue) is better", *([plot.FEWER] if fewer else [])]
    without = [model for model in table.models if model not in panels]
    notes += [f"No {baseline} to compare with, or nothing else: {', '.join(without)}"] if without else []
    rows = [row for row in table.rows if row.label != baseline]
    words = section.words(title, _legend(most, empty=bool(np.isnan(every).any())), rows, conditions, notes)
    page = sheet.Sheet(words, list(panels), _room(table, max(map(len, panels.values())), panels))
    for axes, cells in zip(page.axes, panels.values(), strict=True):
        _panel(axes, table, cells, most)
    what = f"Error minus the error of {baseline} with the same source model, points; the mean leaves clean out."
    yield Drawn(f"heatmap{section.suffix}", title, section.caption(what, conditions, rows, notes), page.figure)


def relative(table: ErrorTable, model: str, baseline: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each other method with a result: errors minus the baseline's, by column of the table, points (not a number
    where one has none), and whether one of the two is a mean over fewer cells than planned."""
    rows = [row for row in table.of(model) if is_known(row)]
    base = next((row for row in rows if row.label == baseline), None)
    found = {}
    for row in rows:
        if base is not None and row is not base:
            pairs = [(table.cell(row, name), table.cell(base, name)) for name in table.columns]
            known = [mine.mean is not None and its.mean is not None for mine, its in pairs]
            values = [(mine.mean or 0.0) - (its.mean or 0.0) for mine, its in pairs]
            signs = [mine.state != "ok" or its.state != "ok" for mine, its in pairs]
            found[row.label] = (np.where(known, values, np.nan), np.array(signs) & np.array(known))
    return found


def _room(table: ErrorTable, rows: int, panels: Mapping[str, Mapping[str, object]]) -> sheet.Room:
    left = 0.1 + min(2.6, text.widest([label for cells in panels.values() for label in cells], 8))
    below = 0.1 + 0.72 * text.widest([name.replace("_", " ") for name in table.columns], 8)
    return sheet.Room(_WIDTH * len(table.columns), _HEIGHT * rows, left=left, bottom=below)


def _legend(most: float, *, empty: bool) -> list[sheet.Entry]:
    said = [f"≤ −{most:.1f}", f"−{most / 2:.1f}", "0", f"+{most / 2:.1f}", f"≥ +{most:.1f}"]
    shades = [_colour(level) for level in (-_LEVELS, -_LEVELS // 2, 0, _LEVELS // 2, _LEVELS)]
    bars = [{"facecolor": shade, "edgecolor": GRID, "linewidth": 0.4} for shade in shades]
    entries = [sheet.Entry(label, bar=bar) for label, bar in zip(said, bars, strict=True)]
    return entries + ([sheet.Entry("no result", bar=_NONE | {"edgecolor": MUTED})] if empty else [])


def _colour(level: int) -> str:
    return to_hex(matplotlib.colormaps[_MAP](0.5 + 0.46 * level / _LEVELS))


def _panel(axes: Axes, table: ErrorTable, cells: Mapping[str, tuple[np.ndarray, np.ndarray]], most: float) -> None:
    values = np.stack([numbers for numbers, _ in cells.values()])
    signs = np.stack([stars for _, stars in cells.values()])
    levels = np.clip(np.round(values / most * _LEVELS), -_LEVELS, _LEVELS)
    for level in np.unique(levels[np.isfinite(levels)]):
        _fill(axes, np.argwhere(levels == level), {"facecolor": _colour(int(level)), "linewidth": 0})
    if np.isnan(levels).any():
        _fill(axes, np.argwhere(np.isnan(levels)), _NONE)
    for y, x in np.argwhere(np.isfinite(levels)):
        strong = abs(levels[y, x]) > 0.65 * _LEVELS  # on dark colours
        said = f"{values[y, x]:+.1f}".replace("-", "−") + "*" * bool(signs[y, x])
        axes.text(x, y, said, ha="center", va="center", fontsize=6.5, color="#ffffff" if strong else "#000000")
    _axes(axes, table, list(cells))


def _fill(axes: Axes, places: np.ndarray, style: dict[str, object]) -> None:
    """Cells of one colour as one artist."""
    corners = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]])
    vertices = (places[:, None, ::-1] + corners).reshape(-1, 2)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(places)
    axes.add_patch(PathPatch(Path(vertices, codes), antialiased=False, **style))


def _axes(axes: Axes, table: ErrorTable, labels: Sequence[str]) -> None:
    axes.set_xlim(-0.5, len(table.columns) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    names = [name.replace("_", " ") for name in table.columns]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), [text.shortened(label, 2.6, 8) for label in labels])
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
