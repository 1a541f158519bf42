"""How figures look: one style a method everywhere, in figures and on the page.

A method's colour goes by its place among all methods of the report. Beyond seven methods colours repeat; hatches, lines
and fillings then tell methods of one colour apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

# Okabe and Ito's colours, which stay apart for colour-blind readers, with violet in place of their yellow, which is too
# pale for lines on white; grey is for the source model. Each stands out from white and from a dark page.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A3FFC"]
_SOURCE = "#666666"

# Stand-ins: the SVG names them by what they are for, and the reader's scheme says what they look like.
INK = "#1b1c1d"  # text and axes
MUTED = "#5b5c5d"  # notes
GRID = "#dfe0e1"
PAPER = "#fdfefe"  # gaps, and the inside of hollow markers
ALERT = "#a61b1c"  # warnings

MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p"]
_HATCHES = ["", "/////", ".....", "xxxxx"]
_LINES: list[Any] = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))]
_FILLS = ["full", "full", "left", "bottom"]

_RC: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
    "text.hinting": "none",  # else a line is as wide as its resolution has it
    
    "text.color": INK, "text.parse_math": False,  # a label may hold $ and _
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.labelsize": 8,
    "xtick.color": INK, "ytick.color": INK, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "grid.color": GRID, "grid.linewidth": 0.6, "hatch.linewidth": 0.9,
    "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a method is drawn; ``cycle`` counts how often its colour was given before."""

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
        return {"color": self.colour, "linestyle": _LINES[self.cycle], "linewidth": 1.3}

    def point(self, marker: str | None = None) -> dict[str, Any]:
        """Of points; a marker that stands for something else leaves the filling to tell methods apart."""
        return {
            "marker": marker or MARKERS[self.cycle],
            "markersize": 4.5 if marker is None else 6,
            "fillstyle": _FILLS[self.cycle],
            "color": self.colour,
            "markerfacecolor": PAPER if self.cycle == 1 else self.colour,
            "markerfacecoloralt": PAPER,
            "markeredgewidth": 1.1 if self.cycle else 0.6,
            "markeredgecolor": self.colour if self.cycle else PAPER,
        }


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, the same in every panel; more labels than colours repeat them."""
    return {label: style.colour for label, style in styles(labels).items()}


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each label: it depends on nothing but the label's place among the others."""
    others = [label for label in labels if label != "source"]
    chosen = {
        label: Style(_COLOURS[i % len(_COLOURS)], i // len(_COLOURS) % len(_HATCHES)) for i, label in enumerate(others)
    }
    return {label: chosen.get(label, Style(_SOURCE, 0)) for label in labels}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save within: whatever the user's own settings of matplotlib are, figures look the same."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield
