"""Calibration: numbers computed by hand, a run's from its arrays, images of several visits together, the report."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Outcome
from merging import edit_record, replanned
from runs import Cell, verdicts, write_run
from torch import Tensor
from trials import Plain, Runner

from tta_bench import load_results
from tta_bench.report import content
from tta_bench.report.calibration import pooled_ece
from tta_bench.report.content import Content, ReportOptions
from tta_bench.report.evidence import ALL_IMAGES, gather
from tta_bench.report.render import page
from tta_bench.run import metrics
from tta_bench.store import results

Cli = Callable[..., Outcome]


def graded(
    probabilities: list[list[float]], labels: list[int], outputs: str = "probabilities"
) -> metrics.BatchVerdicts:
    scores = np.array(probabilities, dtype=np.float32)
    return metrics.grade(np.log(scores) if outputs == "logits" else scores, np.array(labels), outputs)


def summary(verdicts: metrics.BatchVerdicts) -> dict[str, Any]:
    return metrics.summary(metrics.expected(verdicts.predicted, verdicts.correct), verdicts.confidence, verdicts.nll)


def plain_ece(correct: np.ndarray, confidence: np.ndarray) -> float:
    """Per cent, as Guo et al. write it: bin by bin, from accuracies and mean confidences."""
    total = 0.0
    for b in range(15):
        here = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if here.any():
            total += here.mean() * abs(correct[here].mean() - confidence[here].astype(float).mean())
    return 100 * total


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
def test_values_computed_by_hand(outputs: str) -> None:
    """Confidences 0.9 and 0.88 share a bin, (13/15, 14/15]; 0.5 and 0.6 have their own."""
    found = graded([[0.9, 0.06, 0.04], [0.88, 0.07, 0.05], [0.3, 0.5, 0.2], [0.1, 0.3, 0.6]], [0, 1, 1, 0], outputs)
    assert found.correct.tolist() == [True, False, True, False]
    columns = summary(found)
    expected = (abs(1 - (0.9 + 0.88)) + abs(1 - 0.5) + abs(0 - 0.6)) / 4
    assert columns["ece_pct"] == pytest.approx(100 * expected, rel=1e-6)
    assert columns["nll"] == pytest.approx(-np.log([0.9, 0.07, 0.5, 0.1]).mean(), rel=1e-6)
    assert found.nll.dtype == np.float32


@pytest.mark.parametrize(
    ("confidence", "number"),
    [(0.0, 0), (1e-9, 0), (1 / 15, 0), (np.nextafter(np.float32(1 / 15), np.float32(1)), 1), (2 / 15, 1), (0.4, 5),
     (7 / 15, 6), (0.6, 8), (14 / 15, 13), (1.0, 14), (np.float32(1.0000001), 14)],
)  # fmt: skip
def test_a_bin_includes_its_upper_border_and_the_first_0(confidence: float, number: int) -> None:
    gaps = metrics.calibration_gaps(np.array([0.0]), np.array([confidence], dtype=np.float32))
    assert len(gaps) == 15
    wanted = np.zeros(15)
    wanted[number] = -np.float32(confidence)
    assert gaps.tolist() == wanted.tolist()
    assert np.array_equal(metrics.calibration_gaps(np.array([1.0]), np.array([confidence], np.float32)), wanted + np.eye(15)[number])  # fmt: skip


def test_a_probability_of_0_counts_as_the_floor() -> None:
    largest = -math.log(1e-12)
    assert metrics.FLOOR == 1e-12
    certain = graded([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-13]], [0, 1, 1])
    assert certain.nll == pytest.approx([0.0, largest, largest], rel=1e-7)
    assert not np.signbit(certain.nll).any()
    far = metrics.grade(np.array([[500.0, -500.0], [500.0, -500.0]], dtype=np.float32), np.array([0, 1]), "logits")
    assert far.nll == pytest.approx([0.0, largest], rel=1e-7)
    assert summary(certain)["nll"] == pytest.approx(2 * largest / 3)


def test_a_probability_above_1_by_rounding_counts_as_1() -> None:
    found = graded([[1.0000001, 0.0]], [0])
    assert found.confidence[0] > 1
    assert found.nll.tolist() == [0.0]
    assert summary(found)["ece_pct"] == pytest.approx(0, abs=2e-5)


def test_small_probabilities_keep_their_digits() -> None:
    """In float32, 1 − p is lost below 6e-8: the label has a probability of 1 − 1e-9."""
    found = metrics.grade(np.array([[math.log(1e9), 0.0]], dtype=np.float32), np.array([0]), "logits")
    assert found.nll == pytest.approx([1e-9], rel=1e-4)


def test_random_answers_are_calibrated_and_cost_log_c() -> None:
    found = metrics.chance(3, 10)
    assert not found.correct.any()
    columns = summary(found)
    assert columns["ece_pct"] == pytest.approx(0, abs=1e-5)
    assert columns["nll"] == pytest.approx(math.log(10))
    one = graded([[0.7, 0.3]], [0])
    joined = metrics.BatchVerdicts(*(np.concatenate(pair) for pair in zip(one[:-1], found[:-1], strict=True)), True)
    assert summary(joined)["ece_pct"] == pytest.approx(100 * 0.3 / 4, rel=1e-5), "they only count as images"


def test_scores_that_are_not_finite_are_told() -> None:
    for outputs in ("logits", "probabilities"):
        assert not metrics.grade(np.array([[np.nan, 0.0]], dtype=np.float32), np.array([0]), outputs).finite
        assert not metrics.grade(
            np.array([[0.0, -np.inf], [1.0, 0.0]], dtype=np.float32), np.zeros(2, int), outputs
        ).finite
    assert metrics.grade(np.zeros((0, 2), np.float32), np.zeros(0, int), "probabilities").finite
    assert metrics.grade(np.full((1, 2), 3e38, dtype=np.float32), np.array([0]), "logits").finite, "their sum is not"


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_runs_columns_follow_from_its_arrays_and_those_from_the_scores(run: Runner) -> None:
    store: dict[str, Any] = {}
    result = run(Plain, ("batch_size: 40", "batch_size: 30\nprotocol: {kind: mixed}"), trial=0, bench=store)
    images, (bench, trial) = result.images, (store["bench"], store["trial"])
    assert len(result.shifts) == 2
    for number, row in enumerate(result.shifts):
        here = images["shift"] == number
        assert row["ece_pct"] == pytest.approx(plain_ece(images["correct"][here], images["confidence"][here]))
        assert row["nll"] == pytest.approx(images["nll"][here].astype(float).mean())
        assert len(row["calibration_gaps"]) == 15
        assert np.abs(row["calibration_gaps"]).sum() == pytest.approx(row["ece_pct"])
    stream = bench.streams.build(trial.model, trial.stream)
    model = bench.materials.models[trial.model].load()
    labels = torch.from_numpy(bench.materials.datasets[trial.model].labels[stream.image])
    for number, shift in enumerate(trial.stream.shifts):
        here = np.flatnonzero(stream.shift == number)
        pixels = bench.cache.images(bench.materials.cache_entry(trial.model, trial.stream, shift)).take(
            stream.image[here]
        )
        with torch.no_grad():
            scores = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        expected = torch.nn.functional.cross_entropy(scores, labels[here], reduction="none")
        assert images["nll"][here] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_probabilities_have_the_calibration_of_their_logits(run: Runner) -> None:
    class Probabilities(Plain):
        outputs = "probabilities"

        def step(self, x: Tensor) -> Tensor:
            return self.model(x).softmax(1)  # type: ignore[no-any-return]

    [one], [other] = run(Probabilities).shifts, run(Plain).shifts
    for name in ("ece_pct", "nll"):
        assert one[name] == pytest.approx(other[name], rel=1e-4)
        assert one[name] > 0


def test_skipped_batches_count_at_chance(run: Runner) -> None:
    rule = "adapt: {eta: 1.0, cost_ratio: 2, skipped: chance}"
    result = run(Plain, ("batch_size: 40", f"protocol: {{kind: reset, {rule}}}\nbatch_size: 20"))
    [row], skipped = result.shifts, result.images["predicted"] < 0
    assert skipped.sum() == 40
    assert np.allclose(result.images["nll"][skipped], math.log(10))
    shown = {name: array[~skipped] for name, array in result.images.items()}
    of_bin = np.searchsorted(np.arange(1, 15) / 15, shown["confidence"])
    gaps = np.bincount(of_bin, shown["correct"] - shown["confidence"].astype(float), 15)
    assert row["ece_pct"] == pytest.approx(np.abs(gaps).sum()), "of 100 images"


def test_a_stream_too_long_for_arrays_of_images_has_it_too(run: Runner) -> None:
    [row] = run(Plain).shifts
    result = run(Plain, ("name: small", "name: small\nper_image: 50"))
    assert result.images == {}
    assert {name: result.shifts[0][name] for name in ("ece_pct", "nll", "calibration_gaps")} == {
        name: row[name] for name in ("ece_pct", "nll", "calibration_gaps")
    }


# -- several visits ----------------------------------------------------------------------------------------------------


def test_visits_are_pooled_and_the_ece_of_both_is_no_mean(run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:  # fmt: skip
    file = suite_file(("[source, tent]", "[source]"), ("batch_size: 40", "batch_size: 40\nprotocol: {kind: recurring, visits: 2}"))  # fmt: skip
    outcome = run_cli("run", file, "--executor", "local", "--out", "run")
    assert outcome.code == 0, outcome.err
    shifts, found = load_results("run"), load_results("run", table="calibration")
    assert len(shifts) == 4
    arrays = results.read_arrays(tmp_path / "run", shifts["key"].iloc[0], lambda name: name.startswith("images/"))
    [contrast] = set(shifts.loc[shifts["corruption"] == "contrast", "shift"])
    trial = json.loads((tmp_path / "run" / "plan.json").read_text())["trials"][0]
    here = arrays["images/shift"] == [name for *_, name in trial["shifts"]].index(contrast)
    expected = plain_ece(arrays["images/correct"][here], arrays["images/confidence"][here])
    [row] = found.to_dict("records")
    assert (row["label"], row["severity"], row["seeds"]) == ("source", 5, 1)
    assert row["ece_pct"] == pytest.approx(expected)
    assert row["nll"] == pytest.approx(arrays["images/nll"][here].astype(float).mean())
    verified = run_cli("report", "run", "--format", "csv", "--verify")
    assert "all numbers follow from their predictions" in verified.err


def gaps(**values: float) -> list[float]:
    """By bin, as ``b3=0.5``."""
    return [values.get(f"b{number}", 0.0) for number in range(15)]


def split(run: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Replace the only row of the only trial by several, in its plan, too."""
    [file] = (run / "trials").glob("*.json")
    [row] = json.loads(file.read_text())["shifts"]
    told = [row | own for own in rows]
    edit_record(run, file.stem, shifts=told)
    shifts = list({r["shift"]: [r["corruption"], r["severity"], r["shift"]] for r in told}.values())
    cells = [[0, [name for *_, name in shifts].index(r["shift"]), r["visit"]] for r in told]
    replanned(run, lambda plan: plan["trials"][0].update(shifts=shifts, cells=cells))


