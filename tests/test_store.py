"""What a run's folder holds: records, atomic and checked; tables, read where current and rebuilt where not."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs import ok_result, verdicts, write_run

from tta_bench import files
from tta_bench.errors import UsageError
from tta_bench.report.verify import verify
from tta_bench.run.runner import TrialResult
from tta_bench.store import records, results, schema

CELLS = [(label, "m", shift, seed) for label in ("a", "b") for seed in (0, 1) for shift in ("clean", "fog-5")]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two methods, two seeds, two shifts; trials 1 and 5 have a statistic, 2 failed, 3 was skipped, 4 is missing."""
    ends: dict[int, str] = {2: "failed", 3: "skipped", 4: "missing"}
    cells = {cell: ends.get(n) or verdicts(30, 25, first=n) for n, cell in enumerate(CELLS)}
    folder = write_run(tmp_path / "run", cells)
    for number in (1, 5):
        trial = planned(folder)[number]
        result = ok_result(trial, verdicts(30, 25, first=number))
        arrays = {**result.batches, "stat_taken": np.array([1.0, np.nan, number])}
        segments = [{**result.segments[0], "stat_taken": 0.5}]
        records.write(folder, dataclasses.replace(result, segments=segments, batches=arrays), {}, session=0)
    return folder


def planned(run: pathlib.Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((run / "plan.json").read_text())["trials"]
    return trials


def file_of(run: pathlib.Path, number: int, suffix: str = "json") -> pathlib.Path:
    return run / "trials" / f"{planned(run)[number]['key']}.{suffix}"


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_planned_trial_has_rows_whatever_its_status(run: pathlib.Path) -> None:
    loaded = results.load(run)
    for name, columns in schema.TABLES.items():
        statistics = [] if name == "shifts" else ["stat_taken"]
        assert [*loaded.tables[name]] == [*(c.name for c in columns), *statistics]
        assert [str(loaded.tables[name][c.name].dtype) for c in columns] == [c.dtype for c in columns]
    segments, shifts = loaded.segments, loaded.shifts
    for table in (segments, shifts):
        assert table["status"].tolist() == ["ok", "ok", "failed", "skipped", "missing", "ok", "ok", "ok"]
        assert table["images"].isna().tolist() == [status != "ok" for status in table["status"]]
        assert table["segment"].tolist() == ["clean", "fog-5"] * 4
    assert segments["stat_taken"].fillna(-1).tolist() == [-1, 0.5, -1, -1, -1, 0.5, -1, -1]
    assert shifts["shift"].tolist() == ["clean", "fog-5"] * 4
    assert loaded.counts == {"ok": 5, "failed": 1, "skipped": 1, "missing": 1}
    assert loaded.failed == {planned(run)[2]["key"]: "failed for a reason"}


def test_the_online_curve_follows_each_trials_predictions(run: pathlib.Path) -> None:
    loaded = results.load(run)
    curve = loaded.batches
    ok = [t for t, status in zip(loaded.plan["trials"], loaded.segments["status"], strict=True) if status == "ok"]
    assert curve["key"].tolist() == [t["key"] for t in ok for _ in range(3)]
    assert (curve["images_seen"] == curve.groupby("key", sort=False)["images"].cumsum()).all()
    for trial in ok:
        with np.load(run / "trials" / f"{trial['key']}.npz") as arrays:
            correct = arrays["images/correct"]
            taken = arrays["batches/stat_taken"] if "batches/stat_taken" in arrays else np.full(3, np.nan)
        mine = curve[curve["key"] == trial["key"]]
        of_batches = [correct[:10], correct[10:20], correct[20:]]
        np.testing.assert_allclose(mine["error_pct"], [100 * (~part).mean() for part in of_batches], rtol=1e-12)
        running = [100 * (~correct[:seen]).mean() for seen in (10, 20, 25)]
        np.testing.assert_allclose(mine["running_error_pct"], running, rtol=1e-12)
        assert np.array_equal(mine["stat_taken"], taken, equal_nan=True)
        assert {(row.label, row.model, row.seed, row.segment) for row in mine.itertuples()} == {
            (trial["label"], trial["model"], trial["seed"], trial["shifts"][0][2])
        }
    assert curve["adapt_images"].isna().all()


def test_a_run_without_results_has_tables(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {("a", "m", "fog-5", 0): "missing"})
    first, again = results.load(run), results.load(run)
    for name, columns in schema.TABLES.items():
        assert [*first.tables[name]] == [c.name for c in columns]
        pd.testing.assert_frame_equal(first.tables[name], again.tables[name])


# -- written tables ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the trials that are read for the tables, as a list that grows."""
    keys, read = list[str](), records.read_trial
    monkeypatch.setattr(records, "read_trial", lambda run, key: (keys.append(key), read(run, key))[1])
    return keys


def test_written_tables_are_read_back_equal_and_no_trial_is_read(run: pathlib.Path, rebuilt: list[str]) -> None:
    (run / "trials" / "nobody.json").write_text("{}")
    file_of(run, 0).write_text("{}")
    built = results.write_tables(run)
    assert len(rebuilt) == 8
    read = results.load(run)
    assert len(rebuilt) == 8, "no trial's file was opened"
    for name, frame in built.tables.items():
        pd.testing.assert_frame_equal(read.tables[name], frame, check_exact=True)
        assert len(pd.read_csv(run / f"{name}.csv")) == len(frame)
    assert (read.path, read.plan, read.stale) == (built.path, built.plan, built.stale)
    assert read.stale == 1
    assert read.damaged == built.damaged
    assert len(read.damaged) == 1


def edit_same_size(file: pathlib.Path) -> None:
    """Replace an error of a trial by another of the same length, and restore the file's time."""
    status, text = file.stat(), file.read_text()
    assert '"error_pct": 32.0' in text
    file.write_text(text.replace('"error_pct": 32.0', '"error_pct": 12.0'))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size


CHANGES: dict[str, tuple[Callable[[pathlib.Path], Any], str, int]] = {
    "an edited record": (lambda run: edit_same_size(file_of(run, 0)), "missing", 1),
    "a truncated record": (lambda run: file_of(run, 0).write_text(file_of(run, 0).read_text()[:100]), "missing", 1),
    "truncated arrays": (lambda run: os.truncate(file_of(run, 0, "npz"), 100), "missing", 1),
    "missing arrays": (lambda run: file_of(run, 0, "npz").unlink(), "missing", 1),
    "a deleted trial": (lambda run: file_of(run, 0).unlink(), "missing", 0),
    "another version": (lambda run: file_of(run, 0).write_text('{"schema_version": 0}'), "missing", 1),
    "a new result": (
        lambda run: records.write(run, TrialResult(planned(run)[0]["key"], "skipped", "new"), {}, session=0),
        "skipped",
        0,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_trial_is_never_hidden_by_written_tables(run: pathlib.Path, change: str) -> None:
    assert results.write_tables(run).segments["status"][0] == "ok"
    edit, status, damaged = CHANGES[change]
    edit(run)
    for loaded in (results.load(run), results.write_tables(run), results.load(run)):  # rebuilt twice, then read
        assert loaded.segments["status"][0] == status
        assert loaded.shifts["status"][0] == status
        assert planned(run)[0]["key"] not in set(loaded.batches["key"])
        assert len(loaded.damaged) == damaged


@pytest.mark.parametrize("name", ["plan.json", "shifts.parquet", "batches.parquet", "tables.json"])
def test_tables_are_rebuilt_where_the_plan_or_a_table_changed(run: pathlib.Path, rebuilt: list[str], name: str) -> None:
    before = results.write_tables(run).shifts
    if name == "plan.json":
        plan = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**plan, "trials": plan["trials"][1:]}))
    elif name == "tables.json":
        (run / name).write_text("torn")
    else:
        before.assign(error_pct=1.0).to_parquet(run / name, index=False)
    rebuilt.clear()
    loaded = results.load(run)
    assert len(rebuilt) == (7 if name == "plan.json" else 8)
    pd.testing.assert_frame_equal(loaded.shifts, before[1:].reset_index(drop=True) if name == "plan.json" else before)


