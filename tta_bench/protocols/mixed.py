"""Mixed: the images of all shifts in one random order (SAR, Niu et al. 2023, arXiv 2302.12400, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.protocols.base import Part, Protocol, Source


class Mixed(Protocol):
    """One segment, whose batches mix shifts; never reset."""

    name = "mixed"

    def parts(self, source: Source) -> Iterator[Part]:
        yield source.shuffled("mixed", 0, range(len(source.shifts)))
