"""Figure: error by corruption, grouped bars, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from tta_bench.report.figures import sheet, text
from tta_bench.report.figures.section import FEWER, Drawn, Section, is_known
from tta_bench.report.figures.style import INK, MUTED, Style
from tta_bench.report.table import Cell, ErrorTable, Row

_SPAN = 0.86  # of the room between two corruptions, filled by bars
_TITLE = "Error by corruption"


def draw(section: Section) -> Iterator[Drawn]:
    """The figure of the most severe severity."""
    table = section.worst
    models = [model for model in table.models if any(is_known(row) for row in table.of(model))]
    if not models:
        return
    shown = [row for row in table.rows if is_known(row)]
    styles = section.styles_of(row.label for row in shown)
    bars, what = _spread(table)
    marks = list(_marks(shown, table))
    conditions = section.conditions()
    words = section.words(_TITLE, sheet.bars(styles), table.rows, conditions, [f"Thin lines: {what}", *marks])
    page = sheet.Sheet(words, models, _room(table, len(styles)), columns=1)
    top = 1.04 * max(_top(cell, bars) for row in shown for cell in row.cells.values())
    for axes, model, last in zip(page.axes, models, page.last_rows, strict=True):
        _panel(axes, table, model, styles, bars)
        axes.set_ylim(0, top)
        _columns(axes, table, names=last)
    said = f"Error in per cent by corruption (mean: over the corruptions, clean left out), a panel for each source model, on {conditions}"
    caption = section.caption(said, "", table.rows, [f"Thin lines: {what}", *marks]).replace(" . ", ". ")
    yield Drawn(f"errors{section.suffix}", _TITLE, caption, page.figure)


def _room(table: ErrorTable, methods: int) -> sheet.Room:
    each = max(0.3, 0.045 * methods + 0.06)
    below = 0.16 + 0.72 * text.widest([_plain(name) for name in table.columns], 8)
    return sheet.Room(max(3.6, each * len(table.columns)), 1.5, bottom=below, top=0.42)


def _spread(table: ErrorTable) -> tuple[str, str]:
    """What error bars are: ("std" | "interval" | "", in words)."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    if any(cell.std is not None for cell in cells):
        return "std", "± standard deviation over seeds"
    if any(cell.low is not None for cell in cells):
        return "interval", "95 % interval over images"
    return "", "none, for neither seeds nor intervals over images are known"


def _ends(cell: Cell, bars: str) -> tuple[float, float]:
    """(lower, upper) end of a cell's error bar; both its mean where there is none."""
    mean = float(cell.mean or 0.0)
    if bars == "std" and cell.std is not None:
        return mean - cell.std, mean + cell.std
    if bars == "interval" and cell.low is not None and cell.high is not None:
        return cell.low, cell.high
    return mean, mean


def _top(cell: Cell, bars: str) -> float:
    return _ends(cell, bars)[1] if cell.mean is not None else 1.0


def _marks(rows: Sequence[Row], table: ErrorTable) -> Iterator[str]:
    cells = [table.cell(row, name) for row in rows for name in table.columns]
    if any(cell.mean is not None and cell.state != "ok" for cell in cells):
        yield FEWER
    if any(cell.mean is None for cell in cells):
        yield "× no result"


def _panel(axes: Axes, table: ErrorTable, model: str, styles: dict[str, Style], bars: str) -> None:
    rows = [row for row in table.of(model) if is_known(row)]
    width = _SPAN / len(rows)
    lines, fewer, none = [], [], []
    for number, row in enumerate(rows):
        offset = (number + 0.5) * width - _SPAN / 2
        cells = [(place + offset, table.cell(row, name)) for place, name in enumerate(table.columns)]
        known = [(x, cell) for x, cell in cells if cell.mean is not None]
        _bars(axes, [(x, float(cell.mean or 0.0)) for x, cell in known], 0.92 * width, styles[row.label])
        lines += [(x, *_ends(cell, bars)) for x, cell in known]
        fewer += [(x, _ends(cell, bars)[1]) for x, cell in known if cell.state != "ok"]
        none += [x for x, cell in cells if cell.mean is None]
    x, low, high = np.array(lines).T
    axes.vlines(x[high > low], low[high > low], high[high > low], colors=INK, linewidth=0.7)
    _signs(axes, fewer, none)
    axes.set_xlim(-0.6, len(table.columns) - 0.4)
    sheet.error_axis(axes)


def _bars(axes: Axes, places: Sequence[tuple[float, float]], width: float, style: Style) -> None:
    """All bars of a method as one artist: matplotlib takes long over each of a thousand."""
    x, height = np.array(places).T
    left, right, zero = x - width / 2, x + width / 2, np.zeros_like(x)
    corners = np.stack([left, zero, left, height, right, height, right, zero], axis=1).reshape(-1, 4, 2)
    axes.add_collection(PolyCollection(list(corners), **style.bar))


def _signs(axes: Axes, fewer: Sequence[tuple[float, float]], none: Sequence[float]) -> None:
    """An asterisk over means of fewer cells, a cross where there is no result."""
    for x, y in fewer:
        axes.annotate("*", (x, y), (0, -1), textcoords="offset points", ha="center", fontsize=8)
    if none:
        axes.plot(none, [0.0] * len(none), linestyle="none", marker="x", markersize=3.2, color=MUTED, clip_on=False)


def _columns(axes: Axes, table: ErrorTable, *, names: bool) -> None:
    """Names of corruptions below, of their groups above."""
    labels = [_plain(name) for name in table.columns] if names else []
    axes.set_xticks(range(len(table.columns)))
    axes.set_xticklabels(
        labels if names else [""] * len(table.columns), rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.tick_params(axis="x", length=0, pad=2)
    place = 0
    for group, members in table.groups:
        if place:
            axes.axvline(place - 0.5, color=MUTED, linewidth=0.5, linestyle=(0, (1, 2)))
        if group:
            middle = place + (len(members) - 1) / 2
            axes.annotate(group, (middle, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          ha="center", fontsize=7.5, color=MUTED)  # fmt: skip
        place += len(members)


def _plain(name: str) -> str:
    return name.replace("_", " ")
