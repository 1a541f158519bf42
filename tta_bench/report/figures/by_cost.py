"""Figure: error by cost, one for each source model: a panel for each kind of cost, with its Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.cost import CostTable
from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.places import ZERO, CostPoint, Places
from tta_bench.report.figures.section import Drawing, Section
from tta_bench.report.figures.style import INK, MUTED
from tta_bench.report.table import MethodErrors, identifier

_MARK = 6.0  # size of marks, points
_FEW, _HEIGHT, _TALL = 12, 2.3, 3.0  # methods; height of panels for so many, and for more, inches
_RING: dict[str, Any] = {"marker": "o", "markersize": 10, "fillstyle": "none", "markeredgewidth": 0.8, "color": INK}
_FRONT = (
    "Ringed, grey steps: Pareto front of this source model. No method has a lower mean error at no higher cost; "
    "differences are not tested"
)
_SUMMARY = (
    "Error of methods on {model} in per cent, mean over the {noun}, by {costs}; lower left is better. Times are medians "
    "over all trials on the hardware, memory is their peak."
)


@dataclass(frozen=True)
class Costs:
    """A kind of cost for the methods of one source model.

    Attributes:
        name: of the kind, with its unit.
        points: methods with a mean error whose cost is known.
        unknown: the other methods with a mean error.
    """

    name: str
    points: list[CostPoint]
    unknown: list[str]

    @property
    def differ(self) -> bool:
        """Whether there is something to draw."""
        return len({cost for cost, _ in self.points}) > 1

    @property
    def front(self) -> list[CostPoint]:
        """The points that no other is better than in cost and mean error; a mean over fewer cells is not comparable."""
        compared = [(cost, row, row.mean.mean) for cost, row in self.points if row.mean.state == "ok"]
        known = [(cost, row, error) for cost, row, error in compared if error is not None]
        return [
            (cost, row) for cost, row, error in known
            if not any(c <= cost and e <= error and (c, e) != (cost, error) for c, _, e in known)
        ]  # fmt: skip

    @property
    def note(self) -> str:
        """What of it is not drawn; empty where all is."""
        if not self.points:
            return f"Not measured: {self.name}"
        if not self.differ:
            return f"The same for all methods with a value: {self.name}, {self.points[0][0]:,.3g}"
        return f"Without a value for {self.name}: {', '.join(self.unknown)}" if self.unknown else ""


def draw(section: Section) -> Iterator[Drawing]:
    """A figure for each kind of hardware and source model: times of several kinds are never in one."""
    tables = [t for t in section.content.costs if t.section == section.worst.setting.base]
    kinds = [(table, model, _costs(section, table, model)) for table in tables for model in section.worst.models]
    drawn = [(table, model, costs) for table, model, costs in kinds if any(kind.differ for kind in costs)]
    names = _names([table for table, *_ in drawn], [model for _, model, _ in drawn])
    for name, (table, model, costs) in zip(names, drawn, strict=True):
        yield _figure(section, table, model, costs, f"cost{name}{section.suffix}")


def _names(tables: Sequence[CostTable], models: Sequence[str]) -> list[str]:
    """What the names of figures add for their hardware and source models, where there are several."""
    numbers = {id(table): number for number, table in enumerate({id(t): t for t in tables}.values(), 1)}
    names = [
        f"{f'-{numbers[id(table)]}' if len(numbers) > 1 else ''}{f'-{identifier(model)}' if len(set(models)) > 1 else ''}"
        for table, model in zip(tables, models, strict=True)
    ]
    unique = len(set(names)) == len(names)
    return names if unique else [f"{name}-{number}" for number, name in enumerate(names, 1)]


def _costs(section: Section, table: CostTable, model: str) -> list[Costs]:
    """The kinds of cost. Passes are of the trials that the errors are of."""
    passes = [section.per_thousand(f"images_{direction}") for direction in ("forwarded", "backwarded")]
    forwards, backwards = ({label: n / 1000 for (m, label), n in counts.items() if m == model} for counts in passes)
    measured = {row.label: row for row in table.of(model)}
    rows = [row for row in section.worst.of(model) if row.mean.mean is not None and row.label in measured]
    values: dict[str, Mapping[str, float | None]] = {
        "forward passes per image": forwards,
        "backward passes per image": backwards,
        "time of a step, ms": {label: row.step_ms for label, row in measured.items()},
        "peak memory, MiB": {label: row.peak_memory_mib for label, row in measured.items()},
    }
    return [_kind(name, rows, known) for name, known in values.items()]


def _kind(name: str, rows: Sequence[MethodErrors], known: Mapping[str, float | None]) -> Costs:
    points = [(cost, row) for row in rows if (cost := known.get(row.label)) is not None]
    return Costs(name, points, [row.label for row in rows if known.get(row.label) is None])


# -- drawing -----------------------------------------------------------------------------------------------------------


def _figure(section: Section, table: CostTable, model: str, costs: Sequence[Costs], name: str) -> Drawing:
    panels = [kind for kind in costs if kind.differ]
    rows = list({row.label: row for kind in panels for _, row in kind.points}.values())
    cells = [row.mean for row in rows]
    spread = plot.Spread.of(cells)
    own = Range.of({row.label: plot.means([row.mean]) for row in rows}, section.content.baseline)
    ends = np.minimum(
        plot.means(cells) + np.array([[-1.0], [1.0]]) * spread.lengths(cells), own.high if own.beyond else np.inf
    )
    places = [Places.of(kind.points, float(np.ptp(ends))) for kind in panels]
    styles, left_out = section.drawn(row.label for row in rows)
    looks = {k: style.point() | {"zorder": 3, "linestyle": "none", "markersize": _MARK} for k, style in styles.items()}
    shared = "; other trials used the device at the same time" if table.shared else ""
    further = f"{table.hardware}{shared}" if table.hardware else "timed on a shared device: times are left out"
    notes = [
        section.averaging,
        *table.disturbed,
        *plot.notes(spread, cells, shifted=any(place.shifted for place in places)),
        _FRONT,
    ]
    notes += [*limits.notes({"": own}), *([ZERO] if any(place.zero for place in places) else []), *left_out]
    notes += filter(None, (kind.note for kind in costs))
    fronts = [f"Pareto front by {kind.name}: {', '.join(row.label for _, row in sorted(kind.front, key=_by_cost))}."
              for kind in panels]  # fmt: skip
    noun, kinds = section.worst.setting.noun, "; by ".join(kind.name for kind in panels)
    summary = " ".join([_SUMMARY.format(model=model, noun=noun, costs=kinds), *fronts])
    text = section.text(name, f"Error by cost, {layout.shorten(model)}", summary, rows=section.worst.of(model),
                        notes=notes, further=further)  # fmt: skip
    legend = layout.legend(styles, linestyle="none", markersize=_MARK)
    height = _HEIGHT if len(styles) <= _FEW else _TALL
    figure, grid = layout.square_panels(text, [""] * len(panels), [legend], height=height)
    for axes, kind, place in zip(grid, panels, places, strict=True):
        place.set_axis(axes, kind.name)
        _draw_front(axes, [(place.place(cost), row) for cost, row in kind.front])
        drawn = [(x, row) for x, (_, row) in zip(place.x, kind.points, strict=True) if row.label in styles]
        for x, row in drawn:
            plot.errors(axes, [(x, row.mean)], spread, looks[row.label])
        own.apply(axes)
        ringed = {row.label for _, row in kind.front}
        for x, row in drawn:
            error = float(row.mean.mean or 0.0)
            own.mark(axes, [x], [error], looks[row.label])
            if row.label in ringed:
                axes.plot([x], [own.place(error)], linestyle="none", zorder=5, **_RING)
    return Drawing(text, figure)


def _by_cost(point: CostPoint) -> float:
    return point[0]


def _draw_front(axes: Axes, front: Sequence[CostPoint]) -> None:
    """Steps through a front's points, to the right edge: all points of higher cost and no lower error are above them."""
    if front:
        steps = sorted((x, float(row.mean.mean or 0.0)) for x, row in front)
        x, y = np.transpose([*steps, (axes.get_xlim()[1], steps[-1][1])])
        axes.step(x, y, where="post", color=MUTED, linewidth=0.7, zorder=1)
