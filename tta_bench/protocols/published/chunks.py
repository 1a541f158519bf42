"""Labels in temporally correlated chunks by Dirichlet draws: two forms, which nearly all published protocols share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tta_bench.protocols.base import refusal

MAX_SLOTS = 100
_TRIES = 10_000
_LARGER = "use a larger delta, or leave variant out: the own order cannot fail"
_MORE = "use more images, or leave variant out: the own order cannot fail"


def by_class(label: np.ndarray, classes: int) -> list[np.ndarray]:
    """Of each of the first classes, the positions of its images (n,) in order."""
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(classes + 1))
    return [order[first:end] for first, end in itertools.pairwise(bounds)]


def cuts(proportions: np.ndarray, size: int | np.ndarray) -> np.ndarray:
    """(…, K - 1) where ``size`` images, a number or (…, 1), are cut by proportions (…, K)."""
    ends: np.ndarray = (np.cumsum(proportions, -1)[..., :-1] * size).astype(np.int64)
    return ends


def balanced(state: np.random.RandomState, label: np.ndarray, classes: int, delta: float, least: int) -> np.ndarray:
    """As many chunks as classes, each of ``least`` images or more, drawn until they are (NOTE, Gong et al. 2022).

    Args:
        state: draws; goes on where a try fails.
        label: (n,) class indices.
        classes: number of classes, and of chunks.
        delta: the Dirichlet concentration.
        least: images in a chunk.

    Returns:
        (n,) positions in order.

    Raises:
        UsageError: there are too few images, or the draws do not end.
    """
    if len(label) < least * classes:
        what = f"{classes} chunks of {least} images or more cannot be made of {len(label)} images"
        raise refusal("delta", what, _MORE)
    members = by_class(label, classes)
    for _ in range(_TRIES):
        pieces = _drawn(state, members, delta, len(label) / classes)
        sizes = sum(np.diff(ends, prepend=0, append=len(rows)) for rows, ends in pieces)
        if np.min(sizes) >= least:
            return np.concatenate(list(_by_chunk(state, pieces)))
    raise refusal("delta", f"no {classes} chunks of {least} images or more in {_TRIES} tries", _LARGER)


_Pieces = list[tuple[np.ndarray, np.ndarray]]  # of each class: its rows in order, and where they are cut


def _drawn(state: np.random.RandomState, members: list[np.ndarray], delta: float, full: float) -> _Pieces:
    """One try; chunks that have reached ``full`` images get no more."""
    sizes, pieces = np.zeros(len(members), dtype=np.int64), list[tuple[np.ndarray, np.ndarray]]()
    for of_class in members:
        rows = of_class.copy()
        state.shuffle(rows)
        p = state.dirichlet(np.repeat(delta, len(members))) * (sizes < full)
        ends = cuts(finite(p / p.sum() if p.sum() else p, delta), len(rows))
        sizes += np.diff(ends, prepend=0, append=len(rows))
        pieces.append((rows, ends))
    return pieces


def _by_chunk(state: np.random.RandomState, pieces: _Pieces) -> Iterator[np.ndarray]:
    split = [np.split(rows, ends) for rows, ends in pieces]
    for chunk in range(len(split)):
        order = list(range(len(split)))
        state.shuffle(order)
        yield from (split[k][chunk] for k in order)


def finite(proportions: np.ndarray, delta: float) -> np.ndarray:
    """The proportions, which sum to 1 along the last axis.

    Raises:
        UsageError: they do not, as a small concentration underflows.
    """
    if not np.isclose(proportions.sum(axis=-1), 1).all():
        raise refusal("delta", f"Dirichlet draws of concentration {delta:g} underflow", _LARGER)
    return proportions


def by_slot(
    generator: np.random.Generator | np.random.RandomState, members: list[np.ndarray], proportions: np.ndarray
) -> np.ndarray:
    """Slot after slot, in each a piece of every class, classes in an order drawn anew (RoTTA, Yuan et al. 2023).

    Args:
        generator: draws the orders of classes.
        members: of each of C classes, the positions of its images in order.
        proportions: (C, K) of each class in each of K slots.

    Returns:
        The positions of all members in order.
    """
    images = np.array([len(rows) for rows in members])[:, None]
    before = np.cumsum(images)[:, None] - images  # of each class in the concatenated members
    bounds = before + np.concatenate([0 * images, cuts(proportions, images), images], 1)
    first, size = bounds[:, :-1].T, np.diff(bounds).T  # (K, C), of each piece
    orders = np.stack([generator.permutation(len(members)) for _ in first])
    first, size = (np.take_along_axis(each, orders, 1).ravel() for each in (first, size))
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    return np.concatenate(members)[np.repeat(first, size) + within]
