"""A figure's frame: heading, legend, panels, notes. Everything is placed in inches; nothing can overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from tta_bench.report.figures import text
from tta_bench.report.figures.style import ALERT, INK, MUTED, Style

WIDEST = 7.4  # of a figure with several columns of panels, inches
_NARROWEST = 4.4
_EDGE = 0.08
_HANDLE, _PAD, _SPACE = 0.26, 0.06, 0.2  # of legend entries, inches
_LINE = 0.165  # height of a line of small text, inches
_LEGEND_LINE = 0.19
_NOTE_LINES = 4


@dataclass(frozen=True)
class Room:
    """Of each panel, inches.

    Attributes:
        width, height: of its axes.
        left, bottom, top, right: around them, for tick labels and the panel's title.
        below: under the last row only.
    """

    width: float
    height: float
    left: float = 0.55
    bottom: float = 0.45
    top: float = 0.3
    right: float = 0.12
    below: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A line of the legend: how it is drawn, as a line with or without a point, or as a bar; ``first`` begins a row."""

    label: str
    line: dict[str, Any] | None = None
    bar: dict[str, Any] | None = None
    first: bool = False


@dataclass(frozen=True)
class Words:
    """All text of a figure outside of its panels.

    Attributes:
        title: a few words.
        conditions: data set, severity and so on.
        notes: what a reader must know to read it right.
        warning: what every figure must say, or empty.
        legend: entries, in order.
    """

    title: str
    conditions: str
    notes: Sequence[str] = ()
    warning: str = ""
    legend: Sequence[Entry] = field(default_factory=list)


def bars(styles: dict[str, Style]) -> list[Entry]:
    """Legend of bars."""
    return [Entry(label, bar=style.bar) for label, style in styles.items()]


def lines(styles: dict[str, Style], *, points: bool) -> list[Entry]:
    """Legend of lines."""
    return [Entry(label, line=style.line | (style.point() if points else {})) for label, style in styles.items()]


def points(styles: dict[str, Style]) -> list[Entry]:
    """Legend of points."""
    return [Entry(label, line=style.point() | {"linestyle": "none"}) for label, style in styles.items()]


class Sheet:
    """A figure with a grid of equal panels.

    Args:
        words: its text.
        titles: of the panels, one each.
        room: of each panel; panels are widened where the figure would be too narrow for its text.
        columns: of panels; None: as many as fit.

    Attributes:
        figure: matplotlib's.
        axes: of the panels, in order.
        last_rows: whether no panel is below, for each panel.
    """

    def __init__(self, words: Words, titles: Sequence[str], room: Room, columns: int | None = None):
        rows, columns = _grid(len(titles), room, columns)
        self.width = max(_NARROWEST, columns * (room.left + room.width + room.right) + 2 * _EDGE)
        panel = (self.width - 2 * _EDGE) / columns
        head, foot = _Head(words, self.width), _foot(words, self.width)
        each = room.top + room.height + room.bottom
        self.height = head.height + rows * each + room.below + len(foot) * _LINE + 2 * _EDGE
        self.figure = Figure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        self.axes: list[Axes] = []
        for number, title in enumerate(titles):
            x = _EDGE + number % columns * panel + room.left
            y = self.height - _EDGE - head.height - number // columns * each - room.top - room.height
            self.axes.append(self._panel(title, x, y, panel - room.left - room.right, room))
        self.last_rows = [number + columns >= len(titles) for number in range(len(titles))]
        self.first_columns = [number % columns == 0 for number in range(len(titles))]
        head.draw(self)
        for number, (line, colour) in enumerate(reversed(foot)):
            self.write(_EDGE, _EDGE + number * _LINE, line, size=7, color=colour, va="bottom")

    def _panel(self, title: str, x: float, y: float, width: float, room: Room) -> Axes:
        axes = self.figure.add_axes((x / self.width, y / self.height, width / self.width, room.height / self.height))
        short = text.shortened(title, width + room.left, 8.5, "bold")
        start = x if text.width(short, 8.5, "bold") < width else x - room.left  # a long name begins further left
        self.write(start, y + room.height + room.top - 0.2, short, size=8.5, weight="bold", va="baseline")
        return axes

    def write(self, x: float, y: float, line: str, **style: Any) -> None:
        """Write a line of text at inches from the lower left."""
        self.figure.text(x / self.width, y / self.height, line, **{"ha": "left", **style})


