"""A segment's scores, labels and meters to rows and arrays of the results. Nothing of it runs where a method does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tta_bench.data import Dataset
from tta_bench.run import metrics
from tta_bench.run.messages import Measured
from tta_bench.store import schema
from tta_bench.streams import Stream

WARMUP_BATCHES = 2  # a trial's first batches: kernels are chosen and memory is claimed in them, so they are timed apart


class Grader:
    """Grades a stream segment by segment.

    Args:
        stream: what the trial's method was shown.
        dataset: has the labels.
    """

    def __init__(self, stream: Stream, dataset: Dataset):
        self._stream, self._dataset = stream, dataset
        self._segments = list[dict[str, Any]]()
        self._shifts = list[dict[str, Any]]()
        self._batches = list[dict[str, np.ndarray]]()
        self._images = list[dict[str, np.ndarray]]()

    def add(self, position: int, graded: list[metrics.Graded], measured: Measured) -> None:
        """Take in the verdicts on a segment's batches, in order, and what the meters say.

        Raises:
            FloatingPointError: scores that are not finite.
        """
        segment, stream = self._stream.segments[position], self._stream
        finite = np.array([g.finite for g in graded])
        if not finite.all():
            bad = segment.first + int(np.argmin(finite))
            raise FloatingPointError(f"the scores of batch {bad} (segment {segment.name}) are not finite")
        predicted = np.concatenate([g.predicted for g in graded])
        where = slice(int(stream.bounds[segment.first]), int(stream.bounds[segment.last]))
        shift, image = stream.shift[where], stream.image[where]
        labels = self._labels(shift, image)
        sizes = np.diff(stream.bounds[segment.first : segment.last + 1])
        numbers = np.arange(segment.first, segment.last)
        verdicts = {"shift": shift, "visit": stream.visit[where], "image": image,
                    "batch": np.repeat(numbers, sizes).astype(np.int32), "graded": stream.graded[where],
                    "predicted": predicted, "correct": predicted == labels,
                    "confidence": np.concatenate([g.confidence for g in graded])}  # fmt: skip
        batches: dict[str, np.ndarray] = {
            "batch": numbers,
            "segment": np.full(len(sizes), position, dtype=np.int16),
            "images": sizes,
            "adapted": measured.adapted,
            "step_ms": measured.step_ms,
            "data_ms": measured.data_ms,
            **{f"{schema.STATISTIC}{name}": values for name, values in measured.stats.items()},
        }
        self._segments.append(self._cost(position, batches, predicted[verdicts["graded"]], measured))
        self._shifts += self._graded(position, verdicts, labels, np.repeat(measured.adapted, sizes))
        self._batches.append(batches)
        self._images.append(verdicts)

    def results(self) -> dict[str, Any]:
        """All that was taken in, as :class:`tta_bench.run.runner.TrialResult` has it."""
        return {
            "segments": self._segments,
            "shifts": self._shifts,
            "batches": _joined(self._batches),
            "images": _joined(self._images),
        }

    def _labels(self, shift: np.ndarray, image: np.ndarray) -> np.ndarray:
        """The labels (N,) of images, given by their shift's number and their index."""
        labels = np.empty(len(image), dtype=np.int64)
        for number in np.unique(shift):
            of_shift = shift == number
            labels[of_shift] = self._dataset.labels_of(self._stream.shifts[number])[image[of_shift]]
        return labels

    def _cost(
        self, position: int, batches: Mapping[str, np.ndarray], predicted: np.ndarray, measured: Measured
    ) -> dict[str, Any]:
        """The segment's row; ``predicted``: of the graded images."""
        row = schema.Segment(
            **self._place(position),
            images=len(predicted),
            batches=len(batches["batch"]),
            images_forwarded=measured.images_forwarded,
            images_backwarded=measured.images_backwarded,
            updates=measured.updates,
            most_predicted_pct=metrics.most_predicted_pct(predicted),
            **_timing(batches["step_ms"], batches["images"], batches["batch"]),
            data_ms_median=float(np.median(batches["data_ms"])),
            peak_memory_mib=measured.peak_memory_mib,
        )
        adapted = batches["adapted"]
        stats = {name: values for name, values in batches.items() if name.startswith(schema.STATISTIC)}
        means = {name: float(values[adapted].mean()) if adapted.any() else None for name, values in stats.items()}
        return {**vars(row), **means}

    def _graded(
        self, position: int, verdicts: Mapping[str, np.ndarray], labels: np.ndarray, adapted: np.ndarray
    ) -> list[dict[str, Any]]:
        """The rows of the segment's graded images, by shift and visit; ``adapted``: whether each was adapted on."""
        found, skips = list[dict[str, Any]](), adapted.any() and not adapted.all()
        place = np.arange(len(labels))
        for cell in (cell for cell in self._stream.cells if cell.segment == position):
            here = verdicts["graded"] & (verdicts["shift"] == cell.shift) & (verdicts["visit"] == cell.visit)
            correct, shift = verdicts["correct"][here], self._stream.shifts[cell.shift]
            row = schema.Shift(
                **{**self._place(position), "visit": cell.visit},
                shift=shift.id,
                corruption=shift.name,
                severity=int(shift.severity or 0),
                class_mean_error_pct=metrics.class_mean_error_pct(correct, labels[here]),
                **metrics.summary(correct, verdicts["confidence"][here]),
                **metrics.after(correct, place[here], self._stream.graded_after),
                **(metrics.apart(correct, adapted[here]) if skips else {}),
            )
            found.append(vars(row))
        return found

    def _place(self, position: int) -> dict[str, Any]:
        segment = self._stream.segments[position]
        return {"position": position, "segment": segment.name, "visit": segment.visit, "role": segment.role}


def _timing(step_ms: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    """Step times of a segment, the trial's warm-up batches apart; None where nothing is left to time."""
    warm = numbers < WARMUP_BATCHES
    timed, images = step_ms[~warm], sizes[~warm].sum()
    return {
        "step_ms_median": float(np.median(timed)) if len(timed) else None,
        "step_ms_p95": float(np.percentile(timed, 95)) if len(timed) else None,
        "images_per_s": float(images / timed.sum() * 1e3) if len(timed) else None,
        "warmup_ms": float(step_ms[warm].sum()) if warm.any() else None,
    }


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
