"""``accuracy: measure``: the calibration network's accuracy under pairs of corruptions, measured as ccc's walk asks for it."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from torch import Tensor

from tta_bench import suite
from tta_bench.commands import preparations
from tta_bench.data.digests import Digests
from tta_bench.data.generated import Generated
from tta_bench.errors import Problem, UsageError
from tta_bench.protocols import Source, assembled
from tta_bench.protocols.ccc import Ccc
from tta_bench.run.accuracy import MeasuredAccuracy, accuracy
from tta_bench.schedule.options import RunOptions
from tta_bench.streams import CLEAN, Shift
from tta_bench.testing import stream

SuiteFile = Callable[..., pathlib.Path]


def severity_of(shift: Shift, number: int, name: str) -> float:
    """The severity of one corruption in a shift, whose parts are in the pair's order."""
    return next((float(p.severity or 0) for p in shift.parts if p.name == name), 0.0)


class Shown:
    """Images that say how they were made: the pixel's value is how many of four images are classified correctly."""

    labels = np.array([1, 1, 1, 1])

    def __init__(self, finest: float):
        self.finest, self.seen = finest, list[str]()

    def labels_of(self, shift: Shift) -> np.ndarray:
        return self.labels

    def missing(self, shift: Shift) -> Problem | None:
        coarse = any(float(part.severity or 0) % self.finest for part in shift.parts)
        return Problem("it knows no such severity") if coarse else None

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        self.seen.append(shift.id)
        right = 4 - 2 * (severity_of(shift, 0, "fog") > 2.5) - (severity_of(shift, 1, "snow") > 2.5)
        return np.repeat((index < right).astype(np.uint8), 3).reshape(-1, 1, 1, 3) * 255


class Reads(torch.nn.Module):
    """Predicts class 1 where an image is white."""

    mean = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        white = x.mean((1, 2, 3))
        return torch.stack([1 - white, white], 1)


def measured(data: Shown, file: pathlib.Path, known: dict[str, np.ndarray] | None = None) -> MeasuredAccuracy:
    model: Any = Reads()
    dataset: Any = data
    of = functools.partial(accuracy, model, dataset, np.arange(4))
    return MeasuredAccuracy(lambda matrix: [[of(s) for s in row] for row in matrix], dataset, file, print, known or {})


@pytest.mark.parametrize(("finest", "size"), [(0.25, 21), (1.0, 6)])
def test_a_matrix_has_the_accuracy_at_each_pair_of_severities_that_the_data_show(
    tmp_path: pathlib.Path, finest: float, size: int
) -> None:
    data = Shown(finest)
    matrix = measured(data, tmp_path / "a.npz")["fog+snow"]
    assert matrix.shape == (size, size)
    severities = np.linspace(0, 5, size)
    right = 4 - 2 * (severities[:, None] > 2.5) - (severities[None, :] > 2.5)
    assert np.array_equal(matrix, 25.0 * right), "rows are severities of the first corruption"
    assert data.seen[0] == "clean"
    assert data.seen[1] == f"snow-{finest:g}"
    assert data.seen[-1] == "fog-5+snow-5"


def test_each_pair_is_measured_once_and_kept_at_once(tmp_path: pathlib.Path) -> None:
    data, file = Shown(1.0), tmp_path / "a.npz"
    matrices = measured(data, file)
    first = matrices["fog+snow"]
    count = len(data.seen)
    assert np.array_equal(matrices["fog+snow"], first)
    assert len(data.seen) == count
    with np.load(file) as stored:
        assert list(stored) == ["fog+snow"]
        again = measured(data, file, dict(stored))
    assert np.array_equal(again["fog+snow"], first)
    assert len(data.seen) == count


def test_data_that_show_one_corruption_at_a_time_are_refused(tmp_path: pathlib.Path) -> None:
    data = Shown(1.0)
    data.missing = lambda shift: Problem("one at a time")  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="one at a time"):
        measured(data, tmp_path / "a.npz")["fog+snow"]


# -- as a preparation of a run -----------------------------------------------------------------------------------------

CCC = "{kind: ccc, baseline: 10, speed: 10, images: 300, accuracy: measure, calibration_images: 10}"


