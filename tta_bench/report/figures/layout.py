"""A figure's layout: title, conditions and legends above a grid of panels, notes and warning below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tta_bench.report.figures.style import ALERT, MUTED, MethodStyle, printable, text_width

COLUMN_WIDTH, TEXT_WIDTH = 3.4, 7.0  # of a paper, inches
_SIZE = 8  # of labels, points
_EDGE = 0.08  # left of text, inches
_CHARACTER, _SMALL_CHARACTER, _LINE, _LEGEND_LINE = 0.067, 0.055, 0.115, 0.165  # inches
_MARGINS = 0.45  # around title, conditions, legends and notes together, inches
_LONGEST_LABEL, _LONGEST_NOTE = 42, 4  # characters, lines


@dataclass(frozen=True)
class FigureText:
    """All text of a figure outside of its panels.

    Attributes:
        name: of its files, without ending.
        title: a few words.
        caption: what the figure shows and under which conditions, for the page and for readers who cannot see it.
        conditions: data set, severity and so on.
        notes: how to read the figure; one line each unless they are long.
        warning: what every figure of the report must say, or empty.
    """

    name: str
    title: str
    caption: str
    conditions: str
    notes: Sequence[str]
    warning: str


def panels(
    text: FigureText, titles: Sequence[str], legends: Sequence[Sequence[Artist]], *,
    width: float, height: float, columns: int = 1, below: float = 0.0, **options: Any,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A figure ``width`` inches wide with a grid of panels, each ``height`` inches with its title and axis labels.

    ``legends`` holds the labelled handles of each legend, ``below`` is further space for tick labels of the last row, and
    ``options`` go to ``subplots``.
    """
    conditions = _wrap(text.conditions, width)
    notes = "\n".join(_wrap(note, width) for note in text.notes)
    warning = _wrap(text.warning, width)
    counts = [_legend_columns([str(handle.get_label()) for handle in handles], width) for handles in legends]
    legend_lines = sum(math.ceil(len(handles) / count) for handles, count in zip(legends, counts, strict=True))
    lines = sum(len(block.splitlines()) for block in (conditions, notes, warning))
    rows = math.ceil(len(titles) / columns)
    size = (width, rows * height + below + lines * _LINE + legend_lines * _LEGEND_LINE + _MARGINS)
    figure = Figure(figsize=size, layout="constrained")
    left: dict[str, Any] = {"x": _EDGE / width, "ha": "left"}
    small = {**left, "size": 7, "weight": "normal"}
    figure.suptitle(printable(text.title), **left)
    figure.supxlabel(warning, color=ALERT, **small)
    frame: Any = figure.subfigures()  # nested, as constrained layout keeps one text on each side of a figure
    frame.suptitle(conditions, color=MUTED, **small)
    frame.supxlabel(notes, color=MUTED, **small)
    for handles, count in zip(legends, counts, strict=True):
        frame = frame.subfigures()
        frame.legend(handles=handles, loc="outside upper left", ncols=count)
    grid = frame.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axes in grid[len(titles) :]:
        axes.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(shorten(title, min(_LONGEST_LABEL, int(width / columns / 1.15 / _CHARACTER))))
    return figure, grid[: len(titles)]


def square_panels(
    text: FigureText, titles: Sequence[str], legends: Sequence[Sequence[Artist]], *, height: float = 2.3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of one panel as wide as a paper's column, or of two panels in each row as wide as its text."""
    columns = min(2, len(titles))
    width = COLUMN_WIDTH if columns == 1 else TEXT_WIDTH
    return panels(text, titles, legends, width=width, height=height, columns=columns, **options)


def legend(styles: Mapping[str, MethodStyle], *, curves: bool = False, **looks: Any) -> list[Line2D]:
    """Legend handles of lines and points, or of curves; ``looks`` replaces what all methods share."""
    own = {label: style.curve if curves else style.line | style.point() for label, style in styles.items()}
    return [Line2D([], [], **style | looks, label=shorten(label)) for label, style in own.items()]


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Name the columns of a panel at 0, 1, …, turned by 45 degrees."""
    plain = [printable(name.replace("_", " ")) for name in names]
    axes.set_xticks(range(len(names)), plain, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0, pad=2)


def names_height(names: Sequence[str]) -> float:
    """Height of column names, inches."""
    return 0.72 * widest(name.replace("_", " ") for name in names)


def widest(labels: Iterable[str]) -> float:
    """Width of the widest label as it is shown, inches."""
    return 1.03 * max(text_width(shorten(label), _SIZE) for label in labels)


def shorten(label: str, longest: int = _LONGEST_LABEL) -> str:
    """``label`` as the font can show it, its middle replaced by "…" where it has more than ``longest`` characters."""
    label = printable(label)
    return label if len(label) <= longest else f"{label[: longest // 2]}…{label[-((longest - 1) // 2) :]}"


def _wrap(text: str, width: float) -> str:
    """``text`` in lines that fit a figure of ``width`` inches."""
    characters = int(width / _SMALL_CHARACTER)
    options: dict[str, Any] = {"max_lines": _LONGEST_NOTE, "placeholder": " …", "break_on_hyphens": False}
    return textwrap.fill(printable(text), characters, **options)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """The largest number of columns that fits ``width`` inches."""
    for count in range(len(labels), 1, -1):
        columns = np.array_split(labels, count)  # as matplotlib fills them
        if sum(widest(column) + 0.52 for column in columns) <= width:
            return count
    return 1
