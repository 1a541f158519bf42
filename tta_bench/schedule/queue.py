"""Waiting trials: the longest first, and among equals one whose images the worker already holds."""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Callable, Iterable

from tta_bench.suite.plan import Trial

TOLERANCE = 0.05  # estimates within this fraction of the longest count as equal
_LOOKAHEAD = 64  # equal trials that are searched for one whose images the worker holds


class Queue:
    """Trials that wait for a worker.

    Args:
        trials: in plan order, which decides among trials of equal length.
        seconds: expected duration of a trial.
    """

    def __init__(self, trials: Iterable[Trial], seconds: Callable[[Trial], float]):
        self._seconds = seconds
        self._waiting = [(seconds(trial), trial) for trial in trials]  # longest first
        self._sort()

    def __len__(self) -> int:
        return len(self._waiting)

    def refresh(self) -> None:
        """Re-sort after estimates have changed."""
        self._waiting = [(self._seconds(trial), trial) for _, trial in self._waiting]
        self._sort()

    def remaining(self) -> float:
        """Expected duration of all waiting trials together, seconds."""
        return sum(seconds for seconds, _ in self._waiting)

    def put(self, trial: Trial) -> None:
        """Return a trial to the queue, ahead of its equals."""
        insort_left(self._waiting, (self._seconds(trial), trial), key=_order)

    def take(self, previous: Trial | None = None) -> Trial:
        """Remove and return the next trial for a worker whose last trial was ``previous``."""
        threshold = (1 - TOLERANCE) * self._waiting[0][0]
        equals = [trial for seconds, trial in self._waiting[:_LOOKAHEAD] if seconds >= threshold]
        index = 0 if previous is None else min(range(len(equals)), key=lambda i: _distance(equals[i], previous))
        return self._waiting.pop(index)[1]

    def _sort(self) -> None:
        self._waiting.sort(key=_order)


def _order(item: tuple[float, Trial]) -> float:
    return -item[0]


def _distance(trial: Trial, previous: Trial) -> tuple[bool, bool]:
    """How much of what a worker holds a trial cannot use: source model, images."""
    return trial.model != previous.model, trial.stream.shifts != previous.stream.shifts
