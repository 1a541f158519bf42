"""Figure: error by cost, one for each source model: a panel for each kind of cost, with its Pareto front."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.cost import CostTable
from tta_bench.report.figures import layout, plot
from tta_bench.report.figures.section import Drawing, Section
from tta_bench.report.figures.style import INK, MUTED
from tta_bench.report.table import MethodErrors, identifier

_LOGARITHMIC = 12.0  # ratio of the largest and smallest cost from which the axis is logarithmic
_MARK = 6.0  # size of marks, points
_FEW, _HEIGHT, _TALL = 12, 2.3, 3.0  # methods; height of panels for so many, and for more, inches
_RING: dict[str, Any] = {"marker": "o", "markersize": 10, "fillstyle": "none", "markeredgewidth": 0.8, "color": INK}
_FRONT = (
    "Ringed, grey steps: Pareto front. No method has a lower mean error at no higher cost; differences are not tested"
)
_ZERO = "Left of a dotted line: cost 0, which a logarithmic axis does not have"
_SUMMARY = (
    "Error of methods on {model} in per cent, mean over the {noun}, by {costs}; lower left is better. Times are medians "
    "over all trials on the hardware, memory is their peak."
)
CostPoint = tuple[float, MethodErrors]  # cost, or its place on the axis


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
    styles, spread = section.styles_of(row.label for row in rows), plot.Spread.of(cells)
    ends = plot.means(cells) + np.array([[-1.0], [1.0]]) * spread.lengths(cells)
    places = [Places.of(kind.points, float(np.ptp(ends))) for kind in panels]
    shared = "; other trials used the device at the same time" if table.shared else ""
    further = f"{table.hardware}{shared}" if table.hardware else "timed on a shared device: times are left out"
    notes = [*plot.notes(spread, cells, shifted=any(own.shifted for own in places)), _FRONT]
    notes += [_ZERO] if any(own.zero for own in places) else []
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
    for axes, kind, own in zip(grid, panels, places, strict=True):
        own.set_axis(axes, kind.name)
        _draw_front(axes, [(own.place(cost), row) for cost, row in kind.front])
        for x, (_, row) in zip(own.x, kind.points, strict=True):
            looks = styles[row.label].point() | {"zorder": 3, "linestyle": "none", "markersize": _MARK}
            plot.errors(axes, [(x, row.mean)], spread, looks)
        ringed = {row.label for _, row in kind.front}
        rings = [(x, row.mean) for x, (_, row) in zip(own.x, kind.points, strict=True) if row.label in ringed]
        axes.plot([x for x, _ in rings], plot.means(cell for _, cell in rings), linestyle="none", zorder=4, **_RING)
    return Drawing(text, figure)


def _by_cost(point: CostPoint) -> float:
    return point[0]


def _draw_front(axes: Axes, front: Sequence[CostPoint]) -> None:
    """Steps through a front's points, to the right edge: all points of higher cost and no lower error are above them."""
    if front:
        steps = sorted((x, float(row.mean.mean or 0.0)) for x, row in front)
        x, y = np.transpose([*steps, (axes.get_xlim()[1], steps[-1][1])])
        axes.step(x, y, where="post", color=MUTED, linewidth=0.7, zorder=1)


@dataclass(frozen=True)
class Places:
    """Where costs are on their axis, which is logarithmic where they differ much.

    Attributes:
        low, high: smallest above zero, and largest cost.
        logarithmic: whether the axis is.
        zero: whether it has a place for cost 0 apart, at its left.
        x: (points,) places, shifted where points would cover each other.
        shifted: whether some are.
    """

    low: float
    high: float
    logarithmic: bool
    zero: bool
    x: list[float]
    shifted: bool

    @classmethod
    def of(cls, points: Sequence[CostPoint], errors: float) -> Places:
        """The places of some points on an axis; ``errors``: the range of the other axis, points."""
        costs = [cost for cost, _ in points]
        positive = [cost for cost in costs if cost > 0]
        low, high = min(positive), max(positive)
        logarithmic = high / low > _LOGARITHMIC
        bare = cls(low, high, logarithmic, logarithmic and min(costs) <= 0, [], False)
        lanes = _lanes(costs, [float(row.mean.mean or 0.0) for _, row in points], 0.06 * errors)
        x = [bare._moved(bare.place(cost), lane) for cost, lane in zip(costs, lanes, strict=True)]
        return cls(low, high, logarithmic, bare.zero, x, any(lanes))

    def place(self, cost: float) -> float:
        """The place of a cost."""
        return self.low / self._step**2 if self.zero and cost <= 0 else cost

    @property
    def _step(self) -> float:
        """A factor, an eighth of the logarithmic axis: half the distance of zero from the smallest cost."""
        return (self.high / self.low) ** 0.125

    def _moved(self, x: float, lane: int) -> float:
        share = 0.014 * lane
        return float(x * (self.high / self.low) ** share) if self.logarithmic else x + share * self.high

    def set_axis(self, axes: Axes, name: str) -> None:
        """Limits, ticks and names of the axes."""
        if self.logarithmic:
            axes.set_xscale("log")
            margin = (self.high / self.low) ** 0.06
            axes.set_xlim(self.place(0.0) / margin if self.zero else self.low / margin, max(self.x) * margin)
            ticks = self._ticks(margin)
            axes.set_xticks([*([self.place(0.0)] if self.zero else []), *ticks],
                            [*(["0"] if self.zero else []), *(f"{tick:,g}" for tick in ticks)])  # fmt: skip
            axes.set_xticks([], minor=True)
            if self.zero:
                axes.axvline(self.low / self._step, **plot.DOTTED)
        else:
            axes.set_xlim(-0.08 * self.high, max(self.x) + 0.08 * self.high)
        axes.set_xlabel(name)
        plot.error_axis(axes)

    def _ticks(self, margin: float) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [
            digit * 10.0**decade for decade in decades for digit in ((1, 2, 5) if self.high / self.low < 100 else (1,))
        ]
        return [tick for tick in ticks if self.low / margin <= tick <= self.high * margin]


def _lanes(costs: Sequence[float], errors: Sequence[float], apart: float) -> list[int]:
    """How many steps to the right a point moves, as its cost is another's, and its error less than ``apart`` from it."""
    lanes, taken = [0] * len(costs), defaultdict[tuple[float, int], list[float]](list)
    for i in np.lexsort((errors, costs)):
        lane = 0
        while any(abs(errors[i] - other) < apart for other in taken[round(costs[i], 6), lane]):
            lane += 1
        taken[round(costs[i], 6), lane].append(errors[i])
        lanes[i] = lane
    return lanes
