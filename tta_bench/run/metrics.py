"""Scores and labels to numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Graded(NamedTuple):
    """A batch's verdicts, still on the device: predicted class (B,), its probability (B,), all scores finite ()."""

    predicted: Tensor
    confidence: Tensor
    finite: Tensor


@torch.no_grad()
def grade(scores: Tensor, outputs: str) -> Graded:
    """Verdicts on scores (B, C), without waiting for the device.

    Args:
        scores: logits or probabilities, (B, C).
        outputs: "logits" or "probabilities": which of the two.
    """
    probabilities = scores.softmax(1) if outputs == "logits" else scores
    confidence, predicted = probabilities.max(1)
    return Graded(predicted, confidence, scores.isfinite().all())


def to_host(graded: list[Graded]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(predicted (N,) int32, confidence (N,) float32, finite (batches,) bool) of several batches; waits for the device."""
    predicted = torch.cat([g.predicted for g in graded]).cpu().numpy().astype(np.int32)
    confidence = torch.cat([g.confidence for g in graded]).cpu().numpy().astype(np.float32)
    return predicted, confidence, torch.stack([g.finite for g in graded]).cpu().numpy()


def after(correct: np.ndarray, images: int | None) -> dict[str, float]:
    """``error_after_pct``: the error over all but the first ``images`` of (N,); nothing where that is None."""
    return {} if images is None else {"error_after_pct": 100.0 * float((~correct[images:]).mean())}


def summary(correct: np.ndarray, confidence: np.ndarray) -> dict[str, float | int]:
    """The result columns of images (N,) that belong together."""
    return {
        "images": len(correct),
        "correct": int(correct.sum()),
        "error_pct": 100.0 * int((~correct).sum()) / len(correct),
        "confidence_mean": float(confidence.astype(np.float64).mean()),
    }