@pytest.fixture
def walked(suite_file: SuiteFile, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    """Write the small suite under ccc; the digits show pairs at integer severities, as a mean with grey."""

    def missing(self: Generated, shift: Shift) -> Problem | None:
        return Problem("quarters") if any(float(p.severity or 0) % 1 for p in shift.parts) else None

    def read(self: Generated, shift: Shift, index: np.ndarray) -> np.ndarray:
        weight = 1 - sum(float(p.severity or 0) for p in shift.parts) / 10
        clean = np.stack([self.clean.decode(int(i)) for i in index]).astype(np.float64)
        return (weight * clean + (1 - weight) * 128).astype(np.uint8)

    monkeypatch.setattr(Generated, "missing", missing)
    monkeypatch.setattr(Generated, "read", read)

    def write(protocol: str = CCC, **more: str) -> pathlib.Path:
        replaced = [("batch_size: 40", f"protocol: {protocol}\nbatch_size: 40"), ("[clean, contrast]", "[clean]")]
        return suite_file(*replaced, *more.items())

    return write


def prepare(file: pathlib.Path, out: pathlib.Path) -> tuple[Any, list[str]]:
    """(the accuracies of the suite's only protocol, what was reported)."""
    said: list[str] = []
    loaded = suite.load(str(file))
    accuracies = preparations.measure_accuracies(loaded, Digests(), RunOptions(str(file)), out, said.append)
    assert accuracies is not None
    return accuracies[0], [text for text in said if "accuracy under" in text]


def test_a_run_measures_what_its_walks_need_once(walked: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    accuracies, said = prepare(walked(), tmp_path / "out")
    assert len(said) == len(accuracies) >= 2
    [file] = (tmp_path / "out" / "prepared").glob("accuracy-resnet_bn-*.npz")
    config = Ccc.Config.model_validate(json.loads(json.dumps({
        "kind": "ccc", "baseline": 10, "speed": 10, "images": 300, "accuracy": "measure"})))  # fmt: skip
    labels = np.zeros(100, dtype=np.int64)
    made = assembled(Ccc(config.with_accuracy(accuracies)), Source((CLEAN,), (labels,), 40, 0))
    given = {"kind": "ccc", "baseline": 10, "speed": 10, "images": 300, "accuracy": str(file)}
    assert made.sha256 == stream(given, {"clean": labels}, 40, 0).sha256
    assert len(made.image) == 300
    assert set(accuracies) == {"+".join(part.name for part in s.parts) for s in made.shifts if len(s.parts) == 2}
    assert prepare(walked(), tmp_path / "out") == (accuracies, [])
    further, said = prepare(walked(more_seeds := CCC.replace("}", ", seeds: [0, 3]}")), tmp_path / "out")
    assert more_seeds != CCC
    assert {pair: further[pair] for pair in accuracies} == accuracies
    assert len(said) == len(further) - len(accuracies) > 0, "only the pairs that the new seed adds"


@pytest.mark.faults
def test_an_interrupted_measurement_goes_on_after_the_last_pair(
    walked: Callable[..., pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pairs = prepare(walked(), tmp_path / "whole")
    original, started = MeasuredAccuracy._measured, list[str]()

    def interrupted(self: MeasuredAccuracy, pair: str) -> np.ndarray:
        started.append(pair)
        if len(started) == 2:
            raise KeyboardInterrupt
        return original(self, pair)

    with monkeypatch.context() as patched:
        patched.setattr(MeasuredAccuracy, "_measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(walked(), tmp_path / "out")
    assert prepare(walked(), tmp_path / "out") == (whole, pairs[1:])


def test_other_images_or_another_network_are_another_measurement(walked: Callable[..., pathlib.Path]) -> None:
    def name(file: pathlib.Path) -> str:
        jobs = preparations.accuracy_jobs(suite.load(str(file)), None, Digests())
        return preparations._accuracy_preparation(jobs[0]).file

    before = name(walked())
    assert name(walked(CCC.replace("baseline: 10", "baseline: 15"))) == before, "the pairs are the same"
    assert name(walked(CCC.replace("images: 10}", "images: 20}"))) != before
    assert name(walked(**{"mean: [0.3, 0.3, 0.3]": "mean: [0.4, 0.3, 0.3]"})) != before


def test_a_dry_run_says_that_accuracies_will_be_measured(
    run_cli: Callable[..., Outcome], walked: Callable[..., pathlib.Path]
) -> None:
    outcome = run_cli("run", walked(), "--out", "out", "--executor", "local", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "accuracies to measure before trials can be planned: accuracy-resnet_bn" in outcome.err
    assert not pathlib.Path("out").exists()


@pytest.mark.faults
def test_a_calibration_network_that_is_not_there_or_not_used_is_refused_at_its_line(
    run_cli: Callable[..., Outcome], walked: Callable[..., pathlib.Path]
) -> None:
    outcome = run_cli("run", walked(CCC.replace("}", ", calibration: resnet}")), "--out", "out")
    assert outcome.code == 2
    assert "small.yaml:12:" in outcome.err
    assert "unknown model 'resnet'" in outcome.err
    with pytest.raises(UsageError, match="only measured accuracies have a calibration"):
        suite.load(str(walked(CCC.replace("measure", "a.npz"))))
    with pytest.raises(UsageError, match="only a run can measure it"):
        stream({"kind": "ccc", "baseline": 10, "speed": 5, "accuracy": "measure"}, {"clean": np.zeros(9, int)}, 4, 0)
