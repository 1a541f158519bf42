"""Losses of a batch between predictions, without labels: (B, C) logits to (B,)."""

from __future__ import annotations

from torch import Tensor


def soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    """−Σ softmax(target)·log softmax(logits); gradients flow through both."""
    return -(target_logits.softmax(1) * logits.log_softmax(1)).sum(1)


def symmetric_cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """The mean of both soft cross-entropies."""
    return 0.5 * (soft_cross_entropy(one, other) + soft_cross_entropy(other, one))


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """−Σ q·log(q/(1 − q) + 1e-5), where q are the probabilities, at most 0.99 (Marsden et al. 2024, arXiv 2306.00650)."""
    q = logits.softmax(1).clamp(0, 0.99)
    return -(q * (q / (1 - q) + 1e-5).log()).sum(1)
