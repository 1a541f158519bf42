"""Feature statistics and the alignment loss of MGG (arXiv 2412.16901, section 3.2), which are those of FOA's fitness.

Features of a network with a class token: the token after each block, through the next norm layer with its present
weights (the last one through the final norm). Of any other network, which the papers do not treat: each stage's output,
averaged over positions; that is this project's extension.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tta_bench.methods.functional import softmax_entropy
from tta_bench.models import SourceModel

NOMINAL_BATCH = 64  # the published loss divides by it, whatever the batch is


def logits_and_features(model: SourceModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and features (B, D) of one forward pass; D sums the widths of all blocks or stages."""
    if model.has_class_token:
        return model.normed_tokens(x, following_norms(model))
    logits, outputs = model.stage_features(x)
    return logits, torch.cat(outputs, 1)


def following_norms(model: SourceModel) -> list[nn.Module]:
    """The first norm layer after each block, in the order in which the network names its modules."""
    modules = list(model.net.modules())
    starts = [modules.index(block) for block in model.stages()]
    last = list(model.stages()[-1].modules())[-1]
    following = [*starts[1:], modules.index(last) + 1]
    return [next(m for m in modules[start:] if model.norm_kind(m)) for start in following]


def batch_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over the batch: (B, D) -> (D,), (D,); not a number at batch 1."""
    variance, mean = torch.var_mean(features, 0)
    # the root's slope is infinite at 0, where a constant image or a channel that never fires lies; there it counts as 0
    return mean, variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()


@torch.no_grad()
def source_statistics(model: SourceModel, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over all images of ``batches``, in one pass: (D,), (D,)."""
    count, mean, squares, dtype = 0, torch.tensor(0.0), torch.tensor(0.0), torch.float32
    for x in batches:  # merged as Chan, Golub and LeVeque (1983) do, in double precision
        features = logits_and_features(model, x)[1]
        dtype, features = features.dtype, features.double()
        size, centre = len(features), features.mean(0)
        difference, whole = centre - mean.to(centre), count + len(features)
        squares = squares.to(centre) + (features - centre).square().sum(0)
        squares = squares + difference.square() * (count * size / whole)
        mean, count = mean.to(centre) + difference * (size / whole), whole
    return mean.to(dtype), (squares / (count - 1)).sqrt().to(dtype)


def distance(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(Σ(σ_b − σ_S)² + Σ(μ_b − μ_S)²)/64, over all D features (B, D)."""
    now_mean, now_std = batch_statistics(features)
    return ((now_std - std).square().sum() + (now_mean - mean).square().sum()) / NOMINAL_BATCH


def loss(logits: Tensor, features: Tensor, statistics: tuple[Tensor, Tensor], weight: float) -> Tensor:
    """The mean entropy of a batch plus ``weight`` times the distance of its features from ``statistics``.

    Args:
        logits: (B, C), at least two rows.
        features: (B, D).
        statistics: the source's mean and standard deviation, each (D,).
        weight: λ.
    """
    return softmax_entropy(logits).mean() + weight * distance(features, *statistics)


def objective(model: SourceModel, x: Tensor, statistics: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of images (B, 3, H, W) in [0, 1], at least two, and the :func:`loss` of one forward pass."""
    logits, features = logits_and_features(model, x)
    return logits, loss(logits, features, statistics, weight)
