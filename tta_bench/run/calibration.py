"""From the result of a calibration to a method's cost ratio.

A calibration is a trial that times, for each batch, the method's step and then a plain forward pass with the adapted
network (:class:`tta_bench.run.child._CalibrationRun`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tta_bench.run.runner import TrialResult

WARMUP_BATCHES = 3
_DIGITS = 2  # of the ratio, after the decimal point: a measurement has no more


def measurement(result: TrialResult) -> dict[str, Any]:
    """The ratio and how it was measured, or why it was not: the content of a calibration's file.

    The ratio is the median, over the batches after the warm-up, of a step's time divided by that of a plain forward pass
    of the same batch. It is 1 by definition for a method whose step is a plain forward pass.
    """
    if result.status != "ok":
        outcome = {name: getattr(result, name) for name in ("status", "reason", "traceback", "log")}
        return {"ratio": None, **outcome, "failure": result.facts.get("failure", ""), **result.environment}
    batches = result.batches
    step, forward = (batches[name][WARMUP_BATCHES:] for name in ("step_ms", "stat_forward_ms"))
    medians = {"step_ms_median": float(np.median(step)), "forward_ms_median": float(np.median(forward))}
    plain = _steps_are_plain_passes(result)
    return {
        "ratio": 1.0 if plain else round(float(np.median(step / forward)), _DIGITS),
        "by_definition": plain,
        **medians,
        "batches": len(step),
        "warmup_batches": WARMUP_BATCHES,
        "batch_size": int(batches["images"][0]),
        "step_ms": step.tolist(),
        "forward_ms": forward.tolist(),
        **result.environment,
    }


def _steps_are_plain_passes(result: TrialResult) -> bool:
    """Whether each step forwarded each image once, took no gradient, and returned the scores of the plain pass."""
    images = int(result.batches["images"].sum())
    counts = [
        sum(s[name] or 0 for s in result.segments) for name in ("images_forwarded", "images_backwarded", "updates")
    ]
    return counts == [2 * images, 0, 0] and bool(result.batches["stat_plain"].all())  # forwarded: the plain pass, too


def summary(content: Mapping[str, Any]) -> str:
    """A sentence on a measurement."""
    if content["ratio"] is None:
        return f"{content['status']}: {content['reason']}"
    times = (
        f"a step takes {content['step_ms_median']:.1f} ms, a plain forward pass {content['forward_ms_median']:.1f} ms"
    )
    definition = ": 1 by definition" if content["by_definition"] else ""
    return f"{content['ratio']:g} ({times} on {content['device_name']}{definition})"
