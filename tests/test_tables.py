"""Tables of a run over a stream of several shifts: the online curve, and the rows of a trial that failed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Outcome

from tta_bench.store import results

FAILING = """\
from tta_bench.adapter import Adapter

class Failing(Adapter):
    name = "failing"
    def setup(self):
        self.steps = 0
    def step(self, x):
        self.steps += 1
        if self.steps == 5:
            raise ValueError("the second batch of the second shift")
        return self.predict(x)
"""


@pytest.fixture
def continual(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> results.Results:
    """A run of ``source`` and a failing method over one stream of two shifts, three batches each."""
    (tmp_path / "failing.py").write_text(FAILING)
    file = suite_file(("[source, tent]", "[source, failing]"), ("batch_size: 40", "batch_size: 40\nprotocol: {kind: continual}"))  # fmt: skip
    outcome = run_cli("run", file, "--plugin", "failing.py", "--executor", "local", "--out", "run")
    assert outcome.code == 3, outcome.err
    return results.load(tmp_path / "run")


def test_the_running_error_begins_anew_in_each_segment(continual: results.Results) -> None:
    [key] = continual.batches["key"].unique()
    correct = results.read_arrays(continual.path, key, lambda name: name == "images/correct")["images/correct"]
    expected = []
    for segment in (correct[:100], correct[100:]):
        expected += [100.0 * (1.0 - segment[:seen].sum() / seen) for seen in (40, 80, 100)]
    assert continual.batches["segment"].tolist() == ["clean"] * 3 + ["contrast-5"] * 3
    assert continual.batches["images_seen"].tolist() == [40, 80, 100] * 2
    np.testing.assert_allclose(continual.batches["running_error_pct"], expected, rtol=1e-12)
    assert expected[3] != pytest.approx(expected[2], abs=5), "the shifts differ, so that a carried error would show"


def test_a_trial_that_failed_has_a_row_for_each_of_its_shifts(continual: results.Results) -> None:
    rows = continual.segments.query("label == 'failing'")
    assert rows["shift"].tolist() == ["clean", "contrast-5"]
    assert rows["corruption"].tolist() == ["clean", "contrast"]
    assert rows["severity"].tolist() == [0, 5]
    assert set(rows["status"]) == {"failed"}
    assert set(rows["reason"]) == {"ValueError: the second batch of the second shift"}
    assert rows["error_pct"].isna().all()
