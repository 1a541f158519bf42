"""Mixed: the images of all shifts in one random order (SAR, Niu et al. 2023, arXiv 2302.12400).

One segment, ``mixed``. With ``delta``, chunks of labels span all shifts.
"""

from __future__ import annotations

from tta_bench.protocols.base import Outline, Source
from tta_bench.protocols.ordered import Ordered, PublishedByMd
from tta_bench.protocols.published import md, sar, ttab


class Mixed(Ordered):
    """All shifts in one random order; never reset (SAR's mixed shifts)."""

    name = "mixed"
    published = {"md": md.parts, "sar": sar.parts, "ttab": ttab.shuffled}

    class Config(PublishedByMd):
        """The order of all images.

        Variants:
            md: "mixed_domains" of mariodoebler/test-time-adaptation (ROID, Marsden et al. 2024, arXiv 2306.00650); with
                delta its "mixed_domains_correlated". ``images`` counts the whole stream.
            sar: "mix_shifts" of SAR (Niu et al. 2023, arXiv 2302.12400); takes no delta.
            ttab: CrossMixture of TTAB (Zhao et al. 2023, arXiv 2306.03536); takes no delta.

        Example:
            {kind: mixed}
            {kind: mixed, variant: md, delta: 0.01}
        """

        variants = ("md", "sar", "ttab")
        deltas = {"md": "free"}

    def outlines(self, source: Source) -> list[Outline]:
        return [Outline("mixed", 0, range(len(source.shifts)))]
