"""How figures look. Each method has one style in all figures and on the page, set by its position in the report.

Colours repeat after seven methods; markers, hatches and lines then distinguish methods of one colour, 70 in all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font

# Okabe and Ito's colour-blind safe palette, with violet in place of their yellow, which is too pale for lines on white;
# grey is for the source model. Each also has enough contrast on a dark page.
_PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A3FFC"]
_SOURCE = "#6C6C6C"

INK, MUTED, GRID, ALERT = "#1b1c1d", "#5b5c5d", "#dfe0e1", "#a61b1c"  # text and axes, notes, grid lines, warnings

MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p"]
_HATCHES = ["", "/////", ".....", "xxxxx", "-----", "|||||", "\\\\\\\\\\", "+++++", "ooo", "***"]
_LINES: list[Any] = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (9, 2)), (0, (5, 1, 1, 1, 1, 1))]
_FILLS = ["full", "full", "left", "bottom"]
FEW = 21  # methods that bars and lines can show; points show as many as there are styles

_FAMILY = "DejaVu Sans"  # comes with matplotlib
_RC: dict[Any, Any] = {
    "font.family": _FAMILY, "font.size": 8, "text.color": INK, "text.parse_math": False,  # labels may contain $ and _
    "text.hinting": "no_hinting",  # text is as wide in a file as when it was laid out
    "figure.titlesize": 9, "figure.titleweight": "bold",
    "axes.titlesize": 8, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.labelsize": 8,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "grid.color": GRID, "grid.linewidth": 0.6, "hatch.linewidth": 0.9,
    "legend.frameon": False, "legend.fontsize": 8, "legend.borderpad": 0, "legend.borderaxespad": 0.7,
    "figure.constrained_layout.h_pad": 0.06,
    "pdf.fonttype": 42, "svg.hashsalt": "tta-bench",  # the same figure is the same file
}  # fmt: skip


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn; ``cycle`` counts how often its colour was used before."""

    colour: str
    cycle: int

    @property
    def bar(self) -> dict[str, Any]:
        """Of bars: filled, or hatched where the colour repeats."""
        if not self.cycle:
            return {"facecolor": self.colour, "edgecolor": "none", "linewidth": 0}
        return {"facecolor": "none", "edgecolor": self.colour, "linewidth": 0.7, "hatch": _HATCHES[self.cycle]}

    @property
    def line(self) -> dict[str, Any]:
        """Of lines."""
        return {"color": self.colour, "linestyle": _LINES[self.cycle % len(_LINES)], "linewidth": 1.3}

    @property
    def curve(self) -> dict[str, Any]:
        """Of lines of many points: with some markers where the colour repeats."""
        return self.line | (
            {**self.point(), "markersize": 3.5, "markevery": 0.125} if self.cycle else {"marker": "none"}
        )

    def point(self) -> dict[str, Any]:
        """Of points. Fills also differ, as markers stand for source models in some figures."""
        return {
            "marker": MARKERS[self.cycle],
            "markersize": 4.5,
            "fillstyle": _FILLS[self.cycle % len(_FILLS)],
            "color": self.colour,
            "markerfacecolor": "white" if self.cycle == 1 else self.colour,
            "markerfacecoloralt": "white",
            "markeredgewidth": 1.1 if self.cycle else 0.6,
            "markeredgecolor": self.colour if self.cycle else "white",
        }


def colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label; more labels than colours repeat them."""
    return {label: style.colour for label, style in styles(labels).items()}


def styles(labels: Iterable[str]) -> dict[str, MethodStyle]:
    """A style for each label, which depends only on the label's position among ``labels``."""
    assigned: dict[str, MethodStyle] = {}
    number = 0
    for label in labels:
        if label == "source":
            assigned[label] = MethodStyle(_SOURCE, 0)
        else:
            cycle, place = divmod(number, len(_PALETTE))
            assigned[label] = MethodStyle(_PALETTE[place], cycle % len(MARKERS))
            number += 1
    return assigned


def printable(text: str) -> str:
    """``text`` with code points, ``[U+5F35]``, for what the figures' font cannot show."""
    return "".join(c if c.isspace() or _has(ord(c)) else f"[U+{ord(c):04X}]" for c in text)


def text_width(text: str, size: float) -> float:
    """Width of printable text in a size in points, inches."""
    plain, _ = _fonts()
    plain.set_size(size, 72)
    plain.set_text(text, 0.0)
    return float(plain.get_width_height()[0]) / 64 / 72


@functools.cache
def _has(code: int) -> bool:
    """Whether there is a glyph for plain and bold text."""
    return all(font.get_char_index(code) for font in _fonts())


@functools.cache
def _fonts() -> list[FT2Font]:
    return [get_font(findfont(FontProperties(family=_FAMILY, weight=weight))) for weight in ("normal", "bold")]


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save figures inside this context: the user's matplotlib settings then have no effect."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield
