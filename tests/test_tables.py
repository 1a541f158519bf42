"""Tables of a run over a stream of several shifts, mixed ones too, and the schema of what they are made from."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Outcome
from plugins import fork_this_process
from runs import reseal, verdicts, write_run

import tta_bench
from tta_bench.errors import UsageError
from tta_bench.protocols import Streams
from tta_bench.report import content
from tta_bench.report.content import ReportOptions
from tta_bench.report.evidence import gather
from tta_bench.report.figures import online
from tta_bench.report.figures.section import sections
from tta_bench.report.images import ImageErrors
from tta_bench.store import records, results, schema, tables
from tta_bench.streams import CLEAN, Segment, Shift, Stream, StreamSpec, subset

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
    rows = continual.shifts.query("label == 'failing'")
    assert rows["shift"].tolist() == ["clean", "contrast-5"]
    assert rows["corruption"].tolist() == ["clean", "contrast"]
    assert rows["severity"].tolist() == [0, 5]
    assert set(rows["status"]) == {"failed"}
    assert set(rows["reason"]) == {"ValueError: the second batch of the second shift"}
    assert rows["error_pct"].isna().all()
    segments = continual.segments.query("label == 'failing'")
    assert segments["segment"].tolist() == ["clean", "contrast-5"]
    assert set(segments["status"]) == {"failed"}
    assert segments["images_forwarded"].isna().all()


# -- a stream that mixes shifts ----------------------------------------------------------------------------------------


def mixed_stream(spec: StreamSpec) -> Stream:
    """Two shifts × 100 images in one segment, in turn; of five batches the last two are only predicted."""
    images, flags = subset(1000, spec.subset, spec.data_seed), np.ones(5, dtype=bool)
    return Stream(
        shifts=(CLEAN, Shift("contrast", 5)), shift=np.tile(np.array([0, 1], dtype=np.int16), 100),
        image=np.repeat(images, 2), bounds=np.arange(0, 201, 40), reset_before=~flags,
        adapt=np.arange(5) < 3, segments=(Segment("mixed", 0, 0, 5),),
    )  # fmt: skip


@pytest.fixture
def mixed(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:  # fmt: skip
    """A run of ``source``, ``tent`` and a failing method over :func:`mixed_stream`."""
    return mixed_run(run_cli, suite_file, tmp_path, monkeypatch)


def mixed_run(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch, **arrays: np.ndarray,
) -> pathlib.Path:  # fmt: skip
    def build(_: object, model: str, spec: StreamSpec) -> Stream:
        return dataclasses.replace(mixed_stream(spec), **arrays)

    monkeypatch.setattr(Streams, "build", build)
    fork_this_process(monkeypatch, folder)
    (folder / "failing.py").write_text(FAILING.replace("== 5", "== 3"))
    file = suite_file(("[source, tent]", "[source, tent, failing]"), ("batch_size: 40", "batch_size: 40\nprotocol: {kind: continual}"))  # fmt: skip
    outcome = run_cli("run", file, "--plugin", "failing.py", "--executor", "local", "--out", "mixed")
    assert outcome.code == 3, outcome.err
    return folder / "mixed"


def test_a_segment_that_mixes_shifts_is_counted_once(run_cli: Callable[..., Outcome], mixed: pathlib.Path) -> None:
    loaded = results.load(mixed)
    segments, shifts = loaded.segments.set_index("label"), loaded.shifts.set_index(["label", "shift"])
    assert segments.index.tolist() == ["source", "tent", "failing"]
    assert segments.loc["tent", ["segment", "visit", "images", "images_forwarded", "updates"]].tolist() == [
        "mixed",
        0,
        200,
        200,
        3,
    ]
    assert shifts.index.tolist() == [(label, shift) for label in segments.index for shift in ("clean", "contrast-5")]
    assert shifts["images"].tolist()[:4] == [100] * 4
    assert shifts.loc["failing", "images"].isna().all()
    assert set(shifts["segment"]) == {"mixed"}
    arrays = results.read_arrays(mixed, segments.loc["tent", "key"], lambda name: name.startswith("images/"))
    for number, shift in enumerate(("clean", "contrast-5")):
        wrong = ~arrays["images/correct"][number::2]
        row = shifts.loc[("tent", shift)]
        assert row["error_pct"] == wrong.sum()
        assert (row["images_adapted"], row["images_skipped"]) == (60, 40)
        assert (row["error_adapted_pct"], row["error_skipped_pct"]) == (
            wrong[:60].mean() * 100,
            wrong[60:].mean() * 100,
        )

    outcome = run_cli("report", mixed, "--verify", "--format", "csv")
    assert "2 trials recomputed, all numbers follow from their predictions" in outcome.err
    costs = pd.read_csv(mixed / "report" / "data" / "costs.csv").set_index("label")
    assert costs["forwards"].tolist() == [1000, 1000], "images forwarded for each 1,000"
    assert costs.loc["tent", "updates"] == 15
    cells = tta_bench.load_results(mixed, table="errors").set_index(["label", "column"])["error_pct"]
    assert cells["tent", "contrast"] == shifts.loc[("tent", "contrast-5"), "error_pct"]


def test_the_mixed_protocol_is_one_segment_of_all_shifts(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path]
) -> None:
    file = suite_file(("batch_size: 40", "batch_size: 40\nprotocol: {kind: mixed}"))
    assert run_cli("run", file, "--executor", "local", "--out", "run").code == 0
    costs = tta_bench.load_results("run", table="segments").set_index("label")
    assert costs["segment"].tolist() == ["mixed", "mixed"]
    assert costs["images_forwarded"].tolist() == [200, 200]
    assert costs["updates"].tolist() == [0, 5]
    errors = tta_bench.load_results("run").set_index(["label", "shift"])
    assert errors["images"].tolist() == [100] * 4
    curve = tta_bench.load_results("run", table="batches").query("label == 'tent'")
    assert curve["images_seen"].tolist() == [40, 80, 120, 160, 200]
    assert curve["running_error_pct"].iloc[-1] == pytest.approx(errors.loc["tent", "error_pct"].mean())
    outcome = run_cli("report", "run", "--format", "csv")
    assert "protocol mixed" in outcome.out
    table = pd.read_csv("run/report/data/costs.csv").set_index("label")
    assert table.loc["tent", ["forwards", "updates"]].tolist() == [1000, 25], "for each 1,000 images"


def test_a_segment_that_mixes_shifts_has_one_curve(mixed: pathlib.Path) -> None:
    loaded = results.load(mixed)
    tent = loaded.batches.query("label == 'tent'")
    assert tent["segment"].tolist() == ["mixed"] * 5
    assert tent["images_seen"].tolist() == [40, 80, 120, 160, 200]
    assert tent["adapted"].tolist() == [True] * 3 + [False] * 2
    correct = results.read_arrays(mixed, tent["key"].iloc[0], lambda name: name == "images/correct")["images/correct"]
    np.testing.assert_allclose(tent["running_error_pct"], [100 * (~correct[:n]).mean() for n in tent["images_seen"]])
    [section] = sections(content.make(gather([mixed]), ReportOptions()))
    last = online.running(section).loc[[("resnet_bn", "tent")]].iloc[-1]
    assert (last["images_seen"], last["mean"]) == (200, pytest.approx(100 * (~correct).mean()))
    assert section.per_thousand("images_forwarded")["resnet_bn", "tent"] == 1000


def test_images_that_are_only_context_count_in_the_cost_alone(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Of the first batch nothing is graded; in the second half the shifts are entered for the second time."""
    graded, visit = np.arange(200) >= 40, (np.arange(200) >= 100).astype(np.int16)
    run = mixed_run(run_cli, suite_file, tmp_path, monkeypatch, grades=graded, visits=visit)
    loaded = results.load(run)
    segment = loaded.segments.set_index("label").loc["tent"]
    assert (segment["images"], segment["images_forwarded"]) == (160, 200)
    shifts = loaded.shifts.set_index("label").loc["tent"]
    assert shifts["visit"].tolist() == [0, 1, 0, 1]
    assert shifts["images"].tolist() == [30, 50, 30, 50]
    correct = results.read_arrays(run, segment["key"], lambda name: name == "images/correct")["images/correct"]
    parts = [correct[40:100:2], correct[100::2], correct[41:100:2], correct[101::2]]
    assert shifts["correct"].tolist() == [part.sum() for part in parts]
    tent = loaded.batches.query("label == 'tent'")
    assert tent["images"].tolist() == [40] * 5
    assert tent["images_graded"].tolist() == [0, 40, 40, 40, 40]
    assert tent["error_pct"].isna().tolist() == [True] + [False] * 4
    assert tent["running_error_pct"].iloc[-1] == pytest.approx(100 * (~correct[40:]).mean())
    evidence = gather([run])
    trials = set(zip(evidence.shifts["key"], evidence.shifts["setting"], strict=True))
    errors = ImageErrors(evidence, trials).matrix([("tent", "resnet_bn", "contrast-5")])
    assert errors is not None
    assert (errors.shape, errors.sum()) == ((80, 1), (~correct[41::2]).sum()), "what intervals are drawn from"
    missing = loaded.shifts.query("label == 'failing'")
    assert missing["visit"].tolist() == [0, 1, 0, 1]
    assert "all numbers follow" in run_cli("report", run, "--verify", "--format", "csv").err


