"""The report command: what it writes where, what it says where, what it refuses."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pandas as pd
from conftest import Outcome
from runs import verdicts, write_run

from tta_bench.store import records, results

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]


def test_report_writes_tables_and_data_and_prints_what_they_say(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path
) -> None:
    run_cli("run", suite_file(), "--executor", "local")
    outcome = run_cli("report", "--format", "tex,md,csv,parquet")
    out = tmp_path / "results" / "small" / "report"
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "results/small/report"
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"errors.md", "tables/errors-severity-5.tex", "tables/cost-1.tex", "data/errors.csv", "data/errors.parquet",
            "data/batches.parquet"} <= written  # fmt: skip
    assert "newest run: results/small" in outcome.err
    assert "SUBSET" in outcome.out
    shifts = results.load(tmp_path / "results" / "small").shifts
    error = shifts.set_index(["label", "shift"]).loc[("tent", "contrast-5"), "error_pct"]
    assert f" {error:.1f} " in next(line for line in outcome.out.splitlines() if line.startswith(" tent "))
    data = pd.read_csv(out / "data" / "errors.csv").set_index(["label", "column"])
    assert data.loc[("tent", "contrast"), "error_pct"] == error, "numbers are not rounded"


def test_several_runs_stand_in_one_report_below_the_first(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    for label in ("source", "tent"):
        write_run(tmp_path / label, {(label, "m", "fog-5", 0): verdicts(10)})
    outcome = run_cli("report", "source", "tent", "--format", "csv")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "source/report"
    assert set(pd.read_csv(tmp_path / "source" / "report" / "data" / "shifts.csv")["label"]) == {"source", "tent"}


def test_runs_that_differ_need_mix_and_are_then_labelled(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", {("source", "m", "fog-5", 0): verdicts(10)})
    write_run(tmp_path / "b", {("tent", "m", "fog-5", 0): verdicts(10)}, precision="float64")
    refused = run_cli("report", "a", "b", "--format", "csv")
    assert refused.code == 2
    assert "differ in precision" in refused.err
    assert "--mix" in refused.err
    outcome = run_cli("report", "a", "b", "--format", "csv", "--mix")
    assert outcome.code == 0, outcome.err
    assert "MIXED: a and b differ in precision" in outcome.out


def test_times_of_a_shared_device_are_shown_when_asked_for(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", {("source", "m", "fog-5", 0): verdicts(10)}, facts={"device_share": 0.5})
    assert "img/s" not in run_cli("report", "a", "--format", "csv").out
    outcome = run_cli("report", "a", "--format", "csv", "--shared-timings")
    assert "SHARED DEVICE: TIMES ARE NOT THE METHODS' OWN" in outcome.out
    assert "img/s" in outcome.out


def test_an_unknown_format_is_refused(run_cli: Cli) -> None:
    wrong = run_cli("report", "--format", "docx")
    assert wrong.code == 2
    assert "unknown format 'docx'" in wrong.err


def test_a_run_of_another_schema_is_refused(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    plan = write_run(tmp_path / "run", {("source", "m", "fog-5", 0): verdicts(10)}) / "plan.json"
    current = f'"schema_version": {records.SCHEMA_VERSION}'
    plan.write_text(plan.read_text().replace(current, '"schema_version": 99'))
    outcome = run_cli("report", "run")
    assert outcome.code == 2
    assert f"written by a newer tta-bench (schema version 99; this one reads {records.SCHEMA_VERSION})" in outcome.err


def test_every_table_of_a_part_of_the_images_says_so(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", {("source", "m", "fog-5", 0): verdicts(10)}, all_images=False)
    run_cli("report", "a", "--format", "tex,md")
    written = sorted((tmp_path / "a" / "report" / "tables").glob("*.tex"))
    assert [file.name for file in written] == ["cost-1.tex", "errors-collapse-5.tex", "errors-severity-5.tex"]
    assert all("SUBSET OF THE IMAGES" in file.read_text() for file in written)


def test_a_folder_that_cannot_be_written_is_one_message(run_cli: Cli, tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "a", {("source", "m", "fog-5", 0): verdicts(10)})
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    outcome = run_cli("report", "a", "--format", "csv", "--out", "file/report")
    assert outcome.code == 2
    assert "the report cannot be written" in outcome.err
    assert "--out DIR" in outcome.err
    assert "Traceback" not in outcome.err
    assert run_cli("report", "a", "--format", "csv, md", "--out", "elsewhere").code == 0
    inside = [path for path in before if path.is_relative_to(tmp_path / "a")]
    assert sorted((tmp_path / "a").rglob("*")) == [p for p in inside if p != tmp_path / "a"], "a run is only read"


def test_a_failed_a_skipped_and_a_missing_trial_are_visible_in_every_format(
    run_cli: Cli, tmp_path: pathlib.Path
) -> None:
    whole = {(label, "m", shift, seed): verdicts(error, 100)
             for label, error in (("source", 30), ("tent", 20), ("eata", 25)) for shift in ("fog-5", "snow-5") for seed in (0, 1)}  # fmt: skip
    write_run(tmp_path / "a", {**whole, ("tent", "m", "fog-5", 0): "failed", ("norm", "m", "fog-5", 0): "skipped",
                               ("norm", "m", "fog-5", 1): "skipped", ("norm", "m", "snow-5", 0): "skipped",
                               ("norm", "m", "snow-5", 1): "skipped", ("eata", "m", "snow-5", 1): "missing"},
              models={"m": {"tag": "m", "weights_sha256": "0" * 64, "mean": [0.5] * 3, "std": [0.2] * 3}})  # fmt: skip
    outcome = run_cli("report", "a")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "a" / "report"
    page = (folder / "index.html").read_text()
    assert all((folder / "figures" / f"errors.{suffix}").exists() for suffix in ("png", "pdf"))
    for text in (outcome.out, (folder / "errors.md").read_text(), page):
        for reason in ("failed for a reason", "skipped for a reason", "not run yet"):
            assert reason in text
    rows = {
        line.partition(" & ")[0]: line
        for line in (folder / "tables" / "errors-severity-5.tex").read_text().splitlines()
    }
    assert r"\dag" in rows["tent"].split("&")[-1]
    assert r"\dag" in rows["eata"].split("&")[-1]
    assert rows["norm"].count("textendash") == 3
    gaps = pd.read_csv(folder / "data" / "gaps.csv").set_index("label")["status"].to_dict()
    assert gaps == {"tent": "failed", "norm": "skipped", "eata": "missing"}
    errors = pd.read_csv(folder / "data" / "errors.csv").set_index(["label", "column"])
    assert errors.loc[("tent", "mean"), "state"] == "failed"
    assert errors.loc[("eata", "mean"), "state"] == "missing"
    assert errors.loc[[("tent", "mean"), ("eata", "mean")], "mark"].isna().all()
