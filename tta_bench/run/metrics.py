"""Metrics computed from scores and labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class BatchVerdicts(NamedTuple):
    """Verdicts on a batch.

    Attributes:
        predicted: predicted class (B,) int32; −C for an image that counts as a random answer among C classes.
        confidence: its probability (B,) float32.
        finite: whether all scores are finite.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    finite: bool


def grade(scores: np.ndarray, outputs: str) -> BatchVerdicts:
    """Verdicts on scores (B, C), float32.

    Args:
        scores: logits or probabilities.
        outputs: "logits" or "probabilities".
    """
    given = torch.from_numpy(scores)
    confidence, predicted = (given.softmax(1) if outputs == "logits" else given).max(1)
    return BatchVerdicts(predicted.numpy().astype(np.int32), confidence.numpy().copy(), bool(given.isfinite().all()))


def chance(images: int, classes: int) -> BatchVerdicts:
    """Verdicts on images that no network was shown: random answers."""
    return BatchVerdicts(
        np.full(images, -classes, dtype=np.int32), np.full(images, 1 / classes, dtype=np.float32), True
    )


def expected(predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Expected correctness (N,) float64 of verdicts (N,): 1 or 0, and 1/C of a random answer."""
    return np.where(predicted < 0, -1.0 / np.minimum(predicted, -1), correct)


def error_pct(correct: np.ndarray) -> float | None:
    """Error over (N,) expected verdicts, per cent; None if N is 0."""
    return 100.0 * float(len(correct) - correct.sum()) / len(correct) if len(correct) else None


def summary(correct: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Result columns over a group of images (N,)."""
    return {
        "images": len(correct),
        "correct": int((correct == 1).sum()),
        "error_pct": error_pct(correct),
        "confidence_mean": float(confidence.astype(np.float64).mean()),
    }


def after(correct: np.ndarray, order: np.ndarray, images: int | None) -> dict[str, Any]:
    """``error_after_pct``: error without the first ``images`` images of the segment.

    Args:
        correct: (N,) expected verdicts on a group of images, which need not be adjacent in the segment.
        order: (N,) position of each image in the segment.
        images: number of images to leave out; None for no such column.
    """
    if images is None:
        return {}
    rest = correct[order >= images]
    return {"error_after_pct": 100.0 * float((1 - rest).mean()) if len(rest) else None}


def by_adaptation(correct: np.ndarray, adapted: np.ndarray) -> dict[str, Any]:
    """Number and error of images (N,) in batches that were adapted on, and in skipped ones."""
    columns: dict[str, Any] = {}
    for name, part in (("adapted", correct[adapted]), ("skipped", correct[~adapted])):
        columns |= {f"images_{name}": len(part), f"error_{name}_pct": error_pct(part)}
    return columns


def class_mean_error_pct(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the per-class errors over the classes among (N,) labels, per cent."""
    images, wrong = np.bincount(labels), np.bincount(labels, weights=1 - correct)
    return 100.0 * float((wrong[images > 0] / images[images > 0]).mean())


def most_predicted_pct(predicted: np.ndarray) -> float | None:
    """Share of the most predicted class among (N,) predictions, per cent; random answers are left out, None if all are."""
    predicted = predicted[predicted >= 0]
    return 100.0 * int(np.bincount(predicted).max()) / len(predicted) if len(predicted) else None
