"""Mixed: the images of all shifts in one random order (SAR, Niu et al. 2023, arXiv 2302.12400, section 4.2).

Variants: ``md`` (mariodoebler/test-time-adaptation's "mixed_domains"; ``images`` counts the whole stream), ``sar``
(its "mix_shifts"), ``ttab`` (its CrossMixture, Zhao et al. 2023, arXiv 2306.03536). With ``delta``, chunks of labels
span all shifts.
"""

from __future__ import annotations

from tta_bench.protocols.base import Outline, Source
from tta_bench.protocols.ordered import Ordered, PublishedByMd
from tta_bench.protocols.published import md, sar, ttab


class Mixed(Ordered):
    """One segment, whose batches mix shifts; never reset."""

    name = "mixed"
    published = {"md": md.parts, "sar": sar.parts, "ttab": ttab.shuffled}

    class Config(PublishedByMd):
        variants = ("md", "sar", "ttab")
        deltas = {"md": "free"}

    def outlines(self, source: Source) -> list[Outline]:
        return [Outline("mixed", 0, range(len(source.shifts)))]
