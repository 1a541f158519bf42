"""mariodoebler/test-time-adaptation (ROID, Marsden, Döbler, Yang 2024, arXiv 2306.00650): its test data loaders.

Both generators are seeded anew before each part, so that shifts of equal size come in the same order. ``delta: 0`` is
its setting "correlated". Published: seeds 1 to 5; ``images`` is NUM_EX.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source
from tta_bench.protocols.published.chunks import balanced

_LEAST = 10  # images in a chunk


def parts(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """Each part shuffled, cut to ``images``, then sorted or chunked by label."""
    [delta] = config.delta
    for outline in outlines:
        yield part(source, outline, delta, config.images)


def part(source: Source, outline: Outline, delta: float | None, images: int | None) -> Part:
    """One part; see :func:`parts`."""
    pool, state, draws = source.pool(outline.shifts), source.random_state(), random.Random(source.seed)
    rows = list(range(len(pool.image)))
    draws.shuffle(rows)
    if images is not None:
        rows = draws.sample(rows, min(images, len(rows)))
    order = np.array(rows)
    label = pool.label[order]
    if delta == 0:
        order = order[np.argsort(label, kind="stable")]
    elif delta:
        order = order[balanced(state, label, 1 + int(label.max()), delta, _LEAST)]
    return pool.part(outline.name, outline.visit, order)
