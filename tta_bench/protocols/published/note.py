"""NOTE (Gong et al. 2022, arXiv 2208.05117): temporally correlated test streams, one process a shift.

Published: delta 0.1, batches of 64. Without ``delta`` images are taken out at random. What is left of a whole batch at
the end is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source, refusal
from tta_bench.protocols.published.chunks import balanced

_LEAST = 10  # images in a chunk


def parts(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """Each part in chunks by label, or at random; whole batches alone."""
    [delta] = config.delta
    for outline in outlines:
        pool, state = source.pool(outline.shifts), source.random_state()
        size = len(pool.label)
        if size < source.batch_size:
            what = f"note drops short batches, and {outline.name} has only {size} images"
            raise refusal("variant", what, "use more images or smaller batches")
        order = balanced(state, pool.label, source.classes, delta, _LEAST) if delta else _taken_out(state, size)
        yield pool.part(outline.name, outline.visit, order[: size - size % source.batch_size])


def _taken_out(state: np.random.RandomState, size: int) -> list[int]:
    rest = list(range(size))
    return [rest.pop(state.randint(len(rest))) for _ in range(size)]
