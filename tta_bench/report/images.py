"""Errors of single images, from the predictions of all trials, summed over seeds: what intervals and tests resample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_bench.report.evidence import ALL_IMAGES, Evidence
from tta_bench.run import metrics
from tta_bench.store import results

_ARRAYS = ("images/image", "images/shift", "images/correct", "images/predicted", "images/graded", "images/batch",
           "batches/segment")  # fmt: skip

CellKey = tuple[str, str, str]  # label, source model, shift


@dataclass
class _Counts:
    """By image index: how often an image was graded, and how often it is expected to be wrong; (N,) each."""

    graded: np.ndarray
    wrong: np.ndarray

    def add(self, image: np.ndarray, correct: np.ndarray) -> None:
        """Count (M,) indices and expected verdicts."""
        size = max(len(self.graded), int(image.max(initial=-1)) + 1)
        self.graded = _added(self.graded, image, size)
        self.wrong = _added(self.wrong, image, size, 1 - correct)


def _added(counts: np.ndarray, image: np.ndarray, size: int, weights: np.ndarray | None = None) -> np.ndarray:
    return np.pad(counts, (0, size - len(counts))) + np.bincount(image, weights, size).astype(counts.dtype)


class ImageErrors:
    """Errors of images by cell of the tables.

    Args:
        evidence: its runs are read.
        trials: (key, setting) of the trials that count.

    Raises:
        UsageError: a trial's arrays are damaged.
    """

    def __init__(self, evidence: Evidence, trials: Collection[tuple[str, str]]):
        self._counts: dict[CellKey, _Counts] = {}
        self._fingerprints: dict[tuple[str, str], str] = {}
        self._mixed_images = False  # trials of one source model and shift have images with different fingerprints
        shifts = evidence.shifts
        paired = set(shifts.loc[(shifts["status"] == "ok") & (shifts["shift"] != ALL_IMAGES), "key"])
        paired -= set(evidence.segments.loc[evidence.segments["images_not_kept"].notna(), "key"])
        for run, trial in evidence.trials():
            if trial["key"] in paired and (trial["key"], trial["setting"]) in trials:
                self._add(trial, results.read_arrays(run.path, trial["key"], _ARRAYS.__contains__))

    def _add(self, trial: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        image, shift, correct, predicted, graded, batch, segment = (arrays[name] for name in _ARRAYS)
        correct = metrics.expected(predicted, correct)
        is_stream = np.array([role == "stream" for *_, role in trial["segments"]])
        graded = graded & is_stream[segment[batch]]
        shifts = (trial["model"], ",".join(name for _, _, name in trial["shifts"]))
        self._mixed_images |= self._fingerprints.setdefault(shifts, trial["data"]) != trial["data"]
        for number, (_, _, name) in enumerate(trial["shifts"]):
            here = graded & (shift == number)
            none = _Counts(np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.float32))
            counts = self._counts.setdefault((trial["label"], trial["model"], name), none)
            counts.add(image[here], correct[here])

    def matrix(self, cells: Sequence[CellKey]) -> np.ndarray | None:
        """(images, cells) float32: each image's error, its mean over seeds and visits.

        None where the cells do not share their images, or have none: then nothing is paired.
        """
        if self._mixed_images or not cells or not all(cell in self._counts for cell in cells):
            return None
        counts = [self._counts[cell] for cell in cells]
        graded = counts[0].graded > 0
        if not all(np.array_equal(c.graded > 0, graded) and _is_even(c.graded[graded]) for c in counts):
            return None
        return np.stack([c.wrong[graded] / np.float32(c.graded[graded][0]) for c in counts], axis=1)


def _is_even(graded: np.ndarray) -> bool:
    """Whether all images were graded equally often: else the mean over images is not the error of the stream."""
    return bool((graded == graded[:1]).all())
