"""Uncertainty of errors: intervals over images, spread over seeds, paired tests, ranks.

Two things vary. *Images*: another draw of test images would give another error; intervals are bootstrapped over image
identities, each with all its corruptions and seeds, and the same draws serve all methods, so that differences are paired.
*Seeds*: another order of the stream would give another error; that is the standard deviation over seeds. A test of two
methods adds the two variances. Works on arrays alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tta_bench.streams import derived_seed

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95  # of intervals; tests are at 1 − LEVEL
_AT_A_TIME = 4_000_000  # weights that are held: they and what they are made from take about 100 MB


def bootstrap(wrong: np.ndarray, draws: int = DRAWS, pool: str = "") -> np.ndarray:
    """Means of ``wrong`` under resampling of images.

    Args:
        wrong: (images, cells), each image's error in each cell, its mean over seeds.
        draws: how many.
        pool: name of the images, where they are not the clean ones under any corruption.

    Returns:
        (draws, cells) means, float64. The same number of images of a pool gives the same draws, so that tables are paired,
        too.
    """
    images, cells = wrong.shape
    rng = np.random.default_rng(derived_seed("bootstrap", images, *([pool] if pool else [])))
    values, means = wrong.astype(np.float32), np.empty((draws, cells))
    block = max(1, _AT_A_TIME // images)
    for first in range(0, draws, block):
        rows = min(block, draws - first)
        means[first : first + rows] = _weights(rng, rows, images) @ values
    return means / images


def _weights(rng: np.random.Generator, rows: int, images: int) -> np.ndarray:
    """(rows, images) float32: how often each image is in each draw."""
    chosen = rng.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
    return np.bincount(chosen.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float32)


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) percentiles over the first axis."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def pair_tests(draws: np.ndarray, by_seed: np.ndarray) -> np.ndarray:
    """Two-sided p-values of all pairs of methods, over images and seeds; not yet corrected.

    The variance of a difference is its variance over the bootstrap's draws plus its variance over seeds divided by their
    number (with one seed the second is unknown and left out); degrees of freedom after Welch and Satterthwaite, where only
    seeds are few.

    Args:
        draws: (draws, methods) bootstrapped errors.
        by_seed: (seeds, methods) errors.

    Returns:
        (methods, methods), 1 on the diagonal.
    """
    seeds, methods = by_seed.shape
    difference = by_seed.mean(0)[:, None] - by_seed.mean(0)[None, :]
    of_images = _variance_of_differences(draws)
    of_seeds = _variance_of_differences(by_seed) / seeds if seeds > 1 else np.zeros_like(of_images)
    variance = of_images + of_seeds
    p = np.ones((methods, methods))
    known = variance > 1e-12  # below: methods that agree on every image, or rounding
    freedom = np.full_like(variance, np.inf)
    if seeds > 1:
        few = of_seeds > 1e-12
        freedom[few] = (variance[few] ** 2) * (seeds - 1) / of_seeds[few] ** 2
    p[known] = 2 * stats.t.sf(np.abs(difference[known]) / np.sqrt(variance[known]), freedom[known])
    p[~known & (np.abs(difference) > 1e-9)] = 0.0
    return p


def _variance_of_differences(values: np.ndarray) -> np.ndarray:
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    own = np.diag(covariance)
    return np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0.0)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values of any shape, corrected for their number (Holm 1979); entries that are not a number do not count."""
    flat, adjusted = p.ravel(), np.full(p.size, np.nan)
    known = np.flatnonzero(~np.isnan(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    steps = flat[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.reshape(p.shape)


def upper(p: np.ndarray) -> np.ndarray:
    """``p`` (…, methods, methods) with each pair once: the rest is not a number."""
    kept = np.triu(np.ones(p.shape[-2:], dtype=bool), 1)
    return np.where(kept, p, np.nan)


def mirrored(p: np.ndarray) -> np.ndarray:
    """The opposite of :func:`upper`, 1 on the diagonal."""
    turned = np.where(np.isnan(p), np.swapaxes(p, -1, -2), p)
    return np.where(np.isnan(turned), 1.0, turned)


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over blocks (Friedman's test, Nemenyi's critical difference; Demšar 2006).

    Attributes:
        labels: methods, best first.
        ranks: (methods,) average rank, 1 is best.
        blocks: number of (source model, corruption) cells in which all of them have a result.
        p: of Friedman's test that all methods are equal.
        critical: difference below which two ranks do not differ significantly at 5 per cent.
        left_out: methods without a result in some cells.
    """

    labels: list[str]
    ranks: np.ndarray
    blocks: int
    p: float
    critical: float
    left_out: list[str]

    def cliques(self) -> Iterator[tuple[int, int]]:
        """Maximal runs [first, last] of two or more methods that do not differ significantly."""
        reach = -1
        for first in range(len(self.labels)):
            last = int(np.flatnonzero(self.ranks - self.ranks[first] < self.critical)[-1])
            if last > max(first, reach):
                reach = last
                yield first, last


def average_ranks(labels: list[str], errors: np.ndarray) -> Ranks | None:
    """Average ranks of methods.

    Args:
        labels: methods.
        errors: (blocks, methods), not a number where there is no result.

    Returns:
        None where fewer than three methods have a result in every block, or there are fewer than two blocks.
    """
    whole = ~np.isnan(errors).any(0)
    kept, blocks = errors[:, whole], len(errors)
    methods = kept.shape[1]
    if methods < 3 or blocks < 2:
        return None
    ranks = stats.rankdata(kept, axis=1).mean(0)
    # Nemenyi: the studentized range of infinitely many degrees of freedom, over √2
    factor = stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    critical = float(factor * np.sqrt(methods * (methods + 1) / (6 * blocks)))
    names = [label for label, keep in zip(labels, whole, strict=True) if keep]
    order = np.argsort(ranks, kind="stable")
    return Ranks([names[i] for i in order], ranks[order], blocks, _friedman(kept), critical,
                 [label for label, keep in zip(labels, whole, strict=True) if not keep])  # fmt: skip


def _friedman(errors: np.ndarray) -> float:
    """p-value; 1 where all methods have equal errors everywhere."""
    if (errors == errors[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*errors.T).pvalue)
