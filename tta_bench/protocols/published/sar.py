"""SAR (Niu et al. 2023, arXiv 2302.12400): the order of torch's shuffling loader, made without torch.

It is the order where nothing else draws: in the official code the network's initialisation and EATA's Fisher loader
do, so that official methods do not share streams. Published: seed 2021, batches of 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source


def parts(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """Each part in the order of ``torch.randperm``, whose seeds the loaders draw one after another."""
    generator = source.random_state()
    for outline in outlines:
        pool = source.pool(outline.shifts)
        _seed_of(generator)  # of the loader's workers
        yield pool.part(outline.name, outline.visit, _permutation(len(pool.image), _seed_of(generator)))


def _seed_of(generator: np.random.RandomState) -> int:
    """What ``torch.empty((), dtype=torch.int64).random_()`` draws."""
    high, low = _words(generator, 2).tolist()
    return int((high * 2**32 + low) % 2**63)


def _permutation(size: int, seed: int) -> list[int]:
    """``torch.randperm(size)`` on the CPU by a generator of this seed."""
    words = _words(np.random.RandomState(seed % 2**32), size - 1)
    order = list(range(size))
    for i, step in enumerate((words % np.arange(size, 1, -1)).tolist()):
        order[i], order[i + step] = order[i + step], order[i]
    return order


def _words(generator: np.random.RandomState, number: int) -> np.ndarray:
    """(number,) int64 raw 32-bit outputs of the Mersenne Twister."""
    return generator.randint(0, 2**32, number, dtype=np.uint32).astype(np.int64)
