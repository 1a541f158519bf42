"""Where an axis of errors ends, so that a few bad methods do not flatten all others; what is beyond it is marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tta_bench.report.figures.style import INK, MUTED

Errors = Mapping[str, Iterable[float]]  # per cent, by method
_FLAT = 0.6  # of an axis: the others have at most so much of it where one is left out
# Above the others, in parts of their range: where the axis is broken, where marks of what is beyond are, where it ends.
_BREAK, _MARK, _END = 0.08, 0.15, 0.32


@dataclass(frozen=True)
class Range:
    """An axis of errors.

    Attributes:
        low, high: lowest (or the axis' start) and highest error of the methods that are on it, per cent.
        beyond: the highest errors of the other methods, per cent; empty where the axis is not broken.
        start: where the axis begins, if that is given.
    """

    low: float
    high: float
    beyond: Mapping[str, float]
    start: float | None = None

    @classmethod
    def of(cls, errors: Errors, baseline: str, *, start: float | None = None) -> Range:
        """The axis of all methods, or of all but at most a quarter of them, where these would flatten the others.

        Args:
            errors: of methods; those that are no number are left out.
            baseline: label of a method that is always on the axis.
            start: of the axis, unless it is the lowest error.
        """
        known = {label: [float(value) for value in own if np.isfinite(value)] for label, own in errors.items()}
        highest = {label: max(own) for label, own in known.items() if own}
        low = min((min(known[label]) for label in highest), default=0.0) if start is None else start
        worst = sorted((label for label in highest if label != baseline), key=lambda label: -highest[label])
        for count in range(1, 1 + max(len(highest) // 4, int(len(highest) > 2))):
            high = max(value for label, value in highest.items() if label not in worst[:count])
            if high - low <= _FLAT * (highest[worst[0]] - low):
                limit = cls(low, high, {}, start).at(_END)
                return cls(low, high, {k: value for k, value in highest.items() if value > limit}, start)
        return cls(low, max(highest.values(), default=low), {}, start)

    def at(self, part: float) -> float:
        """The place above ``high`` by a part of the range."""
        return self.high + part * max(self.high - self.low, 1.0)

    @classmethod
    def of_models(cls, errors: Mapping[str, Errors], baseline: str) -> dict[str, Range]:
        """The axes of panels, one for each source model."""
        return {model: cls.of(own, baseline) for model, own in errors.items()}

    def apply(self, axes: Axes) -> None:
        """Limit a panel that is drawn, and mark where it is broken; no error is below 0."""
        low, high = axes.get_ylim()
        if not self.beyond:
            start = max(0.0, low) if self.start is None else self.start
            axes.set_ylim(start, max(high, self.high + 0.05 * (self.high - start)))  # panels may share the axis
            return
        margin = 0.1 * (self.high - self.low)
        low = max(0.0, self.low - margin) if self.start is None else self.start
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, self.high)
        axes.set_yticks([tick for tick in ticks if low <= tick <= self.at(_BREAK)])
        axes.set_ylim(low, self.at(_END))
        axes.axhline(self.at(_BREAK), color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=3.5)

    def place(self, value: float) -> float:
        """Where an error is marked."""
        return self.at(_MARK) if self.beyond and value > self.at(_END) else value

    def mark(self, axes: Axes, x: Iterable[float], values: Iterable[float], looks: Mapping[str, Any]) -> None:
        """Arrows in a limited panel, where ``values`` are beyond it, and points below them; ``looks``: of these."""
        for at, value in zip(x, values, strict=True):
            if (y := self.place(value)) < value:
                axes.plot([at], [y], **{**looks, "linestyle": "none", "zorder": 4})
                axes.annotate("↑", (at, y), (0, 4), textcoords="offset points", ha="center", size=8, weight="bold",
                              color=looks.get("color", INK), path_effects=_OUTLINED, zorder=4)  # fmt: skip


_OUTLINED = [withStroke(linewidth=1.8, foreground="white")]  # on bars of the same colour


def notes(ranges: Mapping[str, Range]) -> Iterator[str]:
    """Which methods are beyond the axes of panels, or, where its name is empty, of all."""
    for model, limits in ranges.items():
        if limits.beyond:
            named = ", ".join(f"{label} (up to {value:.1f}\u00a0%)" for label, value in limits.beyond.items())
            yield f"Broken axis{f' of {model}' if model else ''}; ↑ higher than its end: {named}"
