"""Affinities between the images of a batch, from their features: (n, D) rows of length 1 -> (n, n)."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**24  # numbers of the n×n×D difference that exist at a time: 64 MiB in float32, 128 MiB in float64


def nearest_neighbours(features: Tensor, knn: int) -> Tensor:
    """K_ij = 1 where j is one of the ``knn`` nearest of row i, itself left out; not symmetric.

    The first in order of distance is left out, the row itself; of equal rows it is the one with the lowest index.
    """
    order = distances(features).argsort(dim=1, stable=True)
    return features.new_zeros(order.shape).scatter_(1, order[:, 1 : knn + 1], 1.0)


def gaussian(features: Tensor, knn: int) -> Tensor:
    """K_ij = exp(−½·(d_ij/σ)²), where σ is the mean distance to the ``knn``-th nearest row, itself counted.

    Where σ is 0, for one row or equal rows, all affinities between equal rows are 1.
    """
    apart = distances(features)
    nearest = min(knn, len(features)) - 1
    sigma = apart.sort(dim=1).values[:, nearest].mean().clamp(min=torch.finfo(apart.dtype).tiny)
    return (-0.5 * (apart / sigma).square()).exp()


def inner_products(features: Tensor, knn: int) -> Tensor:
    """K = f·fᵀ; ``knn`` has no effect."""
    return features @ features.T


def distances(features: Tensor) -> Tensor:
    """‖f_i − f_j‖₂ of the explicit difference, (n, n).

    The Gram matrix would be quicker, but is off by 1e-8 in float64, and its diagonal is not 0. No more than
    :data:`_CHUNK` numbers of the difference exist at a time, or the n·D of one row.
    """
    rows = max(1, _CHUNK // max(1, features.numel()))
    return torch.cat([(part[:, None] - features).norm(dim=2) for part in features.split(rows)])
