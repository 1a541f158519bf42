"""Metrics computed from scores and labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

BINS = 15  # of confidence, equally wide, for the expected calibration error (Guo et al. 2017)
FLOOR = 1e-12  # a label's probability is at least this in its negative log-likelihood: 27.6 nats at most
_SUM = 1e-3  # how far the sum of probabilities may be from 1
# Inner borders of the bins, rounded as confidences are: one of k/15 lies in the bin that ends there.
_BORDERS = (np.arange(1, BINS) / BINS).astype(np.float32)


class BatchVerdicts(NamedTuple):
    """Verdicts on a batch.

    Attributes:
        predicted: predicted class (B,) int32; −C for an image that counts as a random answer among C classes.
        correct: whether that is the label (B,) bool.
        confidence: the predicted class's probability (B,) float32.
        nll: negative log-likelihood (B,) float32: −log of the label's probability, nats.
        finite: whether all scores are finite.
    """

    predicted: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    finite: bool


class WrongOutputs(ValueError):
    """Scores are not of the kind that the method declares: their confidence and calibration would be wrong."""


def grade(scores: np.ndarray, labels: np.ndarray, outputs: str) -> BatchVerdicts:
    """Verdicts on scores (B, C), float32.

    Args:
        scores: logits or probabilities.
        labels: (B,) int64.
        outputs: "logits" or "probabilities".

    Raises:
        WrongOutputs: they are of the other kind.
    """
    given, truth = torch.from_numpy(scores), torch.from_numpy(labels)
    finite = bool(given.sum().isfinite() or given.isfinite().all())  # a sum is quick, and may overflow
    if finite and len(given):
        _check_kind(given, outputs)
    confidence, predicted = (given.softmax(1) if outputs == "logits" else given).max(1)
    classes = predicted.numpy().astype(np.int32)
    return BatchVerdicts(classes, classes == labels, confidence.numpy().copy(), _nll(given, truth, outputs), finite)


def _check_kind(scores: torch.Tensor, outputs: str) -> None:
    distributions = bool(scores.min() >= 0 and ((scores.sum(1) - 1).abs() < _SUM).all())
    if outputs == "probabilities" and not distributions:
        sums = scores.sum(1)
        what = (
            f"the scores of an image sum to {sums[(sums - 1).abs().argmax()]:.3g}, and the lowest is {scores.min():.3g}"
        )
        raise WrongOutputs(f"outputs is 'probabilities', but {what}: declare 'logits', or return probabilities")
    if outputs == "logits" and distributions and len(scores) > 1:  # one image's logits may be like that by chance
        raise WrongOutputs("outputs is 'logits', but all scores are probabilities: declare outputs = 'probabilities'")


def _nll(scores: torch.Tensor, labels: torch.Tensor, outputs: str) -> np.ndarray:
    """−log of the labels' probabilities (B,) float32, these clipped to ``FLOOR`` and 1; computed in float64."""
    scores = scores.double()
    of_labels = scores.gather(1, labels[:, None])[:, 0]
    if outputs == "logits":
        nll = (scores.logsumexp(1) - of_labels).clamp(0.0, -math.log(FLOOR))
    else:
        nll = of_labels.clamp(FLOOR, 1.0).log().abs()  # by rounding a probability may be above 1
    return nll.float().numpy()


def chance(images: int, classes: int) -> BatchVerdicts:
    """Verdicts on images that no network was shown: random answers."""
    predicted, wrong = np.full(images, -classes, dtype=np.int32), np.zeros(images, dtype=bool)
    confidence, nll = (np.full(images, value, dtype=np.float32) for value in (1 / classes, math.log(classes)))
    return BatchVerdicts(predicted, wrong, confidence, nll, True)


def expected(predicted: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Expected correctness (N,) float64 of verdicts (N,): 1 or 0, and 1/C of a random answer."""
    return np.where(predicted < 0, -1.0 / np.minimum(predicted, -1), correct)


def error_pct(correct: np.ndarray) -> float | None:
    """Error over (N,) expected verdicts, per cent; None if N is 0."""
    return 100.0 * float(len(correct) - correct.sum()) / len(correct) if len(correct) else None


def summary(correct: np.ndarray, confidence: np.ndarray, nll: np.ndarray | None) -> dict[str, Any]:
    """Result columns over a group of images (N,); without ``nll``, which earlier folders lack, none of calibration."""
    columns = {
        "images": len(correct),
        "correct": int((correct == 1).sum()),
        "error_pct": error_pct(correct),
        "confidence_mean": float(confidence.astype(np.float64).mean()),
    }
    if nll is None:
        return columns
    gaps = calibration_gaps(correct, confidence)
    of_labels = float(nll.astype(np.float64).mean())
    return {**columns, "ece_pct": ece_pct(gaps, len(correct)), "nll": of_labels, "calibration_gaps": gaps.tolist()}


def calibration_gaps(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """(BINS,) float64: by bin of confidence, the sum over its images of expected correctness minus confidence.

    Bins are (0, 1/15], (1/15, 2/15], …; 0 is in the first. The gaps of two groups of images add up to those of both.

    Args:
        correct: (N,) expected verdicts.
        confidence: (N,) float32.
    """
    return np.bincount(np.searchsorted(_BORDERS, confidence), correct - confidence.astype(np.float64), BINS)


def ece_pct(gaps: np.ndarray, images: int) -> float:
    """Expected calibration error of a number of images with :func:`calibration_gaps` (BINS,), per cent.

    A bin's gap is its number of images times its accuracy minus its mean confidence: Σ n/N·|accuracy − confidence|.
    """
    return 100.0 * float(np.abs(gaps).sum()) / images


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