class _Head:
    """Title, conditions and legend."""

    def __init__(self, words: Words, width: float):
        self.words = words
        room = width - 2 * _EDGE
        self.title = text.wrapped(words.title, room, 10, weight="bold")
        self.conditions = text.wrapped(words.conditions, room, 7.5)
        self.labels = [text.shortened(entry.label, room - _HANDLE - _PAD, 8) for entry in words.legend]
        widths = [text.width(label, 8) + _HANDLE + _PAD + _SPACE for label in self.labels]
        self.cells = _cells(widths, [entry.first for entry in words.legend], room + _SPACE)
        rows = self.cells[-1][0] + 1 if self.cells else 0
        self.height = 0.2 * len(self.title) + _LINE * len(self.conditions) + _LEGEND_LINE * rows + 0.1

    def draw(self, sheet: Sheet) -> None:
        """Write everything, from the top."""
        y = sheet.height - _EDGE
        for line in self.title:
            sheet.write(_EDGE, y, line, size=10, weight="bold", va="top")
            y -= 0.2
        for line in self.conditions:
            sheet.write(_EDGE, y, line, size=7.5, color=MUTED, va="top")
            y -= _LINE
        y -= 0.05
        for entry, label, (row, x) in zip(self.words.legend, self.labels, self.cells, strict=True):
            _entry(sheet, entry, label, _EDGE + x, y - (row + 0.5) * _LEGEND_LINE)


def _entry(sheet: Sheet, entry: Entry, label: str, x: float, y: float) -> None:
    inches = sheet.figure.dpi_scale_trans
    if entry.bar is not None:
        sheet.figure.add_artist(Rectangle((x, y - 0.05), _HANDLE, 0.1, transform=inches, **entry.bar))
    if entry.line is not None:
        xs = [x, x + _HANDLE / 2, x + _HANDLE]
        sheet.figure.add_artist(Line2D(xs, [y] * 3, markevery=[1], transform=inches, **entry.line))
    sheet.write(x + _HANDLE + _PAD, y - 0.01, label, size=8, va="center")


def _cells(widths: Sequence[float], firsts: Sequence[bool], room: float) -> list[tuple[int, float]]:
    """(row, x) of each entry of the legend, inches: in columns, where that takes no more rows than without."""
    flowing = _flowing(widths, firsts, room)
    if not any(firsts):
        for count in range(len(widths), 1, -1):
            each = [max(widths[i::count]) for i in range(count)]
            if sum(each) <= room:
                columns = [(i // count, sum(each[: i % count])) for i in range(len(widths))]
                return columns if columns[-1][0] <= flowing[-1][0] else flowing
    return flowing


def _flowing(widths: Sequence[float], firsts: Sequence[bool], room: float) -> list[tuple[int, float]]:
    """One entry after another, like words."""
    row, x = 0, 0.0
    cells = []
    for width, first in zip(widths, firsts, strict=True):
        if x and (first or x + width > room):
            row, x = row + 1, 0.0
        cells.append((row, x))
        x += width
    return cells


def _foot(words: Words, width: float) -> list[tuple[str, str]]:
    """(line, colour), from the top."""
    room = width - 2 * _EDGE
    notes = [line for note in words.notes for line in text.wrapped(note, room, 7, _NOTE_LINES)]
    warning = text.wrapped(words.warning, room, 7, 2) if words.warning else []
    return [(line, MUTED) for line in notes] + [(line, ALERT) for line in warning]


def _grid(panels: int, room: Room, columns: int | None) -> tuple[int, int]:
    """(rows, columns), as even as can be."""
    each = room.left + room.width + room.right
    most = columns or max(1, int((WIDEST - 2 * _EDGE + 1e-6) / each))
    rows = math.ceil(panels / most)
    return rows, math.ceil(panels / rows)


def error_axis(axes: Axes, label: str = "error, %") -> None:
    """The axis of errors, with a grid."""
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y")
