"""Scores and labels to numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class Graded(NamedTuple):
    """A batch's verdicts: predicted class (B,) int32, its probability (B,) float32, whether all scores are finite."""

    predicted: np.ndarray
    confidence: np.ndarray
    finite: bool


def grade(scores: np.ndarray, outputs: str) -> Graded:
    """Verdicts on scores (B, C), float32.

    Args:
        scores: logits or probabilities.
        outputs: "logits" or "probabilities": which of the two.
    """
    given = torch.from_numpy(scores)
    confidence, predicted = (given.softmax(1) if outputs == "logits" else given).max(1)
    return Graded(predicted.numpy().astype(np.int32), confidence.numpy().copy(), bool(given.isfinite().all()))


def error_pct(correct: np.ndarray) -> float | None:
    """Share of (N,) verdicts that are wrong, per cent; None of none."""
    return 100.0 * int((~correct).sum()) / len(correct) if len(correct) else None


def summary(correct: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """The result columns of images (N,) that belong together."""
    return {
        "images": len(correct),
        "correct": int(correct.sum()),
        "error_pct": error_pct(correct),
        "confidence_mean": float(confidence.astype(np.float64).mean()),
    }


def after(correct: np.ndarray, place: np.ndarray, images: int | None) -> dict[str, Any]:
    """``error_after_pct``: the error over the images (N,) that stand after the first ``images`` of their segment.

    Args:
        correct: verdicts on images that belong together; a segment may have others between them.
        place: (N,) how many images of the segment stand before each.
        images: how many are left out; None: there is no such part, and nothing is said.
    """
    if images is None:
        return {}
    rest = correct[place >= images]
    return {"error_after_pct": 100.0 * float((~rest).mean()) if len(rest) else None}


def apart(correct: np.ndarray, adapted: np.ndarray) -> dict[str, Any]:
    """The images (N,) of batches that were adapted on, and the others, each with its number and error."""
    found: dict[str, Any] = {}
    for name, part in (("adapted", correct[adapted]), ("skipped", correct[~adapted])):
        found |= {f"images_{name}": len(part), f"error_{name}_pct": error_pct(part)}
    return found


def class_mean_error_pct(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur among (N,) labels of the share of their images that are wrong, per cent."""
    images, wrong = np.bincount(labels), np.bincount(labels[~correct], minlength=int(labels.max()) + 1)
    return 100.0 * float((wrong[images > 0] / images[images > 0]).mean())


def most_predicted_pct(predicted: np.ndarray) -> float | None:
    """Share of the class that is predicted most, per cent of (N,); None of none."""
    return 100.0 * int(np.bincount(predicted).max()) / len(predicted) if len(predicted) else None
