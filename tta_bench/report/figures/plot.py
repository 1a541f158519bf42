"""What figures draw in the same way: errors with their spread, and the sign for means of fewer cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from tta_bench.report.figures.style import INK, Style
from tta_bench.report.table import Cell

FEWER = "* mean over fewer cells or seeds than planned"
_APART = "Points at one place are set apart sideways"


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

    def notes(self, cells: Sequence[Cell], *, apart: bool = False) -> list[str]:
        """What a reader must know of error bars and signs, and of points that are set ``apart``."""
        fewer = any(cell.mean is not None and cell.state != "ok" for cell in cells)
        said = {f"Thin lines: {self.words}": bool(self.kind), FEWER: fewer, _APART: apart}
        return [note for note, holds in said.items() if holds]


Place = tuple[float, Cell]


def series(axes: Axes, places: Sequence[Place], style: Style, spread: Spread) -> None:
    """A method's errors against something, joined by a line that is broken where there is no result."""
    values = [np.nan if cell.mean is None else cell.mean for _, cell in places]
    axes.plot([x for x, _ in places], values, **(style.line | style.point()))
    whiskers(axes, places, spread, style.colour)


def dot(axes: Axes, place: Place, style: Style, spread: Spread, marker: str | None = None) -> None:
    """A method's error as a point."""
    x, cell = place
    whiskers(axes, [place], spread, style.colour)
    axes.plot([x], [float(cell.mean or 0.0)], linestyle="none", zorder=3, **style.point(marker))


def whiskers(axes: Axes, places: Sequence[Place], spread: Spread, colour: str) -> None:
    """Error bars, and asterisks at means of fewer cells."""
    known = [(x, cell) for x, cell in places if cell.mean is not None]
    uprights(axes, [(x, *spread.ends(cell)) for x, cell in known], colour)
    for x, cell in known:
        if cell.state != "ok":
            star(axes, x, spread.ends(cell)[1], colour)


def uprights(axes: Axes, bars: Sequence[tuple[float, float, float]], colour: str) -> None:
    """Vertical lines (x, from, to) as one artist: matplotlib takes long over each of a thousand, and so does an SVG."""
    drawn = np.array([bar for bar in bars if bar[2] > bar[1]])
    if len(drawn):
        gap = np.full(len(drawn), np.nan)
        x, y = drawn[:, [0, 0, 0]], np.stack([drawn[:, 1], drawn[:, 2], gap], axis=1)
        axes.plot(x.ravel(), y.ravel(), color=colour, linewidth=0.7, solid_capstyle="butt")


def star(axes: Axes, x: float, y: float, colour: str = INK) -> None:
    """The sign of a mean over fewer cells, above a point."""
    axes.annotate("*", (x, y), (0, -1), textcoords="offset points", ha="center", fontsize=9, color=colour)


def rectangles(axes: Axes, corners: np.ndarray, style: Mapping[str, Any]) -> None:
    """Rectangles (N, 4) of left, bottom, right, top, as one artist."""
    x, y = corners[:, [0, 0, 2, 2, 0]], corners[:, [1, 3, 3, 1, 1]]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(corners)
    axes.add_patch(PathPatch(Path(np.stack([x, y], axis=-1).reshape(-1, 2), codes), **style))


def apart(values: Sequence[float], step: float, most: float) -> list[float]:
    """``values``, those that are alike set apart by ``step`` around their place, or by less: by ``most`` in all."""
    places: dict[float, list[int]] = {}
    for i, value in enumerate(values):
        places.setdefault(round(value, 6), []).append(i)
    moved = list(values)
    for alike in places.values():
        each = min(step, most / len(alike))
        for number, i in enumerate(alike):
            moved[i] += (number - (len(alike) - 1) / 2) * each
    return moved


def same_height(pages: Sequence[Axes]) -> None:
    """Panels of one figure from zero to one height, so that they can be compared."""
    top = max(axes.get_ylim()[1] for axes in pages)
    for axes in pages:
        axes.set_ylim(0, top)
