"""Markov: shifts and classes are drawn by two Markov chains (UniTTA, Du et al. 2024, arXiv 2407.20080).

One segment, ``stream``. Published: correlation 1/number (i.i.d.), 0.85 of domains or 0.95 of classes (non-i.i.d.), 1
(continual); imbalance 1, or 5 of domains and 10 of classes; seed 425; state_samples 1000 for CIFAR-10, 100 for
CIFAR-100. Images repeat; where both chains keep their imbalance the stream ends once one state has been visited often
enough.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tta_bench.protocols.base import Part, Protocol, Source, refusal
from tta_bench.protocols.config import LONGEST, ProtocolConfig
from tta_bench.protocols.published.rotta import without_last_single

_Correlation = Annotated[float, Field(ge=0, le=1)]
_Imbalance = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Markov(Protocol):
    """Shifts and classes drawn by two Markov chains; never reset (UniTTA)."""

    name = "markov"

    class Config(ProtocolConfig):
        """The chains.

        Attributes:
            domain_correlation, class_correlation: probability of staying.
            domain_imbalance, class_imbalance: ratio of the most frequent to the least frequent.
            state_samples: visits of the most frequent pair of shift and class.

        Variants:
            unitta: UniTTA (Du et al. 2024, arXiv 2407.20080); the only one, and the default.

        Example:
            {kind: markov, domain_correlation: 0.85, domain_imbalance: 5, class_correlation: 0.95, class_imbalance: 10,
              state_samples: 100}
        """

        variants = ("unitta",)
        variant: str = "unitta"
        domain_correlation: _Correlation
        domain_imbalance: _Imbalance
        class_correlation: _Correlation
        class_imbalance: _Imbalance
        state_samples: Annotated[int, Field(ge=1, le=LONGEST)]

    def parts(self, source: Source) -> Iterator[Part]:
        if len(source.shifts) < 2 or source.classes < 2:
            raise refusal("kind", "markov needs two shifts and two classes", "add corruptions to the suite")
        queues = _queues(source)
        steps = list(_Walk(self.config, source, queues).steps())
        shift, image = np.array(steps).T
        yield without_last_single(Part("stream", 0, shift, image), source.batch_size)


def _queues(source: Source) -> list[list[int]]:
    """Images of each state, shift by shift and within class by class."""
    draws = random.Random(source.seed)
    queues = [np.flatnonzero(labels == k).tolist() for labels in source.labels for k in range(source.classes)]
    for queue in queues:
        draws.shuffle(queue)
    return queues


@dataclass(frozen=True)
class _Chain:
    """A chain over shifts or over classes.

    Attributes:
        consistent: whether transitions alone keep the imbalance, so that no limits are needed.
        shares: (n,) of each value in the stream.
        transitions: (n, n) probabilities.
        moves_on: whether it never comes back (correlation 1).
    """

    consistent: bool
    shares: np.ndarray
    transitions: np.ndarray
    moves_on: bool

    @classmethod
    def of(cls, n: int, correlation: float, imbalance: float) -> _Chain:
        consistent = (1 - correlation) * imbalance <= 1 - 1 / n and correlation < 1
        base = 1 / imbalance ** (1 / (n - 1))
        shares = base ** np.arange(n)
        stay = np.full(n, float(correlation))
        if consistent:
            least = 1 - imbalance * (1 - correlation)
            stay = 1 - np.power(base, np.arange(n - 1, -1, -1)) * (1 - least)
        transitions = np.repeat(((1 - stay) / (n - 1))[:, None], n, axis=1)
        np.fill_diagonal(transitions, stay)
        return cls(consistent, shares / shares.sum(), transitions, correlation == 1)


class _Walk:
    """States are x = shift · classes + class. A row of the joint transitions is made when it is first drawn from."""

    def __init__(self, config: Any, source: Source, queues: list[list[int]]):
        self._queues, self._state = queues, source.random_state()
        self._classes, self._samples = source.classes, config.state_samples
        self._domain = _Chain.of(len(source.shifts), config.domain_correlation, config.domain_imbalance)
        self._class = _Chain.of(source.classes, config.class_correlation, config.class_imbalance)
        shares = np.outer(self._domain.shares, self._class.shares)
        self._limits = np.round(self._samples / shares[0, 0] * shares)
        self._taken = np.zeros(shares.shape, dtype=np.int64)
        self._valid = np.array([bool(queue) for queue in queues])
        self._diagonal = np.outer(self._domain.transitions.diagonal(), self._class.transitions.diagonal()).ravel()
        self._dead_columns = np.zeros(len(queues), dtype=bool)
        self._dead_rows = np.zeros(len(queues), dtype=bool)
        self._rows: dict[int, np.ndarray] = {}
        self._drawn: dict[int, np.ndarray] = {}
        self._used = [0] * len(queues)

    def steps(self) -> Iterator[tuple[int, int]]:
        """(shift, image) one after another.

        Raises:
            UsageError: a state cannot be left, or has no images.
        """
        x = 0
        if not self._queues[x]:
            raise refusal("kind", "markov starts at class 0 of the first shift, which has no images", "use more images")
        while True:
            shift, label = divmod(x, self._classes)
            queue = self._queues[x]
            yield shift, queue[self._taken[shift, label] % len(queue)]
            self._taken[shift, label] += 1
            if self._stops(shift, label):
                return
            x = self._next(x)

    def _stops(self, shift: int, label: int) -> bool:
        """Whether the stream ends; what has reached its limit is closed."""
        taken, limits, states = self._taken, self._limits, np.arange(len(self._queues)).reshape(self._taken.shape)
        if self._domain.consistent and self._class.consistent:
            return bool(taken[shift, label] >= self._samples)
        if self._class.consistent:
            reached, closed = taken[shift].sum() >= limits[shift].sum(), states[shift]
        elif self._domain.consistent:
            reached, closed = taken[:, label].sum() >= limits[:, label].sum(), states[:, label]
        else:
            reached, closed = taken[shift, label] >= limits[shift, label], states[shift, label]
        if not reached:
            return False
        self._valid[closed], self._diagonal[closed] = False, 0
        dead = self._dead_rows if self._domain.consistent or self._class.consistent else self._dead_columns
        dead[closed] = True
        return not (self._diagonal.any() or self._valid.any())

    def _next(self, x: int) -> int:
        while True:
            if self._used[x] % self._samples == 0:
                self._drawn[x], self._used[x] = self._draw(x), 0
            y = int(self._drawn[x][self._used[x]])
            self._used[x] += 1
            if self._valid[y]:
                return y

    def _draw(self, x: int) -> np.ndarray:
        """The next states after ``x``: as many as ``state_samples``, or a single one where ``x`` is closed."""
        row = self._row(x)
        if not row.sum() and not self._valid[x]:
            return self._state.choice(self._elsewhere(x), size=1)
        if not row[self._valid].any():
            shift, label = divmod(x, self._classes)
            what = f"no state with images follows class {label} of shift number {shift}"
            raise refusal("kind", f"markov cannot go on: {what}", "use more images, or other correlations")
        if row.sum() != 1:
            row /= row.sum()
        return self._state.choice(len(row), size=self._samples, p=row)

    def _row(self, x: int) -> np.ndarray:
        """(states,) weights of the states that follow ``x``, where they are stored."""
        if x not in self._rows:
            shift, label = divmod(x, self._classes)
            self._rows[x] = np.outer(self._domain.transitions[shift], self._class.transitions[label]).ravel()
        self._rows[x][self._dead_columns | self._dead_rows[x]] = 0
        return self._rows[x]

    def _elsewhere(self, x: int) -> np.ndarray:
        """The valid states to go on from a closed one; chains that never come back go to the next value."""
        valid, (shift, label) = np.flatnonzero(self._valid), divmod(x, self._classes)
        if self._domain.moves_on:
            valid = valid[valid // self._classes == shift + 1]
        if self._class.moves_on:
            valid = valid[valid % self._classes == label + 1]
        if not len(valid):
            raise refusal("kind", "markov cannot go on: no shift or class is left to move to", "lower a correlation")
        return valid
