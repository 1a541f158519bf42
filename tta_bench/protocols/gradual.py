"""Gradual: each corruption becomes stronger and weaker again (CoTTA, Wang et al. 2022, arXiv 2203.13591).

One segment for each corruption and listed severity. One stream has all severities of the suite.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from pydantic import Field

from tta_bench.protocols.base import Outline, Source, refusal
from tta_bench.protocols.ordered import Ordered, PublishedByMd
from tta_bench.protocols.published import md

_HINT = "list severities from 1 to 5, and leave clean out of the corruptions"


class Gradual(Ordered):
    """Each corruption through severities 1 to 5 and back, in one stream; never reset."""

    name = "gradual"
    by_severity = False
    published = {"md": md.parts}

    class Config(PublishedByMd):
        """The severities.

        Attributes:
            severities: in the order in which each corruption goes through them; the suite's ``severities`` must hold them.

        Variants:
            md: "gradual" of mariodoebler/test-time-adaptation (ROID, Marsden et al. 2024, arXiv 2306.00650): both visits
                of a severity come in the same order.

        Example:
            {kind: gradual}
            {kind: gradual, variant: md}
        """

        variants = ("md",)
        deltas = {"md": "free"}
        severities: Annotated[list[int], Field(min_length=1)] = [1, 2, 3, 4, 5, 4, 3, 2, 1]

        def shift_severities(self, given: list[int]) -> list[int]:
            """The given ones where they include those listed, else those listed."""
            listed = set(self.severities)
            return given if listed <= set(given) or not listed <= set(range(1, 6)) else sorted(listed)

    def outlines(self, source: Source) -> list[Outline]:
        ids = {shift.id: number for number, shift in enumerate(source.shifts)}
        visits, outlines = Counter[str](), list[Outline]()
        for corruption in dict.fromkeys(id.rpartition("-")[0] or id for id in ids):
            for severity in self.config.severities:
                name = f"{corruption}-{severity}"
                if name not in ids:
                    raise refusal("severities", f"there is no shift {name}", _HINT)
                outlines.append(Outline(name, visits[name], [ids[name]]))
                visits[name] += 1
        return outlines
