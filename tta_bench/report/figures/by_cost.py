"""Figure: error by cost, with the Pareto front of each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from tta_bench.report.cost import CostTable
from tta_bench.report.figures import layout, plot
from tta_bench.report.figures.section import Drawing, Section
from tta_bench.report.figures.style import MARKERS, MUTED
from tta_bench.report.table import MethodErrors

_BACKWARD = "images backwarded per 1,000"
_LOGARITHMIC = 12.0  # ratio of the largest and smallest cost from which the axis is logarithmic
_FRONT = "Grey steps: Pareto front of each source model"
_SUMMARY = (
    "Error in per cent, mean over the {noun}, by {costs}; lower left is better. Times are medians over all trials on the "
    "hardware, memory is their peak."
)
_POINT: dict[str, Any] = {"linestyle": "none", "markersize": 6}
CostPoint = tuple[float, MethodErrors]


def draw(section: Section) -> Iterator[Drawing]:
    """A figure for each kind of hardware: times of several are never in one."""
    tables = [t for t in section.content.costs if t.section == section.worst.setting.base]
    figures = [(table, panels) for table in tables if (panels := _panels(section, table))]
    for number, (table, panels) in enumerate(figures, 1):
        yield _figure(section, table, panels, f"cost{section.suffix}{f'-{number}' if len(figures) > 1 else ''}")


def _panels(section: Section, table: CostTable) -> dict[str, list[CostPoint]]:
    """Points by kind of cost, where costs are known and differ. Counts are of the trials that the errors are of."""
    counts = section.per_thousand("images_backwarded")
    costs: dict[str, dict[tuple[str, str], float | None]] = {
        "time of a step, ms": {(r.model, r.label): r.step_ms for r in table.rows},
        _BACKWARD: {(r.model, r.label): counts.get((r.model, r.label)) for r in table.rows},
        "peak memory, MiB": {(r.model, r.label): r.peak_memory_mib for r in table.rows},
    }
    rows = [row for row in section.worst.rows if row.mean.mean is not None]
    panels = {
        name: [(cost, row) for row in rows if (cost := known.get((row.model, row.label))) is not None]
        for name, known in costs.items()
    }
    return {name: points for name, points in panels.items() if len({cost for cost, _ in points}) > 1}


def _figure(section: Section, table: CostTable, panels: Mapping[str, list[CostPoint]], name: str) -> Drawing:
    rows = [row for points in panels.values() for _, row in points]
    cells = [row.mean for row in rows]
    styles = section.styles_of(row.label for row in rows)
    models = [model for model in section.worst.models if any(row.model == model for row in rows)]
    markers = {model: MARKERS[number % len(MARKERS)] for number, model in enumerate(models)}
    spread = plot.Spread.of(cells)
    shared = "; other trials used the device at the same time" if table.shared else ""
    further = f"{table.hardware}{shared}" if table.hardware else "timed on a shared device: times are left out"
    notes = [*plot.notes(spread, cells, shifted=_BACKWARD in panels), _FRONT]
    summary = _SUMMARY.format(noun=section.worst.setting.noun, costs="; by ".join(panels))
    text = section.text(name, "Error by cost", summary, rows=section.worst.rows,
                        notes=notes, further=further)  # fmt: skip
    legends = [layout.legend(styles, marker=MARKERS[0], **_POINT)]
    if len(models) > 1:
        hollow: dict[str, Any] = {"color": MUTED, "fillstyle": "none", **_POINT}
        legends += [[Line2D([], [], label=layout.shorten(k), marker=marker, **hollow) for k, marker in markers.items()]]
    width = max(layout.COLUMN_WIDTH, layout.TEXT_WIDTH * len(panels) / 3)
    figure, grid = layout.panels(text, [""] * len(panels), legends, width=width, height=2.3, columns=len(panels))
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        costs = [cost for cost, _ in points]
        _axis(axes, title, costs)
        for model in models:
            _draw_front(axes, [point for point in points if point[1].model == model])
        x = plot.spread_ties(costs, 0.015 * max(costs), 0.12 * max(costs)) if title == _BACKWARD else costs
        for cost, (_, row) in zip(x, points, strict=True):
            looks = styles[row.label].point() | {"marker": markers[row.model], "zorder": 3, **_POINT}
            plot.errors(axes, [(cost, row.mean)], spread, looks)
    return Drawing(text, figure)


def _draw_front(axes: Axes, points: Sequence[CostPoint]) -> None:
    """Steps through the points of the front, without means over fewer cells, which are not comparable."""
    compared = sorted((cost, float(row.mean.mean or 0.0)) for cost, row in points if row.mean.state == "ok")
    if compared:  # to the right edge: points of higher cost and no lower error are above the line
        x, y = np.transpose([*compared, (axes.get_xlim()[1], np.inf)])
        axes.step(x, np.minimum.accumulate(y), where="post", color=MUTED, linewidth=0.7, zorder=1)


def _axis(axes: Axes, title: str, costs: Sequence[float]) -> None:
    low, high = min(costs), max(costs)
    if low > 0 and high / low > _LOGARITHMIC:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(-0.08 * high, 1.1 * high)
    axes.set_xlabel(title)
    plot.error_axis(axes)
