"""From verdicts, labels and meter readings to rows and arrays of the results; runs in the supervisor only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tta_bench.data import Dataset
from tta_bench.run import metrics
from tta_bench.run.messages import SegmentMeasurements
from tta_bench.store import schema
from tta_bench.streams import Stream

WARMUP_BATCHES = 2  # a trial's first batches, which select kernels and allocate memory, are timed separately


class Grader:
    """Grades a stream segment by segment.

    Args:
        stream: of the trial.
        dataset: source of the labels.
    """

    def __init__(self, stream: Stream, dataset: Dataset):
        self._stream, self._dataset = stream, dataset
        self._segments = list[dict[str, Any]]()
        self._shifts = list[dict[str, Any]]()
        self._batches = list[dict[str, np.ndarray]]()
        self._images = list[dict[str, np.ndarray]]()

    def add(self, position: int, graded: list[metrics.BatchVerdicts], measured: SegmentMeasurements) -> None:
        """Add a segment: verdicts on its batches, in order, and its meter readings.

        Raises:
            FloatingPointError: scores are not finite.
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
        shown = predicted[stream.bounds[segment.first : segment.last] - stream.bounds[segment.first]] >= 0
        self._segments.append(self._segment_row(position, batches, predicted[verdicts["graded"]], shown, measured))
        self._shifts += self._shift_rows(position, verdicts, labels, np.repeat(measured.adapted, sizes))
        self._batches.append(batches)
        self._images.append(verdicts)

    def results(self) -> dict[str, Any]:
        """Rows and arrays of all segments, as fields of :class:`tta_bench.run.runner.TrialResult`."""
        return {
            "segments": self._segments,
            "shifts": self._shifts,
            "batches": _concatenated(self._batches),
            "images": _concatenated(self._images),
        }

    def _labels(self, shift: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Labels (N,) of images given by shift number (N,) and image index (N,)."""
        labels = np.empty(len(image), dtype=np.int64)
        for number in np.unique(shift):
            of_shift = shift == number
            labels[of_shift] = self._dataset.labels_of(self._stream.shifts[number])[image[of_shift]]
        return labels

    def _segment_row(
        self, position: int, batches: Mapping[str, np.ndarray], predicted: np.ndarray, shown: np.ndarray,
        measured: SegmentMeasurements,
    ) -> dict[str, Any]:  # fmt: skip
        """The row of table ``segments``.

        Args:
            predicted: the classes predicted for graded images.
            shown: (batches,) bool, whether the method was given the batch.
        """
        timed = {name: batches[name][shown] for name in ("step_ms", "images", "batch", "data_ms")}
        row = schema.Segment(
            **self._segment_columns(position),
            images=len(predicted),
            batches=len(shown),
            images_forwarded=measured.images_forwarded,
            images_backwarded=measured.images_backwarded,
            updates=measured.updates,
            most_predicted_pct=metrics.most_predicted_pct(predicted),
            **_timing(timed["step_ms"], timed["images"], timed["batch"]),
            data_ms_median=float(np.median(timed["data_ms"])),
            peak_memory_mib=measured.peak_memory_mib,
        )
        adapted = batches["adapted"]
        stats = {name: values for name, values in batches.items() if name.startswith(schema.STATISTIC)}
        means = {name: float(values[adapted].mean()) if adapted.any() else None for name, values in stats.items()}
        return {**vars(row), **means}

    def _shift_rows(
        self, position: int, verdicts: Mapping[str, np.ndarray], labels: np.ndarray, adapted: np.ndarray
    ) -> list[dict[str, Any]]:
        """The rows of table ``shifts``: graded images by shift and visit. ``adapted`` (N,): images adapted on."""
        rows, mixed = list[dict[str, Any]](), adapted.any() and not adapted.all()
        order, expected = np.arange(len(labels)), metrics.expected(verdicts["predicted"], verdicts["correct"])
        for cell in (cell for cell in self._stream.cells if cell.segment == position):
            here = verdicts["graded"] & (verdicts["shift"] == cell.shift) & (verdicts["visit"] == cell.visit)
            correct, shift = expected[here], self._stream.shifts[cell.shift]
            row = schema.Shift(
                **{**self._segment_columns(position), "visit": cell.visit},
                shift=shift.id,
                corruption=shift.name,
                severity=int(shift.severity or 0),
                class_mean_error_pct=metrics.class_mean_error_pct(correct, labels[here]),
                **metrics.summary(correct, verdicts["confidence"][here]),
                **metrics.after(correct, order[here], self._stream.graded_after),
                **(metrics.by_adaptation(correct, adapted[here]) if mixed else {}),
            )
            rows.append(vars(row))
        return rows

    def _segment_columns(self, position: int) -> dict[str, Any]:
        segment = self._stream.segments[position]
        return {"position": position, "segment": segment.name, "visit": segment.visit, "role": segment.role}


def _timing(step_ms: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    """Step times of a segment, without the trial's warm-up batches; None if no other batch is left."""
    warm = numbers < WARMUP_BATCHES
    timed, images = step_ms[~warm], sizes[~warm].sum()
    return {
        "step_ms_median": float(np.median(timed)) if len(timed) else None,
        "step_ms_p95": float(np.percentile(timed, 95)) if len(timed) else None,
        "images_per_s": float(images / timed.sum() * 1e3) if len(timed) else None,
        "warmup_ms": float(step_ms[warm].sum()) if warm.any() else None,
    }


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
