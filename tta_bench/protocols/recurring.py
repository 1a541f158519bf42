"""Recurring: all shifts again and again, never reset (PeTTA, Hoang et al. 2024, arXiv 2311.18193).

With one shift it is several epochs of it. Variant ``petta``: RoTTA's order of the whole sequence, batches cut across
shifts; published with delta 0.1 (CIFAR-100: 0.01), batches of 64, seed 2020, and its own order of corruptions.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tta_bench.protocols.base import Outline, Source
from tta_bench.protocols.ordered import Ordered, OrderedConfig, each_shift
from tta_bench.protocols.published import rotta


class Recurring(Ordered):
    """One segment for each visit of each shift; a single one, ``stream``, with variant petta."""

    name = "recurring"
    published = {"petta": rotta.parts}

    class Config(OrderedConfig):
        """Attributes: visits: how often the sequence is gone through."""

        variants = ("petta",)
        deltas = {"petta": "needed"}
        visits: Annotated[int, Field(ge=1)] = 20

    def outlines(self, source: Source) -> list[Outline]:
        return [outline for visit in range(self.config.visits) for outline in each_shift(source, visit)]
