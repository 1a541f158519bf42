"""Where costs are on their axis; points that would cover each other move right, so that none is left of zero."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from tta_bench.report.figures import plot
from tta_bench.report.table import MethodErrors

_LOGARITHMIC = 12.0  # ratio of the largest and smallest cost from which the axis is logarithmic
ZERO = "Left of a dotted line: cost 0, which a logarithmic axis does not have"
CostPoint = tuple[float, MethodErrors]  # cost, or its place on the axis


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
        positive = [cost for cost in costs if cost > 0] or [1.0]
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
        share = 0.02 * lane
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
