"""What figures draw in the same way: errors with their spread, and the sign for means of fewer cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.figures.style import INK, Style
from tta_bench.report.table import Cell

FEWER = "* mean over fewer cells or seeds than planned"


@dataclass(frozen=True)
class Spread:
    """What error bars are, one thing in a whole figure.

    Attributes:
        kind: "std", "interval", or empty where nothing is known.
        words: the same for a reader.
    """

    kind: str
    words: str

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> Spread:
        """Standard deviations where there are several seeds, else intervals over images."""
        known = [cell for cell in cells if cell.mean is not None]
        if any(cell.std is not None for cell in known):
            return cls("std", "± standard deviation over seeds")
        if any(cell.low is not None for cell in known):
            return cls("interval", "95 % interval over images")
        return cls("", "")

    def ends(self, cell: Cell) -> tuple[float, float]:
        """(lower, upper) end of a cell's error bar, per cent; both its mean where there is none."""
        mean = float(cell.mean or 0.0)
        if self.kind == "std" and cell.std is not None:
            return mean - cell.std, mean + cell.std
        if self.kind == "interval" and cell.low is not None and cell.high is not None:
            return cell.low, cell.high
        return mean, mean

    def notes(self, cells: Iterable[Cell]) -> list[str]:
        """What a reader must know to read bars and signs."""
        fewer = any(cell.mean is not None and cell.state != "ok" for cell in cells)
        return [*([f"Thin lines: {self.words}"] if self.kind else []), *([FEWER] if fewer else [])]


Place = tuple[float, Cell]


def series(axes: Axes, places: Sequence[Place], style: Style, spread: Spread) -> None:
    """A method's errors against something, joined by a line that is broken where there is no result."""
    values = [np.nan if cell.mean is None else cell.mean for _, cell in places]
    axes.plot([x for x, _ in places], values, **(style.line | style.point()))
    whiskers(axes, places, spread, style.colour)


def whiskers(axes: Axes, places: Sequence[Place], spread: Spread, colour: str = INK) -> None:
    """Error bars, and asterisks at means of fewer cells."""
    known = [(x, cell) for x, cell in places if cell.mean is not None]
    bars = [(x, *spread.ends(cell)) for x, cell in known]
    drawn = [(x, low, high) for x, low, high in bars if high > low]
    if drawn:
        at, low, high = np.array(drawn).T
        axes.vlines(at, low, high, colors=colour, linewidth=0.8)
    for (x, cell), (_, _, end) in zip(known, bars, strict=True):
        if cell.state != "ok":
            axes.annotate("*", (x, end), (0, 0), textcoords="offset points", ha="center", fontsize=9)


def same_height(pages: Sequence[Axes]) -> None:
    """Panels of one figure from zero to one height, so that they can be compared."""
    top = max(axes.get_ylim()[1] for axes in pages)
    for axes in pages:
        axes.set_ylim(0, top)
