"""Figure: error by corruption, grouped bars, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.figures import plot, sheet, text
from tta_bench.report.figures.section import Drawn, Section, is_known
from tta_bench.report.figures.style import INK, MUTED, Style
from tta_bench.report.table import Cell, ErrorTable, Row

_SPAN = 0.86  # of the room between two corruptions, filled by bars
_WIDTH = 6.4  # of a panel, inches: with what is around it, as wide as a page's text; many bars take more
_TITLE = "Error by corruption"


def draw(section: Section) -> Iterator[Drawn]:
    """The figure of the most severe severity."""
    table = section.worst
    models = [model for model in table.models if any(is_known(row) for row in table.of(model))]
    if not models:
        return
    shown = [row for row in table.rows if is_known(row)]
    styles = section.styles_of(row.label for row in shown)
    spread = plot.Spread.of(cell for row in shown for cell in row.cells.values())
    notes = list(_notes(shown, table, spread))
    conditions = section.conditions()
    words = section.words(_TITLE, sheet.bars(styles), table.rows, conditions, notes)
    page = sheet.Sheet(words, models, _room(table, len(styles)), columns=1)
    top = 1.04 * max(_top(cell, spread) for row in shown for cell in row.cells.values())
    for axes, model, last in zip(page.axes, models, page.last_rows, strict=True):
        _panel(axes, table, model, styles, spread)
        axes.set_ylim(0, max(top, 1.0))
        _columns(axes, table, names=last)
    said = "Error in per cent by corruption, a panel for each source model; the mean leaves clean out."
    caption = section.caption(said, conditions, table.rows, notes)
    yield Drawn(f"errors{section.suffix}", _TITLE, caption, page.figure)


def _room(table: ErrorTable, methods: int) -> sheet.Room:
    wanted, least = (max(0.3, bar * methods + 0.06) * len(table.columns) for bar in (0.05, 0.034))  # inches a bar
    below = 0.16 + 0.72 * text.widest([_plain(name) for name in table.columns], 8)
    return sheet.Room(max(3.6, least, min(_WIDTH, wanted)), 1.5, bottom=0.1, top=0.42, below=below)


def _top(cell: Cell, spread: plot.Spread) -> float:
    return spread.ends(cell)[1] if cell.mean is not None else 1.0


def _notes(rows: Sequence[Row], table: ErrorTable, spread: plot.Spread) -> Iterator[str]:
    cells = [table.cell(row, name) for row in rows for name in table.columns]
    yield from spread.notes(cells)
    if any(cell.mean is None for cell in cells):
        yield "× no result"


def _panel(axes: Axes, table: ErrorTable, model: str, styles: dict[str, Style], spread: plot.Spread) -> None:
    rows = [row for row in table.of(model) if is_known(row)]
    width = _SPAN / len(rows)
    lines, fewer, none = [], [], []
    for number, row in enumerate(rows):
        offset = (number + 0.5) * width - _SPAN / 2
        cells = [(place + offset, table.cell(row, name)) for place, name in enumerate(table.columns)]
        known = [(x, cell) for x, cell in cells if cell.mean is not None]
        _bars(axes, [(x, float(cell.mean or 0.0)) for x, cell in known], 0.92 * width, styles[row.label])
        lines += [(x, *spread.ends(cell)) for x, cell in known]
        fewer += [(x, spread.ends(cell)[1]) for x, cell in known if cell.state != "ok"]
        none += [x for x, cell in cells if cell.mean is None]
    plot.uprights(axes, lines, INK)
    _signs(axes, fewer, none)
    axes.set_xlim(-0.6, len(table.columns) - 0.4)
    sheet.error_axis(axes)


def _bars(axes: Axes, places: Sequence[tuple[float, float]], width: float, style: Style) -> None:
    """All bars of a method."""
    x, height = np.array(places).T
    plot.rectangles(axes, np.stack([x - width / 2, np.zeros_like(x), x + width / 2, height], axis=1), style.bar)


def _signs(axes: Axes, fewer: Sequence[tuple[float, float]], none: Sequence[float]) -> None:
    """An asterisk over means of fewer cells, a cross where there is no result."""
    for x, y in fewer:
        plot.star(axes, x, y)
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