def test_opposite_gaps_of_two_visits_cancel(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("source", "m", "fog-5", 0): verdicts(20, 20)})
    visits = [{"images": 10, "nll": 1.0, "ece_pct": 20.0, "calibration_gaps": gaps(b3=2.0)},
              {"images": 30, "nll": 2.0, "ece_pct": 10.0, "calibration_gaps": gaps(b3=-1.0, b9=2.0), "visit": 1}]  # fmt: skip
    split(run, visits)
    report = made(run)
    [row] = report.calibration[0].rows
    assert row.ece[5].mean == pytest.approx(100 * (1 + 2) / 40), "not between 10 and 20"
    assert row.nll[5].mean == pytest.approx((10 * 1 + 30 * 2) / 40)


def test_compounds_are_pooled_over_their_segment(tmp_path: pathlib.Path) -> None:
    shift = ["fog+snow", 0, "fog-3+snow-2"]
    run = write_run(tmp_path / "run", {("source", "m", "fog-5", 0): verdicts(20, 20)}, shifts=[shift],
                    segments=[[shift[2], 0, "stream"]])  # fmt: skip
    rows = [{"images": 10, "nll": 1.0, "ece_pct": 20.0, "calibration_gaps": gaps(b3=2.0)},
            {"images": 30, "nll": 2.0, "ece_pct": 10.0, "calibration_gaps": gaps(b3=-3.0), "shift": "fog-4+snow-2"}]  # fmt: skip
    split(run, rows)
    report = made(run)
    [joined] = report.evidence.shifts.to_dict("records")
    assert joined["shift"] == ALL_IMAGES
    assert np.isnan(joined["ece_pct"])
    assert joined["nll"] == pytest.approx(1.75)
    [row] = report.calibration[0].rows
    assert row.ece[0].mean == pytest.approx(100 / 40)


