"""Which trial next: those expected to take longest first, and among equals one whose images a worker already holds.

Short trials of a row are given several at a time: else handing each out would cost more than running it.

What a trial takes is estimated from the trials of the same row of the suite that have ended, in this run or an earlier
session of it; where there are none, from images × passes × parameters, scaled by all that have ended.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from tta_bench.setting import Setting
from tta_bench.suite.plan import Materials, Trial

EQUAL = 0.05  # estimates that differ by less than this share are equals
SECONDS_PER_UNIT = 2e-11  # of images × passes × parameters, before any trial has ended
TOGETHER_S = 1.0  # what trials that are given together are expected to take, all in all
MOST_TOGETHER = 64  # of them: their results are held in memory until all have ended
_LOOKED_AT = 64  # trials of a row that are looked at for one whose images are at hand

Row = tuple[str, str, Setting]


def row(trial: Trial) -> Row:
    """What trials share that take equally long an image: (label, source model, setting)."""
    return trial.label, trial.model, trial.setting.without("severities")


def images(trial: Trial) -> int:
    """Images in the trial's stream."""
    return trial.stream.length


def passes(materials: Materials, trial: Trial) -> int:
    """Forward passes that a step is worth: a backward pass costs about two."""
    cls = materials.registry.load(trial.method)
    return 3 if cls.needs.backward else 1  # type: ignore[attr-defined]


class Estimates:
    """Seconds that trials are expected to take."""

    def __init__(self, materials: Materials):
        self._materials = materials
        self._seconds: dict[Row, float] = {}  # an image
        self._units: dict[Row, float] = {}
        self._forward: dict[str, float] = {}
        self._scale = SECONDS_PER_UNIT

    @property
    def known(self) -> bool:
        """Whether any trial's time is known."""
        return bool(self._seconds)

    def learn(self, trial: Trial, seconds: float) -> bool:
        """Take in what a trial took; True where its row had no time before, so that estimates change."""
        place, new = row(trial), seconds / images(trial)
        first = place not in self._seconds
        self._seconds[place] = new if first else 0.8 * self._seconds[place] + 0.2 * new
        if first:
            self._measure(trial)
            self._scale = statistics.median(s / self._units[r] for r, s in self._seconds.items())
        return first

    def measured(self, model: str, seconds: float) -> None:
        """Take in what a forward pass of a source model takes, an image."""
        self._forward[model] = seconds

    def seconds(self, trial: Trial) -> float:
        """What ``trial`` is expected to take."""
        known = self._seconds.get(row(trial))
        if known is None and trial.model in self._forward:
            known = passes(self._materials, trial) * self._forward[trial.model]
        return images(trial) * (known if known is not None else self._scale * self._measure(trial))

    def together(self, trial: Trial) -> int:
        """How many trials like this one are given together; 1 where none of its row has shown that they are short."""
        known = self._seconds.get(row(trial))
        if known is None:
            return 1
        return max(1, min(MOST_TOGETHER, int(TOGETHER_S / max(known * images(trial), 1e-9))))

    def _measure(self, trial: Trial) -> float:
        place = row(trial)
        if place not in self._units:
            self._units[place] = float(passes(self._materials, trial) * self._materials.parameters[trial.model])
        return self._units[place]


@dataclass
class _Group:
    """Trials of one row with streams of one length, in plan order."""

    waiting: deque[Trial] = field(default_factory=deque)
    seconds: float = 0.0


class Queue:
    """Trials that wait.

    Args:
        trials: in plan order.
        seconds: what a trial is expected to take.
    """

    def __init__(self, trials: Iterable[Trial], seconds: Callable[[Trial], float]):
        self._seconds = seconds
        self._groups: dict[tuple[Row, int], _Group] = {}
        self._count = 0
        self._singly: set[str] = set()  # keys
        for trial in trials:
            self._groups.setdefault((row(trial), images(trial)), _Group()).waiting.append(trial)
            self._count += 1
        self.refresh()

    def __len__(self) -> int:
        return self._count

    def refresh(self) -> None:
        """Estimates have changed."""
        for group in self._groups.values():
            group.seconds = self._seconds(group.waiting[0])

    def remaining(self) -> float:
        """Seconds that all waiting trials are expected to take, one after another."""
        return sum(group.seconds * len(group.waiting) for group in self._groups.values())

    def put(self, trial: Trial, *, singly: bool) -> None:
        """Give a trial back; it comes before the others of its row, and with ``singly`` it is taken with no other."""
        if singly:
            self._singly.add(trial.key)
        group = self._groups.setdefault((row(trial), images(trial)), _Group())
        group.waiting.appendleft(trial)
        group.seconds = self._seconds(trial)
        self._count += 1

    def take(self, held: Trial | None = None, together: Callable[[Trial], int] = lambda _: 1) -> list[Trial]:
        """The next trials for a worker whose last one was ``held``: one, or several of one row and length of stream.

        Args:
            held: the trial whose images the worker has.
            together: how many trials like the first may be taken, that one included.
        """
        longest = max(group.seconds for group in self._groups.values())
        equals = [place for place, group in self._groups.items() if group.seconds >= (1 - EQUAL) * longest]
        place = next((p for p in equals if held is not None and p[0][1] == held.model), equals[0])
        waiting = self._groups[place].waiting
        taken = [_remove(waiting, _at_hand(waiting, held))]
        most = 1 if taken[0].key in self._singly else together(taken[0])
        while waiting and len(taken) < most:
            index = _at_hand(waiting, taken[-1])
            if waiting[index].key in self._singly:
                break
            taken.append(_remove(waiting, index))
        if not waiting:
            del self._groups[place]
        self._count -= len(taken)
        return taken


def _at_hand(waiting: deque[Trial], held: Trial | None) -> int:
    """The index of the first trial with the images of ``held``; 0 where none has them."""
    if held is None:
        return 0
    looked = enumerate(islice(waiting, _LOOKED_AT))
    return next((index for index, trial in looked if trial.stream.shifts == held.stream.shifts), 0)


def _remove(waiting: deque[Trial], index: int) -> Trial:
    trial = waiting[index]
    del waiting[index]
    return trial
