"""What each image came to in each cell of the tables: the per-image predictions of all trials, summed over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_bench.report.evidence import Evidence
from tta_bench.store import results

_ARRAYS = ("images/image", "images/shift", "images/correct", "images/graded")

Place = tuple[str, str, str]  # label, source model, shift


@dataclass
class _Counts:
    """By image index: how often an image was seen, and how often classified wrongly."""

    seen: np.ndarray
    wrong: np.ndarray

    def add(self, image: np.ndarray, correct: np.ndarray) -> None:
        """Count the images of a stream, (N,) indices and (N,) verdicts."""
        size = max(len(self.seen), int(image.max()) + 1)
        self.seen, self.wrong = (
            np.pad(old, (0, size - len(old))) + np.bincount(chosen, minlength=size).astype(np.uint16)
            for old, chosen in ((self.seen, image), (self.wrong, image[~correct]))
        )


class ImageErrors:
    """Errors of images by cell.

    Args:
        evidence: its runs are read.
        wanted: whether trials count, by their key and setting.

    Raises:
        UsageError: a trial's arrays are damaged.
    """

    def __init__(self, evidence: Evidence, wanted: Callable[[tuple[str, str]], bool]):
        self._counts: dict[Place, _Counts] = {}
        self._prints: dict[tuple[str, str], str] = {}
        self.other_images = False  # rows of one source model and shift are of images with other fingerprints
        ok = set(evidence.shifts.loc[evidence.shifts["status"] == "ok", "key"])
        for run, trial in evidence.trials():
            if trial["key"] in ok and wanted((trial["key"], trial["setting"])):
                self._add(trial, results.read_arrays(run.path, trial["key"], _ARRAYS.__contains__))

    def _add(self, trial: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        image, shift, correct, graded = (arrays[name] for name in _ARRAYS)
        where = (trial["model"], ",".join(name for _, _, name in trial["shifts"]))
        self.other_images |= self._prints.setdefault(where, trial["data"]) != trial["data"]
        for number, (_, _, name) in enumerate(trial["shifts"]):
            here = graded & (shift == number)
            place = (trial["label"], trial["model"], name)
            empty = np.zeros(0, dtype=np.uint16)
            self._counts.setdefault(place, _Counts(empty, empty)).add(image[here], correct[here])

    def matrix(self, places: Sequence[Place]) -> np.ndarray | None:
        """(images, cells) float32: each image's error, its mean over seeds and visits, of the images that were seen.

        None where the cells do not share their images, or there are none: then nothing is paired.
        """
        if self.other_images:
            return None
        found = [self._counts.get(place) for place in places]
        have = [counts for counts in found if counts is not None]
        if len(have) < len(found) or not have:
            return None
        seen = have[0].seen > 0
        if any(not np.array_equal(counts.seen > 0, seen) or _uneven(counts.seen[seen]) for counts in have):
            return None
        return np.stack([counts.wrong[seen] / np.float32(counts.seen[seen][0]) for counts in have], axis=1)


def _uneven(seen: np.ndarray) -> bool:
    """Whether some images were seen more often than others: the mean over images is then not the error of the stream."""
    return bool((seen != seen[0]).any())
