"""Results of the size and shape of real ones, without running a trial."""

from __future__ import annotations

import numpy as np

from tta_bench.run.runner import TrialResult
from tta_bench.suite.plan import Trial

BATCH = 64


def canned(trial: Trial, batches: int, error: float = 0.3) -> TrialResult:
    """A result for a trial of one shift; an image is classified wrongly with probability ``error``."""
    rng = np.random.default_rng(trial.seed)
    images, numbers = batches * BATCH, np.arange(batches)
    correct = rng.random(images) >= error
    [shift] = trial.stream.shifts
    costs = {"step_ms_median": 5.1, "step_ms_p95": 6.2, "images_per_s": 12000.5, "warmup_ms": 30.25,
             "data_ms_median": 0.4, "peak_memory_mib": None}  # fmt: skip
    place = {"position": 0, "segment": shift.id, "visit": 0, "role": "stream"}
    segment = {**place, "images": images, "batches": batches, "images_forwarded": images, "images_backwarded": images,
               "updates": batches, "most_predicted_pct": 100.0 * float(rng.random()), **costs}  # fmt: skip
    row = {**place, "shift": shift.id, "corruption": shift.name, "severity": shift.severity or 0, "images": images,
           "correct": int(correct.sum()), "error_pct": 100.0 * float((~correct).mean()),
           "class_mean_error_pct": 100.0 * float(rng.random()), "confidence_mean": float(rng.random())}  # fmt: skip
    facts = {"adapted_parameters": 2000, "batch_statistics": "per-batch", "checkpoint": "", "reset_keeps": "ema",
             "needs_backward": True, "needs_source_images": True, "needs_checkpoint": False, "needs_min_batch": 2,
             "needs_norm_kinds": "batch,group,layer", "needs_class_token": False, "needs_linear_head": False,
             "needs_packages": "", "source_images": 797, "prepare_s": 1.5, "trial_s": 2.5}  # fmt: skip
    where = {"host": "node-1", "pid": 1234, "device": "cpu", "device_name": "x86_64", "threads": 1, "torch": "2.6.0",
             "python": "3.11.7"}  # fmt: skip
    per_batch = {"batch": numbers, "segment": np.zeros(batches, dtype=np.int16), "images": np.full(batches, BATCH),
                 "adapted": np.ones(batches, dtype=bool), "step_ms": rng.random(batches),
                 "data_ms": rng.random(batches)}  # fmt: skip
    per_image = {
        "shift": np.zeros(images, dtype=np.int16),
        "visit": np.zeros(images, dtype=np.int16),
        "graded": np.ones(images, dtype=bool),
        "image": rng.permutation(images).astype(np.int32),
        "batch": np.repeat(numbers, BATCH).astype(np.int32),
        "predicted": rng.integers(0, 10, images, dtype=np.int32),
        "correct": correct,
        "confidence": rng.random(images, dtype=np.float32),
    }
    return TrialResult(trial.key, "ok", facts=facts, segments=[segment], shifts=[row], batches=per_batch,
                       images=per_image, environment=where)  # fmt: skip