def test_a_record_that_pooling_needs_and_is_damaged_is_told(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("source", "m", "fog-5", 0): verdicts(20, 20)})
    split(run, [{"nll": 1.0, "ece_pct": 1.0, "calibration_gaps": gaps(), "visit": visit} for visit in (0, 1)])
    evidence = gather([run])
    next((run / "trials").glob("*.npz")).write_bytes(b"")
    with pytest.raises(Exception, match="does not match its checksum"):
        pooled_ece(evidence, evidence.shifts)


# -- the report --------------------------------------------------------------------------------------------------------


def made(run: pathlib.Path, **options: Any) -> Content:
    return content.make(gather([run]), ReportOptions(**options))


CELLS: Mapping[Cell, np.ndarray | str] = {
    (label, "m", shift, seed): verdicts(30, 100)
    for label in ("source", "tent") for shift in ("clean", "fog-3", "fog-5", "snow-5") for seed in (0, 1)
}  # fmt: skip


@pytest.fixture
def measured(tmp_path: pathlib.Path) -> pathlib.Path:
    """ECE 10, 20, 30 + seed and NLL 0.1, 0.2, 0.3 on snow, fog-5, fog-3; clean 90; tent half of it, once failed."""
    cells = {**CELLS, ("tent", "m", "snow-5", 1): "failed"}
    models = {"m": {"tag": "m", "weights_sha256": "0" * 64, "mean": [0.5] * 3, "std": [0.2] * 3}}
    run = write_run(tmp_path / "run", cells, models=models)
    for trial in json.loads((run / "plan.json").read_text())["trials"]:
        file = run / "trials" / f"{trial['key']}.json"
        record = json.loads(file.read_text())
        if record["status"] == "ok":
            [row], [[_, _, shift]] = record["shifts"], trial["shifts"]
            ece = {"clean": 90, "snow-5": 10, "fog-5": 20, "fog-3": 30}[shift] + trial["seed"]
            scale = 0.5 if trial["label"] == "tent" else 1.0
            values = {"ece_pct": scale * ece, "nll": scale * ece / 100, "calibration_gaps": gaps(b1=scale * ece)}
            edit_record(run, trial["key"], shifts=[row | values])
    return run


