"""RoTTA's "practical TTA" (Yuan et al. 2023, arXiv 2303.13899), and what was built on it.

All parts make one, ``stream``: batches are cut across shifts, and a last batch of one image is dropped. Published:
delta 0.1, batches of 64. The same rule with visits is PeTTA's recurring stream (Hoang et al. 2024, arXiv 2311.18193);
with imbalanced classes GLI-TTA of TRIBE (Su et al. 2024, arXiv 2309.14949).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.protocols.base import Outline, Part, Source, joined
from tta_bench.protocols.published.chunks import MAX_SLOTS, by_class, by_slot, finite

_Thin = Callable[[np.random.RandomState, list[np.ndarray]], list[np.ndarray]]


def parts(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """The practical stream; PeTTA's where outlines come back with higher visits."""
    yield _stream(config, source, outlines, lambda state, members: members)


def long_tailed(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """GLI-TTA: classes get fewer images from first to last, or in an order drawn anew for each shift."""

    def thin(state: np.random.RandomState, members: list[np.ndarray]) -> list[np.ndarray]:
        most = 1000 if len(members[0]) == 980 else len(members[0])  # as the published code has it
        steps = max(len(members) - 1, 1)
        sizes = [int(most * (1.0 / config.imbalance_factor) ** (k / steps)) for k in range(len(members))]
        if config.class_ratio == "random":
            state.shuffle(sizes)
        return [_some(state, rows, size) for rows, size in zip(members, sizes, strict=True)]

    yield _stream(config, source, outlines, thin)


def _some(state: np.random.RandomState, rows: np.ndarray, size: int) -> np.ndarray:
    order = np.arange(len(rows))
    state.shuffle(order)
    return rows[order[:size]]


def _stream(config: Any, source: Source, outlines: Sequence[Outline], thin: _Thin) -> Part:
    [delta], state = config.delta, source.random_state()
    classes = len(np.unique(np.concatenate(source.all_labels)))  # of those present: labels from there on are lost
    ordered = []
    for outline in outlines:
        pool = source.pool(outline.shifts)
        members = thin(state, by_class(pool.label, classes))
        proportions = finite(state.dirichlet(np.repeat(delta, min(classes, MAX_SLOTS)), classes), delta)
        ordered.append(pool.part(outline.name, outline.visit, by_slot(state, members, proportions)))
    return without_last_single(joined(ordered), source.batch_size)


def without_last_single(part: Part, batch_size: int) -> Part:
    """A part without a last batch of one image, which BatchNorm could not take; batches of 1 are left alone."""
    size = len(part.image)
    return part[: size - 1] if batch_size > 1 and size % batch_size == 1 else part
