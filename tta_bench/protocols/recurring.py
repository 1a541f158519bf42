"""Recurring: all shifts again and again, never reset (PeTTA, Hoang et al. 2024, arXiv 2311.18193).

One segment for each visit of each shift; a single one, ``stream``, with variant petta. With one shift it is several
epochs of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tta_bench.protocols.base import Outline, Source
from tta_bench.protocols.ordered import Ordered, OrderedConfig, each_shift
from tta_bench.protocols.published import rotta


class Recurring(Ordered):
    """All shifts again and again, never reset (PeTTA)."""

    name = "recurring"
    published = {"petta": rotta.parts}

    class Config(OrderedConfig):
        """The number of visits.

        Attributes:
            visits: how often the sequence of shifts is repeated.

        Variants:
            petta: PeTTA (Hoang et al. 2024, arXiv 2311.18193): RoTTA's order of the whole sequence, batches cut across
                shifts; needs delta. Published: delta 0.1 (CIFAR-100: 0.01), batches of 64, seed 2020, and its own order of
                corruptions.

        Example:
            {kind: recurring, visits: 20}
            {kind: recurring, variant: petta, delta: 0.1}
        """

        variants = ("petta",)
        deltas = {"petta": "needed"}
        visits: Annotated[int, Field(ge=1, le=32_767)] = 20  # their numbers are int16

    def outlines(self, source: Source) -> list[Outline]:
        return [outline for visit in range(self.config.visits) for outline in each_shift(source, visit)]