def test_loading_writes_nothing(run: pathlib.Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    assert results.load(run).counts["ok"] == 5
    assert sorted(path.name for path in run.iterdir()) == before


def test_verify_reads_the_trials_themselves(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk's error changes neither size nor times: the tables are still current."""
    loaded = results.write_tables(run)
    content = bytearray(file_of(run, 0, "npz").read_bytes())
    content[200] ^= 0xFF
    file_of(run, 0, "npz").write_bytes(content)
    lines, _ = verify([loaded])
    assert any("does not match its checksum" in line for line in lines)


# -- records -----------------------------------------------------------------------------------------------------------


def test_arrays_are_read_back_equal(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", {CELLS[0]: verdicts(30, 25)})
    [trial] = planned(run)
    given = ok_result(trial, verdicts(30, 25))
    arrays = results.read_arrays(run, trial["key"], lambda name: True)
    for group, own in (("batches", given.batches), ("images", given.images)):
        for name, array in own.items():
            np.testing.assert_array_equal(arrays.pop(f"{group}/{name}"), array, strict=True)
    assert not arrays


@pytest.mark.parametrize("step", [97, -1])
def test_damaged_arrays_are_refused(run: pathlib.Path, step: int) -> None:
    """Truncated anywhere, or one byte changed anywhere."""
    file, key = file_of(run, 0, "npz"), planned(run)[0]["key"]
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        file.write_bytes(
            whole[:place] if step == 97 else whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        )
        with pytest.raises(UsageError, match=r"does not match its checksum[\s\S]*run the suite again"):
            results.read_arrays(run, key, lambda name: True)


@pytest.fixture
def result(tmp_path: pathlib.Path) -> TrialResult:
    """The result of a trial."""
    [trial] = planned(write_run(tmp_path / "planned", dict.fromkeys(CELLS[:1], "missing")))
    return ok_result(trial, verdicts(30, 25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": {"stat_x": np.array([object()])}}, "batches/stat_x is of object, not of numbers"),
        ({"batches": {"x": np.array([1])}}, "unknown array batches/x"),
        ({"images": {"correct": np.array([1])}}, "images/correct is of int64, not of bool"),
        ({"facts": {"checkpoint": pathlib.Path("x"), "trial_s": 1.0}}, "checkpoint is PosixPath('x'), no str"),
        ({"facts": {"needs_min_batch": 2.5, "trial_s": 1.0}}, "needs_min_batch is 2.5, no int"),
        ({"segments": [{"position": "first"}]}, "segments[0].position is 'first', no int"),
        ({"shifts": [1]}, "shifts[0] is no mapping"),
        ({"environment": {"pid": "a process", "host": "node"}}, "environment.pid is 'a process', no int"),
    ],
)
def test_a_result_that_does_not_fit_the_schema_is_recorded_as_failed(
    tmp_path: pathlib.Path, result: TrialResult, change: dict[str, Any], message: str
) -> None:
    written = records.write(tmp_path, dataclasses.replace(result, **change), {"seed": 0}, session=0)
    record = records.read_trial(tmp_path, result.key).record
    assert record is not None
    assert (record["status"], record["reason"]) == (written.status, written.reason) == ("failed", written.reason)
    assert record["reason"].startswith("the result cannot be recorded: ")
    assert message in record["reason"]
    assert (record["segments"], record["shifts"], record["facts"]["failure"]) == ([], [], "method")
    assert "trial_s" in record["facts"], "facts that fit are kept"
    assert "pid" not in record["environment"] or type(record["environment"]["pid"]) is int


def test_a_result_is_on_disk_before_it_counts(
    tmp_path: pathlib.Path, result: TrialResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON, whose rename commits a result, comes after the arrays; nothing is renamed before it is flushed."""
    steps, sync, rename = list[str](), files.os.fsync, pathlib.Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (steps.append("fsync"), sync(number)))
    monkeypatch.setattr(
        pathlib.Path, "replace", lambda path, to: (steps.append(pathlib.Path(to).suffix), rename(path, to))
    )
    assert records.write(tmp_path, result, {}, session=0) is result
    assert steps == ["fsync", ".npz", "fsync", ".json"]


def test_a_full_disk_leaves_no_part_of_a_result(
    tmp_path: pathlib.Path, result: TrialResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        records.write(tmp_path, result, {}, session=0)
    assert list((tmp_path / "trials").iterdir()) == []
