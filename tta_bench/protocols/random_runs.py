"""Random runs: shifts come and go for a random time (CDC of DPCore, Zhang et al. 2024, arXiv 2406.10737).

Each shift's images are a queue of batches, and runs take from the queues. One segment for each longest run of one shift.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tta_bench.protocols.base import Part, Protocol, Source
from tta_bench.protocols.config import ONE_OR_MORE, Conflict, ProtocolConfig
from tta_bench.protocols.published.chunks import cuts, finite

_Run = tuple[int, int]  # shift, number of batches


class RandomRuns(Protocol):
    """Shifts come and go for random durations; never reset (CDC of DPCore)."""

    name = "random_runs"

    class Config(ProtocolConfig):
        """How long runs are.

        Attributes:
            delta: Dirichlet concentration of how a shift's batches are spread over slots; above 0. Small is uneven.
            slots: rounds through all shifts.
            distribution: of variant dpcore, "dirichlet", or "multinomial": any shift, for any number of batches left.

        Variants:
            dpcore: CDC of DPCore (Zhang et al. 2024, arXiv 2406.10737). Published: seed 1, batches of 64 of 5,000 images,
                15 shifts; with three slots a shift comes at most three times.

        Example:
            {kind: random_runs, delta: 1.0, slots: 3}
            {kind: random_runs, variant: dpcore}
        """

        variants = ("dpcore",)
        delta: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], *ONE_OR_MORE] = (1.0,)
        slots: Annotated[int, Field(ge=1, le=1_000_000)] = 3
        distribution: Literal["dirichlet", "multinomial"] = "dirichlet"

        def conflicts(self) -> Iterator[Conflict]:
            yield from super().conflicts()
            if "distribution" in self.model_fields_set and self.variant != "dpcore":
                yield "distribution", "only variant dpcore has it", "write variant: dpcore, or leave it out"

    def parts(self, source: Source) -> Iterator[Part]:
        shifts = range(len(source.shifts))
        if self.config.variant == "dpcore":
            queues = [source.pool([number]).part("", 0, slice(None)) for number in shifts]
            runs = self._published(source)
        else:
            queues = [source.shuffled(shift.id, 0, [number]) for number, shift in enumerate(source.shifts)]
            batches = [-(-len(labels) // source.batch_size) for labels in source.labels]
            runs = self._by_slot(source.rng("runs"), batches)
        return _taken(source, queues, runs)

    def _published(self, source: Source) -> Iterator[_Run]:
        state = source.random_state()
        batches = [len(source.labels[0]) // source.batch_size + 1] * len(source.shifts)  # the first shift's, for all
        return (
            _multinomial(state, batches) if self.config.distribution == "multinomial" else self._by_slot(state, batches)
        )

    def _by_slot(self, generator: np.random.Generator | np.random.RandomState, batches: list[int]) -> Iterator[_Run]:
        [delta] = self.config.delta
        spread = finite(generator.dirichlet(np.repeat(delta, self.config.slots), len(batches)), delta)
        runs = [np.diff(cuts(p, size), prepend=0, append=size) for p, size in zip(spread, batches, strict=True)]
        for slot in range(self.config.slots):
            for number in generator.permutation(len(batches)):
                yield int(number), int(runs[number][slot])


def _multinomial(state: np.random.RandomState, batches: list[int]) -> Iterator[_Run]:
    left = dict(enumerate(batches))
    while left:
        number = int(state.choice(list(left), 1)[0])
        length = int(state.choice(list(range(1, left[number] + 1))))
        yield number, length
        left[number] -= length
        if not left[number]:
            del left[number]


def _taken(source: Source, queues: list[Part], runs: Iterator[_Run]) -> Iterator[Part]:
    """The longest runs of one shift; where its images have run out, a run is empty and vanishes."""
    taken, visits, order = [0] * len(queues), Counter[str](), list[tuple[int, int, int]]()
    for number, batches in runs:
        first, last = taken[number], min(taken[number] + batches * source.batch_size, len(queues[number].image))
        taken[number] = last
        order += [(number, first, last)] if last > first else []
    for number, group in itertools.groupby(order, key=lambda run: run[0]):
        stretches, name = list(group), source.shifts[number].id
        part = queues[number][stretches[0][1] : stretches[-1][2]]
        yield Part(name, visits[name], part.shift, part.image)
        visits[name] += 1
