"""What several kinds of figure draw: errors with their spread, and marks of means over fewer cells."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.style import INK, MUTED, MethodStyle
from tta_bench.report.table import Cell, ErrorTable

FEWER = "* mean over fewer cells or seeds than planned"
SHIFTED = "Points are shifted sideways where they would overlap"
DOTTED: dict[str, Any] = {"color": MUTED, "linewidth": 0.5, "linestyle": (0, (1, 2))}


class Spread(enum.Enum):
    """What error bars show, the same in all panels of a figure."""

    SEEDS = "± standard deviation over seeds"
    IMAGES = "95\u00a0% interval over images"
    UNKNOWN = ""

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Spread:
        """Standard deviations where there are several seeds, else intervals over images."""
        known = [cell for cell in cells if cell.mean is not None]
        if any(cell.std is not None for cell in known):
            return cls.SEEDS
        return cls.IMAGES if any(cell.low is not None for cell in known) else cls.UNKNOWN

    def lengths(self, cells: Sequence[Cell]) -> np.ndarray:
        """(2, cells): length of each error bar below and above the mean, points; 0 where there is none."""
        return np.array([self._lengths(cell) for cell in cells], dtype=float).reshape(-1, 2).T

    def _lengths(self, cell: Cell) -> tuple[float, float]:
        if self is Spread.SEEDS and cell.std is not None:
            return cell.std, cell.std
        if self is Spread.IMAGES and cell.mean is not None and cell.low is not None and cell.high is not None:
            return max(0.0, cell.mean - cell.low), max(0.0, cell.high - cell.mean)
        return 0.0, 0.0


def notes(spread: Spread, cells: Iterable[Cell], *, shifted: bool = False) -> Iterator[str]:
    """How to read error bars, marks and points that are ``shifted`` sideways."""
    if spread.value:
        yield f"Error bars: {spread.value}"
    if any(cell.mean is not None and cell.state != "ok" for cell in cells):
        yield FEWER
    if shifted:
        yield SHIFTED


def means(cells: Iterable[Cell]) -> np.ndarray:
    """(cells,) errors, per cent; not a number where there is no result."""
    return np.array([np.nan if cell.mean is None else cell.mean for cell in cells], dtype=float)


def errors_of(
    table: ErrorTable, model: str, labels: Iterable[str], columns: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Errors of methods on a source model in some columns of a table, without their mean unless that is one, per cent."""
    names = table.corruptions if columns is None else columns
    shown = set(labels)
    return {row.label: means(table.cell(row, n) for n in names) for row in table.of(model) if row.label in shown}


Points = Sequence[tuple[float, Cell]]


def lines(
    axes: Axes, points: Mapping[str, Points], styles: Mapping[str, MethodStyle], spread: Spread, limits: Range
) -> None:
    """A line for each method, interrupted where there is no result; methods are shifted sideways, by 0.4 in total."""
    step = min(0.06, 0.4 / len(styles))
    shifted = {
        label: [(x + (number - (len(styles) - 1) / 2) * step, cell) for x, cell in points.get(label, [])]
        for number, label in enumerate(styles)
    }
    for label, own in shifted.items():
        errors(axes, own, spread, styles[label].line | styles[label].point())
    limits.apply(axes)
    for label, own in shifted.items():
        limits.mark(axes, [x for x, _ in own], means(cell for _, cell in own), styles[label].point())


def errors(axes: Axes, points: Points, spread: Spread, looks: Mapping[str, Any]) -> None:
    """Errors with their spread, and asterisks at means over fewer cells."""
    x, cells = [x for x, _ in points], [cell for _, cell in points]
    axes.errorbar(x, means(cells), spread.lengths(cells), elinewidth=0.7, **looks)
    stars(axes, x, cells, spread, looks["color"])


def stars(axes: Axes, x: Iterable[float], cells: Sequence[Cell], spread: Spread, colour: str = INK) -> None:
    """Asterisks above means over fewer cells."""
    for place, cell, top in zip(x, cells, means(cells) + spread.lengths(cells)[1], strict=True):
        if cell.mean is not None and cell.state != "ok":
            axes.annotate("*", (place, top), (0, -1), textcoords="offset points", ha="center", size=9, color=colour)


def error_axis(axes: Axes, label: str = "error, %") -> None:
    """Label the axis of errors and draw its grid."""
    axes.set_ylabel(label)
    axes.grid(axis="y")


def groups_above(
    axes: Axes, names: Sequence[str], places: Sequence[float], borders: Iterable[float], **text: Any
) -> None:
    """Names above a panel and dotted lines where their groups begin."""
    for border in borders:
        axes.axvline(border, **DOTTED)
    above = axes.secondary_xaxis("top")
    above.set_xticks(places, names, **{"size": 7, "color": MUTED, **text})
    above.tick_params(length=0, pad=1)
    above.spines[:].set_visible(False)
