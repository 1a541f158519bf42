"""From the result of a measuring trial (:mod:`tta_bench.suite.measuring`) to what a run of its row costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tta_bench.run.runner import TrialResult


@dataclass(frozen=True)
class Measured:
    """Cost of a row in a mode.

    Attributes:
        images_per_s: images per second of step time, after the warm-up.
        image_s: seconds for each image, with those of waiting for it.
        start_s: of the trial apart from its batches: a process, the network, ``prepare``.
        compile_s: of the batches in which passes were compiled; 0 where none were.
        held_mib: device memory that the process held, MiB; None on the CPU.
        predicted: (N,) the classes predicted for the images, in stream order.
    """

    images_per_s: float
    image_s: float
    start_s: float
    compile_s: float
    held_mib: float | None
    predicted: np.ndarray = field(repr=False)

    @property
    def first_s(self) -> float:
        """Seconds that the first trial in a process takes on top of its images."""
        return self.start_s + self.compile_s


def measured(result: TrialResult, warmup: int) -> Measured:
    """What the batches after the first ``warmup`` of a finished trial cost."""
    batches, facts = result.batches, result.facts
    step, data = batches["step_ms"], batches["data_ms"]
    # a CPU waits for a batch's images and then computes; a GPU computes while its process waits for the next ones
    both = step + data if result.environment["device"] == "cpu" else np.maximum(step, data)
    adapted, images = batches["adapted"][warmup:], float(batches["images"][warmup:].mean())
    return Measured(
        images_per_s=images / _typical(step[warmup:], adapted) * 1e3,
        image_s=_typical(both[warmup:], adapted) / images / 1e3,
        start_s=max(0.0, facts["trial_s"] - float(both.sum()) / 1e3),
        compile_s=facts.get("compile_s", 0.0),
        held_mib=facts.get("device_held_mib"),
        predicted=result.images["predicted"],
    )


def _typical(ms: np.ndarray, adapted: np.ndarray) -> float:
    """Mean time of a batch, from the medians of those that adapt and of those that do not: no outlier counts."""
    kinds = [ms[adapted], ms[~adapted]]
    return float(sum(len(kind) * np.median(kind) for kind in kinds if len(kind)) / len(ms))


def agreement_pct(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Share of images (N,) with the same predicted class, per cent."""
    return 100.0 * float((predicted == reference).mean())
