"""Numbers of graded images and of times."""

from __future__ import annotations

import numpy as np
import pytest

from tta_bench.run import metrics
from tta_bench.run.grading import _timing


def test_warm_up_batches_are_timed_apart() -> None:
    times = _timing(np.array([100.0, 50.0, 10.0, 20.0, 30.0]), np.array([8, 8, 4, 4, 2]), np.arange(5) < 2)
    assert times == pytest.approx(
        {"step_ms_median": 20.0, "step_ms_p95": 29.0, "images_per_s": 10 / 60e-3, "warmup_ms": 150.0}
    )
    later = _timing(np.array([10.0, 20.0]), np.array([4, 4]), np.array([False, False]))
    assert later == pytest.approx(
        {"step_ms_median": 15.0, "step_ms_p95": 19.5, "images_per_s": 8 / 30e-3, "warmup_ms": None}
    )
    short = _timing(np.array([10.0, 20.0]), np.array([4, 4]), np.array([True, True]))
    assert short == {"step_ms_median": None, "step_ms_p95": None, "images_per_s": None, "warmup_ms": 30.0}


def test_the_mean_over_classes_is_over_those_that_occur_and_weighs_them_alike() -> None:
    labels = np.array([0, 0, 0, 0, 3, 3, 7])
    correct = np.array([True, True, True, False, False, False, True])
    assert metrics.class_mean_error_pct(correct, labels) == pytest.approx((25 + 100 + 0) / 3)
    assert metrics.most_predicted_pct(np.array([5, 5, 5, 1])) == 75.0
    assert metrics.most_predicted_pct(np.array([], dtype=np.int32)) is None


def test_images_that_were_adapted_on_are_counted_apart_from_others() -> None:
    correct, adapted = np.array([True, False, False, True]), np.array([True, True, True, False])
    assert metrics.by_adaptation(correct, adapted) == {
        "images_adapted": 3, "error_adapted_pct": pytest.approx(200 / 3), "images_skipped": 1, "error_skipped_pct": 0.0
    }  # fmt: skip
    assert metrics.by_adaptation(correct, ~np.zeros(4, dtype=bool))["error_skipped_pct"] is None