def test_the_table_is_the_mean_over_corruptions_and_seeds_as_that_of_errors(measured: pathlib.Path) -> None:
    [table] = made(measured).calibration
    assert (table.name, table.severities, [row.label for row in table.rows]) == (
        "calibration",
        [3, 5],
        ["source", "tent"],
    )
    source, tent = table.rows
    assert source.ece[5].mean == pytest.approx((15 + 16) / 2), "without clean"
    assert source.ece[5].std == pytest.approx(np.std([15, 16], ddof=1))
    assert source.ece[3].mean == pytest.approx(30.5)
    assert source.nll[5].mean == pytest.approx(0.155)
    assert (tent.ece[5].state, tent.ece[5].seeds) == ("failed", 1), "the seed with a failed corruption is left out"
    assert tent.ece[5].mean == pytest.approx(7.5)


def test_every_format_has_it(run_cli: Cli, measured: pathlib.Path, tmp_path: pathlib.Path) -> None:
    outcome = run_cli("report", "run", "--format", "md,tex,csv")
    assert outcome.code == 0, outcome.err
    shown = outcome.out[outcome.out.index("suite: calibration") :]
    assert shown.splitlines()[1].split() == ["method", "ECE", "3", "NLL", "3", "ECE", "5", "NLL", "5"]
    source, tent = (next(line.split() for line in shown.splitlines() if line.startswith(f" {n}")) for n in ("source", "tent"))  # fmt: skip
    assert source == ["source", "30.5±0.7", "0.305±0.007", "15.5±0.7", "0.155±0.007"]
    assert tent == ["tent", "15.2±0.4", "0.152±0.004", "7.5*", "0.075*"]
    report = measured / "report"
    assert "| m | source | 30.5±0.7 | 0.305±0.007 | 15.5±0.7 | 0.155±0.007 |" in (report / "errors.md").read_text()
    assert r"source & 30.5$_{\pm0.7}$ & 0.305$_{\pm0.007}$" in (report / "tables" / "calibration.tex").read_text()
    text = page.write(made(measured), [], tmp_path / "index.html").read_text()
    assert '<section id="calibration">' in text
    assert "0.155" in text
    data = pd.read_csv(report / "data" / "calibration.csv").set_index(["label", "severity"])
    assert data.loc[("source", 5), ["ece_pct", "nll"]].tolist() == pytest.approx([15.5, 0.155])
    assert data.loc[("tent", 5), "state"] == "failed"


