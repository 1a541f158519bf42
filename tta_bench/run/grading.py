"""From verdicts, labels and meter readings to rows and arrays of the results; runs in the supervisor only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tta_bench.data import Dataset
from tta_bench.run import metrics
from tta_bench.run.messages import BlockMeasurements
from tta_bench.store import schema
from tta_bench.streams import Stream

WARMUP_BATCHES = 2  # a trial's first batches, which select kernels and allocate memory, are timed separately


class Grader:
    """Grades a stream block by block; keeps 13 bytes for each image, and in short streams the arrays of the results.

    Args:
        stream: of the trial.
        dataset: source of the labels.
        per_image: images of the longest stream whose results have arrays with an element for each image.
    """

    def __init__(self, stream: Stream, dataset: Dataset, per_image: int):
        self._stream, self._dataset = stream, dataset
        self._is_short = len(stream.image) <= per_image
        self._predicted = list[np.ndarray]()  # of the blocks of the present segment, as the next four
        self._correct = list[np.ndarray]()
        self._confidence = list[np.ndarray]()
        self._nll = list[np.ndarray]()
        self._measured = list[BlockMeasurements]()
        self._segments = list[dict[str, Any]]()
        self._shifts = list[dict[str, Any]]()
        self._batches = list[dict[str, np.ndarray]]()
        self._images = list[dict[str, np.ndarray]]()
        self._cold_ms = 0.0

    def labels(self, number: int) -> np.ndarray:
        """The labels (B,) int64 of batch ``number`` of the stream."""
        stream = self._stream
        where = slice(int(stream.bounds[number]), int(stream.bounds[number + 1]))
        shift, image = stream.shift[where], stream.image[where]
        labels = np.empty(len(image), dtype=np.int64)
        for shifted in np.unique(shift):
            of_shift = shift == shifted
            labels[of_shift] = self._dataset.labels_of(stream.shifts[shifted])[image[of_shift]]
        return labels

    def add(self, first: int, graded: Sequence[metrics.BatchVerdicts], measured: BlockMeasurements) -> None:
        """Add a block: verdicts on its batches, from number ``first`` on, and its meter readings.

        Raises:
            FloatingPointError: scores are not finite.
        """
        stream, finite = self._stream, np.array([g.finite for g in graded])
        if not finite.all():
            bad = first + int(np.argmin(finite))
            name = stream.segments[stream.segment[bad]].name
            raise FloatingPointError(f"the scores of batch {bad} (segment {name}) are not finite")
        self._predicted.append(np.concatenate([g.predicted for g in graded]))
        self._correct.append(np.concatenate([g.correct for g in graded]))
        self._confidence.append(np.concatenate([g.confidence for g in graded]))
        self._nll.append(np.concatenate([g.nll for g in graded]))
        self._measured.append(measured)

    def end_segment(self, position: int) -> None:
        """Make the rows and arrays of a segment, whose blocks have been added."""
        segment, stream = self._stream.segments[position], self._stream
        kept = (self._predicted, self._correct, self._confidence, self._nll)
        predicted, correct, confidence, nll = (np.concatenate(blocks) for blocks in kept)
        measured = joined(self._measured)
        self._cold_ms += float(measured.step_ms[measured.cold].sum())
        for blocks in (*kept, self._measured):
            blocks.clear()
        where = slice(int(stream.bounds[segment.first]), int(stream.bounds[segment.last]))
        shift, image, visit, graded = (a[where] for a in (stream.shift, stream.image, stream.visit, stream.graded))
        sizes = np.diff(stream.bounds[segment.first : segment.last + 1])
        numbers = np.arange(segment.first, segment.last)
        batches: dict[str, np.ndarray] = {
            "batch": numbers,
            "segment": np.full(len(sizes), position, dtype=np.int16),
            "images": sizes,
            "adapted": measured.adapted,
            "step_ms": measured.step_ms,
            "data_ms": measured.data_ms,
            **{f"{schema.STATISTIC}{name}": values for name, values in measured.stats.items()},
        }
        expected = metrics.expected(predicted, correct)
        starts = stream.bounds[segment.first : segment.last] - stream.bounds[segment.first]
        if self._is_short:
            of_batch = np.repeat(numbers.astype(np.int32), sizes)
            place = {"shift": shift, "visit": visit, "image": image, "batch": of_batch, "graded": graded}
            verdicts = {"predicted": predicted, "correct": correct, "confidence": confidence, "nll": nll}
            self._images.append(place | verdicts)
        else:
            batches["images_graded"] = np.add.reduceat(graded, starts, dtype=np.int64)
            batches["images_correct"] = np.add.reduceat(np.where(graded, expected, 0.0), starts)
        self._batches.append(batches)
        self._segments.append(self._segment_row(position, batches, predicted[graded], predicted[starts] >= 0, measured))
        adapted = np.repeat(measured.adapted, sizes)
        cells = _cells(shift, visit, graded)
        self._shifts += self._shift_rows(position, cells, image, expected, confidence, nll, adapted)

    def results(self) -> dict[str, Any]:
        """Rows and arrays of all segments, as fields of :class:`tta_bench.run.runner.TrialResult`."""
        return {
            "segments": self._segments,
            "shifts": self._shifts,
            "batches": _concatenated(self._batches),
            "images": _concatenated(self._images),
        }

    def facts(self) -> dict[str, Any]:
        """Facts about the trial's arrays."""
        compiling = {"compile_s": self._cold_ms / 1e3} if self._cold_ms else {}
        return compiling if self._is_short else {**compiling, "images_not_kept": len(self._stream.image)}

    def _segment_row(
        self, position: int, batches: Mapping[str, np.ndarray], predicted: np.ndarray, shown: np.ndarray,
        measured: BlockMeasurements,
    ) -> dict[str, Any]:  # fmt: skip
        """The row of table ``segments``.

        Args:
            predicted: the classes predicted for graded images.
            shown: (batches,) bool, whether the method was given the batch.
        """
        timed = {name: batches[name][shown] for name in ("step_ms", "images", "data_ms")}
        warm = (batches["batch"] < WARMUP_BATCHES) | measured.cold
        row = schema.Segment(
            **self._segment_columns(position),
            images=len(predicted),
            batches=len(shown),
            images_forwarded=measured.images_forwarded,
            images_backwarded=measured.images_backwarded,
            updates=measured.updates,
            most_predicted_pct=metrics.most_predicted_pct(predicted),
            **_timing(timed["step_ms"], timed["images"], warm[shown]),
            data_ms_median=float(np.median(timed["data_ms"])),
            peak_memory_mib=measured.peak_memory_mib,
        )
        adapted = batches["adapted"]
        stats = {name: values for name, values in batches.items() if name.startswith(schema.STATISTIC)}
        means = {name: float(values[adapted].mean()) if adapted.any() else None for name, values in stats.items()}
        return {**vars(row), **means}

    def _shift_rows(
        self, position: int, cells: Iterator[tuple[int, int, np.ndarray]], image: np.ndarray, expected: np.ndarray,
        confidence: np.ndarray, nll: np.ndarray, adapted: np.ndarray,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The rows of table ``shifts``, one a cell; arrays are of the segment's images, ``adapted``: adapted on."""
        mixed = adapted.any() and not adapted.all()
        for number, visit, here in cells:
            shift, correct = self._stream.shifts[number], expected[here]
            labels = self._dataset.labels_of(shift)[image[here]]
            distinct = len(np.unique(image[here]))
            row = schema.Shift(
                **{**self._segment_columns(position), "visit": visit},
                shift=shift.id,
                corruption=shift.name,
                family=shift.family,
                severity=int(shift.severity or 0),
                distinct_images=distinct if distinct < len(here) else None,
                class_mean_error_pct=metrics.class_mean_error_pct(correct, labels),
                **metrics.summary(correct, confidence[here], nll[here]),
                **metrics.after(correct, here, self._stream.graded_after),
                **(metrics.by_adaptation(correct, adapted[here]) if mixed else {}),
            )
            yield vars(row)

    def _segment_columns(self, position: int) -> dict[str, Any]:
        segment = self._stream.segments[position]
        return {"position": position, "segment": segment.name, "visit": segment.visit, "role": segment.role}


def _timing(step_ms: np.ndarray, sizes: np.ndarray, warm: np.ndarray) -> dict[str, Any]:
    """Step times of a segment, without the warm-up batches ``warm``; None if no other batch is left."""
    timed, images = step_ms[~warm], sizes[~warm].sum()
    return {
        "step_ms_median": float(np.median(timed)) if len(timed) else None,
        "step_ms_p95": float(np.percentile(timed, 95)) if len(timed) else None,
        "images_per_s": float(images / timed.sum() * 1e3) if len(timed) else None,
        "warmup_ms": float(step_ms[warm].sum()) if warm.any() else None,
    }


def _cells(shift: np.ndarray, visit: np.ndarray, graded: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(number of the shift, visit, ascending positions of its graded images) of each cell of a segment's images (N,)."""
    here = np.flatnonzero(graded).astype(np.int32)
    here = here[np.lexsort((visit[here], shift[here]))]
    borders = np.flatnonzero((np.diff(shift[here]) != 0) | (np.diff(visit[here]) != 0)) + 1
    for cell in np.split(here, borders):
        if len(cell):
            yield int(shift[cell[0]]), int(visit[cell[0]]), cell


def joined(blocks: Sequence[BlockMeasurements]) -> BlockMeasurements:
    """The meter readings of a segment."""
    backwarded = [block.images_backwarded for block in blocks if block.images_forwarded]
    unknown = bool(backwarded) and all(count is None for count in backwarded)
    peaks = [block.peak_memory_mib for block in blocks if block.peak_memory_mib is not None]
    return BlockMeasurements(
        images_forwarded=sum(block.images_forwarded for block in blocks),
        images_backwarded=None if unknown else sum(filter(None, backwarded)),
        updates=sum(block.updates for block in blocks),
        peak_memory_mib=max(peaks, default=None),
        adapted=np.concatenate([block.adapted for block in blocks]),
        step_ms=np.concatenate([block.step_ms for block in blocks]),
        data_ms=np.concatenate([block.data_ms for block in blocks]),
        cold=np.concatenate([block.cold for block in blocks]),
        stats={name: np.concatenate([block.stats[name] for block in blocks]) for name in blocks[0].stats},
    )


def _concatenated(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
