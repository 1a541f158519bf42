"""Figure: error against what it costs, with the Pareto front of each source model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from tta_bench.report.cost import CostTable
from tta_bench.report.figures import plot, sheet
from tta_bench.report.figures.section import Drawn, Section
from tta_bench.report.figures.style import INK, MARKERS, MUTED, Style
from tta_bench.report.table import Row

_TITLE = "Error by cost"
_BACKWARD = "images backwarded for each 1,000"
_WIDE = 12.0  # costs whose largest and smallest differ by a larger factor have a logarithmic axis
_FRONT = "Grey steps: Pareto front of each source model, no method there is better at no higher cost"


@dataclass(frozen=True)
class Point:
    """A method with one source model: what it costs, and its error."""

    row: Row
    cost: float

    @property
    def error(self) -> float:
        """Mean over the corruptions, per cent."""
        return float(self.row.mean.mean or 0.0)


def draw(section: Section) -> Iterator[Drawn]:
    """A figure for each kind of hardware: times of several are never in one."""
    setting = section.worst.setting
    tables = [t for t in section.content.costs if t.section == setting.base]
    drawn = [(table, panels) for table in tables if (panels := _panels(section, table))]
    for number, (table, panels) in enumerate(drawn, 1):
        name = f"cost{section.suffix}{f'-{number}' if len(drawn) > 1 else ''}"
        yield _figure(section, table, panels, name)


def _panels(section: Section, table: CostTable) -> dict[str, list[Point]]:
    """Points by axis; only axes along which something is known and differs. Counts are of the trials whose error it is."""
    counts = section.per_thousand("images_backwarded")
    axes: dict[str, dict[tuple[str, str], float | None]] = {
        "time of a step, ms": {(r.model, r.label): r.step_ms for r in table.rows},
        _BACKWARD: {(r.model, r.label): counts.get((r.model, r.label)) for r in table.rows},
        "peak memory, MiB": {(r.model, r.label): r.peak_memory_mib for r in table.rows},
    }
    found = {name: _points(section, costs) for name, costs in axes.items()}
    return {name: points for name, points in found.items() if len({point.cost for point in points}) > 1}


def _points(section: Section, costs: Mapping[tuple[str, str], float | None]) -> list[Point]:
    known = [row for row in section.worst.rows if row.mean.mean is not None]
    return [Point(row, cost) for row in known if (cost := costs.get((row.model, row.label))) is not None]


def _figure(section: Section, table: CostTable, panels: Mapping[str, list[Point]], name: str) -> Drawn:
    rows = section.worst.rows
    drawn = [point.row for points in panels.values() for point in points]
    styles = section.styles_of(row.label for row in drawn)
    models = [model for model in section.worst.models if any(row.model == model for row in drawn)]
    markers = {model: MARKERS[i % len(MARKERS)] for i, model in enumerate(models)}
    spread = plot.Spread.of(row.mean for row in drawn)
    alone = "; other trials used the device at the same time" if table.shared else ""
    notes = [*spread.notes([row.mean for row in drawn], apart=_BACKWARD in panels), _FRONT]
    further = [f"{table.hardware}{alone}"] if table.hardware else ["timed on a shared device: times are left out"]
    conditions = section.conditions(further=further)
    words = section.words(_TITLE, _legend(styles, markers), rows, conditions, notes)
    page = sheet.Sheet(words, [""] * len(panels), sheet.Room(1.72, 1.9, top=0.1))
    for axes, (title, points) in zip(page.axes, panels.items(), strict=True):
        _axis(axes, title, [point.cost for point in points])
        for model in models:
            _front(axes, [point for point in points if point.row.model == model])
        costs = [point.cost for point in points]
        places = plot.apart(costs, 0.015 * max(costs), 0.12 * max(costs)) if title == _BACKWARD else costs
        for point, x in zip(points, places, strict=True):
            plot.dot(axes, (x, point.row.mean), styles[point.row.label], spread, markers[point.row.model])
    what = f"Error in per cent, mean over the corruptions, by {'; by '.join(panels)}; lower left is better. Times are "
    what += "medians over all trials on the hardware, memory is their peak."
    return Drawn(name, _TITLE, section.caption(what, conditions, rows, notes), page.figure)


def _legend(styles: Mapping[str, Style], markers: Mapping[str, str]) -> list[sheet.Entry]:
    """Methods by colour and filling, then source models by shape."""
    several = len(markers) > 1
    methods = [sheet.Entry(k, line=s.point(MARKERS[0]) | {"linestyle": "none"}) for k, s in styles.items()]
    plain = {"linestyle": "none", "color": MUTED, "markersize": 6, "fillstyle": "none"}
    shapes = [sheet.Entry(model, line=plain | {"marker": marker}) for model, marker in markers.items() if several]
    return methods + [replace(shape, first=number == 0) for number, shape in enumerate(shapes)]


def pareto(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats in one thing without losing in the other, by cost."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], errors[i]))
    front: list[int] = []
    for i in order:
        alike = front and (costs[i], errors[i]) == (costs[front[-1]], errors[front[-1]])
        if not front or errors[i] < errors[front[-1]] or alike:
            front.append(i)
    return front


def _front(axes: Axes, points: Sequence[Point]) -> None:
    """Steps through the points of the front; means over fewer cells are compared with nothing."""
    compared = [point for point in points if point.row.mean.state == "ok"]
    costs, errors = [point.cost for point in compared], [point.error for point in compared]
    front = pareto(costs, errors)
    x, y = [costs[i] for i in front], [errors[i] for i in front]
    if front:  # to the right edge: what costs more and is no better is above the line
        axes.step([*x, axes.get_xlim()[1]], [*y, y[-1]], where="post", color=MUTED, linewidth=0.7, zorder=1)


def _axis(axes: Axes, title: str, costs: Sequence[float]) -> None:
    low, high = min(costs), max(costs)
    if low > 0 and high / low > _WIDE:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        decades = [m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5)]
        ticks = [tick for tick in decades if low / 1.3 <= tick <= high * 1.3]
        axes.set_xticks(ticks[:: 1 + len(ticks) // 6], [f"{tick:,g}" for tick in ticks[:: 1 + len(ticks) // 6]])
        axes.minorticks_off()
    else:
        axes.set_xlim(-0.08 * high, 1.1 * high)
    axes.set_xlabel(title, color=INK)
    sheet.error_axis(axes)