def test_a_terminal_shows_one_table_of_it(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    values = {"ece_pct": 1.0, "nll": 1.0, "calibration_gaps": gaps(b0=0.1)}
    for name in ("A", "B"):
        write_run(tmp_path / name, {("source", "m", "fog-5", 0): verdicts(10, 10)}, dataset=name, facts=values)
    outcome = run_cli("report", "A", "B", "--format", "md")
    assert outcome.out.count(": calibration") == 1
    assert "Calibration in one further setting is in the report's files." in outcome.out
    assert (tmp_path / "A" / "report" / "errors.md").read_text().count(": calibration") == 2


def test_a_run_without_it_has_no_table_and_is_verified(run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:  # fmt: skip
    """As an earlier version wrote it."""
    assert made(write_run(tmp_path / "old", CELLS)).calibration == []
    assert run_cli("run", suite_file(("[source, tent]", "[source]")), "--executor", "local", "--out", "run").code == 0
    later = ("ece_pct", "nll", "calibration_gaps")
    for file in (tmp_path / "run" / "trials").glob("*.json"):
        with np.load(file.with_suffix(".npz")) as stored:
            arrays = {name: stored[name] for name in stored if name != "images/nll"}
        np.savez(file.with_suffix(".npz"), **arrays)
        rows = json.loads(file.read_text())["shifts"]
        edit_record(
            tmp_path / "run", file.stem, shifts=[{k: v for k, v in row.items() if k not in later} for row in rows]
        )
    outcome = run_cli("report", "run", "--format", "md", "--verify")
    assert outcome.code == 0, outcome.err
    assert "calibration" not in outcome.out
    assert "all numbers follow from their predictions" in outcome.err
    assert load_results("run")[["ece_pct", "nll"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("scores", "outputs", "message"),
    [
        (
            [[0.2, 0.8], [0.9, 0.3]],
            "probabilities",
            "the scores of an image sum to 1.2, and the lowest is 0.2: declare 'logits'",
        ),
        ([[0.2, 0.8], [1.5, -0.5]], "probabilities", "and the lowest is -0.5"),
        ([[0.2, 0.8], [0.9, 0.1]], "logits", "all scores are probabilities: declare outputs = 'probabilities'"),
    ],
)
def test_scores_of_another_kind_than_declared_are_refused(
    scores: list[list[float]], outputs: str, message: str
) -> None:
    with pytest.raises(metrics.WrongOutputs, match=re.escape(message)):
        metrics.grade(np.array(scores, dtype=np.float32), np.array([0, 1]), outputs)


def test_a_single_images_logits_may_look_like_probabilities() -> None:
    assert metrics.grade(np.array([[0.2, 0.8]], dtype=np.float32), np.array([1]), "logits").correct.all()