def test_verify_counts_what_is_graded_after_over_the_whole_segment(
    run_cli: Callable[..., Outcome], suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    protocol = "batch_size: 50\nprotocol: {kind: mixed, adapt_images: [50, all]}"
    file = suite_file(("batch_size: 40", protocol), ("[source, tent]", "[source]"))
    assert run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", "run").code == 0
    assert "all numbers follow" in run_cli("report", "run", "--verify", "--format", "csv").err
    record = sorted((tmp_path / "run" / "trials").glob("*.json"))[0]
    content, arrays = json.loads(record.read_text()), np.load(record.with_suffix(".npz"))
    of_clean = arrays["images/correct"][arrays["images/shift"] == 0]
    content["shifts"][0]["error_after_pct"] = 100.0 * float((~of_clean[50:]).mean())  # after 50 of the shift's own
    record.write_text(json.dumps(content))
    reseal(record)
    wrong = run_cli("report", "run", "--verify", "--format", "csv")
    assert (wrong.code, "error_after_pct is " in wrong.err) == (3, True)


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_documentation_lists_what_is_saved() -> None:
    text = (pathlib.Path(__file__).parents[1] / "docs" / "results.md").read_text()
    advice = "put what 'python -m tta_bench.store.schema' prints at the end of docs/results.md"
    assert text.endswith(schema.markdown()), advice


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda r: r["facts"].update(colour="red"), "unknown fact facts.colour"), (lambda r: r.update(more=1), "unknown fact more"),
     (lambda r: r["facts"].pop("needs_backward"), "no facts.needs_backward"), (lambda r: r.pop("shifts"), "no shifts"),
     (lambda r: r["segments"][0].update(error_pct=1.0), "unknown fact segments[0].error_pct"),
     (lambda r: r["segments"][0].pop("updates"), "no segments[0].updates"),
     (lambda r: r["shifts"][0].update(stat_x=1.0), "unknown fact shifts[0].stat_x"),
     (lambda r: r["shifts"][0].update(images=True), "shifts[0].images is True, no int"),
     (lambda r: r["shifts"][0].update(error_pct=None), "shifts[0].error_pct is None, no float"),
     (lambda r: r["environment"].pop("host"), "no environment.host")],
)  # fmt: skip
def test_a_fact_that_is_unknown_lacking_or_of_another_type_is_named(
    tmp_path: pathlib.Path, run_cli: Callable[..., Outcome], change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    run = write_run(tmp_path / "run", {("a", "m", "fog-5", 0): verdicts(10, 100)})
    [file] = (run / "trials").glob("*.json")
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    reseal(file)
    outcome = run_cli("report", run)
    misfit = f"{file}: does not fit schema version {records.SCHEMA_VERSION}: {says}"
    assert (outcome.code, misfit in outcome.err) == (2, True), outcome.err


def test_a_statistic_of_the_methods_own_and_half_a_failed_trial_are_no_faults(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("a", "m", "fog-5", 0): verdicts(10, 100), ("b", "m", "fog-5", 0): "failed"})
    for file in (run / "trials").glob("*.json"):
        record = json.loads(file.read_text())
        for row in record["segments"]:
            row["stat_kept"] = None
        assert [*schema.faults(record)] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda a: a.update({"batches/more": a["batches/images"]}), "unknown array batches/more"),
     (lambda a: a.pop("batches/adapted"), "no array batches/adapted"),
     (lambda a: a.update({"images/correct": a["images/correct"].astype(np.int8)}), "images/correct is of int8, not of bool")],
)  # fmt: skip
def test_an_array_that_is_unknown_lacking_or_of_another_type_is_named(
    tmp_path: pathlib.Path, change: Callable[[dict[str, np.ndarray]], Any], says: str
) -> None:
    run = write_run(tmp_path / "run", {("a", "m", "fog-5", 0): verdicts(10, 100)})
    [file] = (run / "trials").glob("*.npz")
    arrays = dict(np.load(file))
    change(arrays)
    np.savez(file, **arrays)
    reseal(file.with_suffix(".json"))
    with pytest.raises(
        UsageError, match=re.escape(f"{file}: does not fit schema version {records.SCHEMA_VERSION}: {says}")
    ):
        results.load(run)


def test_a_fact_without_a_place_in_the_schema_fails_its_trial_instead(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("a", "m", "fog-5", 0): verdicts(10, 100)}, facts={"colour": "red"})
    [row] = results.load(run).segments.to_dict("records")
    assert row["status"] == "failed"
    assert row["reason"] == "the result cannot be recorded: unknown fact colour"


def test_a_spreadsheet_computes_no_text_of_a_table() -> None:
    texts = ["=1+1", "+x", "-cmd", "@sum", "\ttab", "plain", "-1.5", "+2e-3", "a=b", None]
    frame = pd.DataFrame({"label": texts, "error_pct": [-1.5] * 10, "=head": 1})
    read = pd.read_csv(io.StringIO(tables.csv_text(frame)), dtype={"label": object}, keep_default_na=False)
    assert read.columns.tolist() == ["label", "error_pct", "'=head"]
    assert read["label"].tolist() == ["'=1+1", "'+x", "'-cmd", "'@sum", "'\ttab", "plain", "-1.5", "+2e-3", "a=b", ""]
    assert read["error_pct"].tolist() == [-1.5] * 10
    assert frame["label"].tolist()[:-1] == texts[:-1], "the table itself is as it was"
