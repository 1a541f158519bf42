"""The figure: error by corruption, one panel for each source model and severity, one colour a method everywhere."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is asked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.render import SHORT
from tta_bench.report.table import ErrorTable, Row
from tta_bench.results import write_atomically

# Okabe and Ito's colours, which stay apart for colour-blind readers; grey is for the source model
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
_SOURCE = "#9A9A9A"
_WIDEST_SPAN = 0.84  # of the room between two corruptions, filled by bars


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, the same in every panel; more labels than colours repeat them."""
    others = [label for label in labels if label != "source"]
    chosen = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(others)}
    return {label: chosen.get(label, _SOURCE) for label in labels}


def draw(made: Sequence[ErrorTable], path: pathlib.Path) -> pathlib.Path:
    """Draw all tables into one file, whose ending (.png, .pdf) is the format."""
    panels = [(table, model) for table in made for model in table.models]
    labels = list(dict.fromkeys(row.label for table in made for row in table.rows))
    columns = max(len(table.columns) for table in made)
    size = (max(6.0, 1.4 + columns * max(0.45, 0.16 * len(labels))), 0.9 + 2.3 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (table, model) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, table, model, labels)
    # from all panels: a method that one model cannot run is drawn in another
    handles = {h.get_label(): h for axis in axes[:, 0] for h in axis.containers}
    shown = [label for label in labels if label in handles]
    figure.legend(
        [handles[label] for label in shown], shown, loc="outside upper center", ncols=min(6, len(shown)), frameon=False
    )
    write_atomically(path, lambda stream: figure.savefig(stream, format=path.suffix[1:], dpi=150))
    plt.close(figure)
    return path


def _panel(axis: Axes, table: ErrorTable, model: str, labels: Sequence[str]) -> None:
    columns = table.columns
    rows = [row for row in table.rows if row.model == model]
    drawn = [row for row in rows if any(cell.mean is not None for cell in row.cells.values())]
    colour = colours(labels)
    width = _WIDEST_SPAN / max(1, len(drawn))
    for number, row in enumerate(drawn):
        offset = (number - (len(drawn) - 1) / 2) * width
        _bars(axis, row, columns, offset, width, colour[row.label])
    axis.set_xticks(range(len(columns)), [SHORT.get(name, name) for name in columns])
    axis.set_ylabel("error, %")
    said = table.title.partition(": error in per cent")[2].lstrip(", ")
    subset = " (subset: not a result)" if table.partial else ""
    axis.set_title(f"{model}{', ' + said if said else ''}{subset}", loc="left", fontsize=10)
    if table.averaged:
        axis.axvline(len(columns) - 1.5, color="#CCCCCC", linewidth=1, zorder=0)
    axis.set_xlim(-0.6, len(columns) - 0.4)
    axis.set_ylim(0, None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#EEEEEE", zorder=0)
    axis.set_axisbelow(True)
    absent = [row for row in rows if row not in drawn]
    if absent:
        note = "not run: " + ", ".join(f"{row.label} ({row.mean.state})" for row in absent)
        axis.set_title(note, loc="right", fontsize=8, color="#666666")


def _bars(axis: Axes, row: Row, columns: Sequence[str], offset: float, width: float, colour: str) -> None:
    cells = [row.mean if name == "mean" else row.cells[name] for name in columns]
    have = [i for i, cell in enumerate(cells) if cell.mean is not None]
    heights = [float(cells[i].mean or 0.0) for i in have]
    spread = [cells[i].std or np.nan for i in have]
    errors = None if np.isnan(spread).all() else spread
    axis.bar(
        np.array(have) + offset, heights, width, label=row.label, color=colour, yerr=errors, error_kw={"linewidth": 0.8}
    )
