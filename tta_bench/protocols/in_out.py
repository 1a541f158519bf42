"""In and out: clean images among those of each shift (TTAB's InOutMixture, Zhao et al. 2023, arXiv 2306.03536).

One segment, ``stream``. ``ratio`` is taken of both sides; with equal sizes the first shift's images are the same ones
clean and shifted. The shipped code continues from the images that it kept, so that the source's part shrinks from
shift to shift.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from tta_bench.protocols.base import Part, Protocol, Source, joined, refusal
from tta_bench.protocols.config import ProtocolConfig


class InOut(Protocol):
    """Clean images mixed with one shift after another; never reset (TTAB)."""

    name = "in_out"

    class Config(ProtocolConfig):
        """The mixture.

        Attributes:
            source: id of the shift to mix in.
            ratio: share of the images of either side.

        Variants:
            ttab: InOutMixture of TTAB (Zhao et al. 2023, arXiv 2306.03536); the only one, and the default.

        Example:
            {kind: in_out, source: clean, ratio: 0.5}
        """

        variants = ("ttab",)
        variant: str = "ttab"
        source: str = "clean"
        ratio: Annotated[float, Field(gt=0, le=1)] = 0.5

    def parts(self, source: Source) -> Iterator[Part]:
        ids = [shift.id for shift in source.shifts]
        if self.config.source not in ids:
            raise refusal("source", f"there is no shift {self.config.source!r}", f"the shifts are: {', '.join(ids)}")
        if len(ids) < 2:
            raise refusal("source", "there is no shift beside it", "add corruptions to the suite")
        yield joined(list(self._mixtures(source, ids.index(self.config.source))))

    def _mixtures(self, source: Source, clean: int) -> Iterator[Part]:
        current: Sequence[int] = range(len(source.labels[clean]))
        for number, labels in enumerate(source.labels):
            if number != clean:
                current = self._sample(current, source.seed)
                other = self._sample(range(len(labels)), source.seed)
                mixture = [(clean, i) for i in current] + [(number, i) for i in other]
                np.random.default_rng(source.seed).shuffle(mixture)
                shift, image = np.array(mixture, dtype=np.int64).reshape(-1, 2).T
                yield Part("", 0, shift, image)

    def _sample(self, rows: Sequence[int], seed: int) -> list[int]:
        return sorted(random.Random(seed).sample(rows, int(self.config.ratio * len(rows))))
