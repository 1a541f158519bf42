"""TTAB (Zhao et al. 2023, arXiv 2306.03536): HomogeneousNoMixture, HeterogeneousNoMixture, CrossMixture.

Without ``delta`` a fresh generator shuffles each part, so that equal sizes come in the same order; with it
(Heterogeneous) labels come in chunks of least 5. The shipped code leaves the latter unseeded, and has episodes as
``reset: batch``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source, joined
from tta_bench.protocols.published.chunks import balanced

_LEAST = 5  # images in a chunk


def shuffled(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """Each part shuffled; CrossMixture where one part has all shifts."""
    for outline in outlines:
        pool = source.pool(outline.shifts)
        rows = list(range(len(pool.image)))
        np.random.default_rng(source.seed).shuffle(rows)
        yield pool.part(outline.name, outline.visit, rows)


def no_mixture(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """One part ``stream``, whose batches are cut across shifts."""
    [delta] = config.delta
    if delta is None:
        yield joined(list(shuffled(config, source, outlines)))
        return
    state, pools = source.random_state(), [source.pool(outline.shifts) for outline in outlines]
    orders = [balanced(state, pool.label, source.classes, delta, _LEAST) for pool in pools]
    yield joined([p.part(o.name, o.visit, order) for p, o, order in zip(pools, outlines, orders, strict=True)])
