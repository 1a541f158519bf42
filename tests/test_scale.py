"""What makes large runs quick changes nothing: keys, array files, tables."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from canned import canned

from tta_bench import files, suite
from tta_bench.data.base import digest
from tta_bench.run.runner import TrialResult
from tta_bench.store import conclusion, npz, records, results, schema
from tta_bench.suite import plan

SuiteFile = Callable[..., pathlib.Path]

ARRAYS = {
    "batches/step_ms": np.linspace(0, 1, 5), "images/shift": np.zeros(7, dtype=np.int16), "images/correct": np.array([True, False]),
    "none": np.array([]), "square": np.arange(6, dtype=np.float32).reshape(2, 3), "alone": np.array(3.5), "text": np.array(["a", "bc"]),
    "sliced": np.arange(10)[::2],
}  # fmt: skip


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == array.dtype and found[name].shape == array.shape and (found[name] == array).all()
        for name, array in expected.items()
    )


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["reset", "continual", "{kind: reset, adapt_images: [40, all]}"])
def test_a_key_is_the_digest_of_what_was_asked(suite_file: SuiteFile, protocol: str) -> None:
    protocol = protocol if "{" in protocol else f"{{kind: {protocol}}}"
    file = suite_file(("[source, tent]", "[source, eata, {name: tent, grid: {lr: [0.1, 1.0e-5], steps: [1, 2]}}]"),
                      ("seeds: [0]", f"seeds: [0, 3]\nprotocol: {protocol}"))  # fmt: skip
    made = plan.make(suite.load(str(file)))
    trials, streams = made.trials, made.materials.streams()
    assert [t.key for t in trials] == [digest(t.asked) for t in trials]
    assert len({t.key for t in trials}) == len(trials)
    assert {t.asked["seed"] for t in trials} == {0, 3}
    assert all(t.asked["stream"] == streams.build(t.model, t.stream).sha256 and t.seed == t.stream.seed for t in trials)


# -- array files -------------------------------------------------------------------------------------------------------


def test_array_files_are_numpys(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "ours.npz", "wb") as stream:
        npz.write(stream, ARRAYS)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as arrays:
        assert equal(dict(arrays), ARRAYS)
    with zipfile.ZipFile(tmp_path / "ours.npz") as archive:
        assert archive.testzip() is None
    np.savez(tmp_path / "numpys.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "compressed.npz", **ARRAYS)
    for name in ("ours", "numpys", "compressed"):
        assert equal(npz.read(tmp_path / f"{name}.npz"), ARRAYS), name
    assert list(npz.read(tmp_path / "ours.npz", lambda name: name.startswith("images/"))) == list(ARRAYS)[1:3]


def test_python_objects_are_not_written() -> None:
    with pytest.raises(ValueError, match="x holds Python objects"):
        npz.write(io.BytesIO(), {"x": np.array([object()])})


def test_a_torn_array_file_is_refused_and_no_changed_value_is_read(tmp_path: pathlib.Path) -> None:
    stream, file = io.BytesIO(), tmp_path / "damaged.npz"
    npz.write(stream, ARRAYS)
    whole = stream.getvalue()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        with pytest.raises((EOFError, ValueError, zipfile.BadZipFile)):
            npz.read(file)
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = npz.read(file)
        except (EOFError, ValueError, zipfile.BadZipFile, NotImplementedError):
            continue
        assert equal(found, {name: ARRAYS[name] for name in found}), f"byte {place}"


TABLE_FILES = [f"{name}.{ending}" for name in schema.TABLES for ending in ("csv", "parquet")]

# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(suite_file: SuiteFile, tmp_path: pathlib.Path) -> pathlib.Path:
    """Two methods, two shifts, two seeds; trials 1 and 5 have a statistic, 2 failed, 3 was skipped, 4 is missing."""
    made = plan.make(suite.load(str(suite_file(("seeds: [0]", "seeds: [0, 1]")))))
    (tmp_path / "run").mkdir()
    results.write_plan(tmp_path / "run", made)
    for number, trial in enumerate(made.trials):
        if number == 4:
            continue
        result = canned(trial, batches=3)
        if number in (1, 5):
            [row] = result.segments
            arrays = {**result.batches, "stat_taken": np.array([1.0, np.nan, number])}
            result = dataclasses.replace(result, segments=[{**row, "stat_taken": 0.5}], batches=arrays)
        elif number in (2, 3):
            result = TrialResult(trial.key, "failed" if number == 2 else "skipped", "for a reason")
        results.write(tmp_path / "run", result, trial.asked, session=0)
    return tmp_path / "run"


def test_a_row_for_every_trial_whatever_became_of_it(run: pathlib.Path) -> None:
    loaded = results.load(run)
    for name, columns in schema.TABLES.items():
        statistics = [] if name == "shifts" else ["stat_taken"]
        assert [*loaded.tables[name]] == [*(c.name for c in columns), *statistics]
        assert [str(loaded.tables[name][c.name].dtype) for c in columns] == [c.dtype for c in columns]
    segments, shifts = loaded.segments, loaded.shifts
    for table in (segments, shifts):
        assert table["status"].tolist() == ["ok", "ok", "failed", "skipped", "missing", "ok", "ok", "ok"]
        assert table["images"].isna().tolist() == [status != "ok" for status in table["status"]]
        assert table["segment"].tolist() == ["clean", "contrast-5"] * 4
    assert segments["stat_taken"].fillna(-1).tolist() == [-1, 0.5, -1, -1, -1, 0.5, -1, -1]
    assert shifts["shift"].tolist() == ["clean", "contrast-5"] * 4


def test_the_online_curve_is_that_of_each_trial_alone(run: pathlib.Path) -> None:
    loaded = results.load(run)
    curve = loaded.batches
    ok = [t for t, status in zip(loaded.plan["trials"], loaded.segments["status"], strict=True) if status == "ok"]
    assert curve["key"].tolist() == [t["key"] for t in ok for _ in range(3)]
    assert (curve["images_seen"] == curve.groupby("key", sort=False)["images"].cumsum()).all()
    for trial in ok:
        with np.load(run / "trials" / f"{trial['key']}.npz") as arrays:
            correct = arrays["images/correct"].reshape(3, -1)
            taken = arrays["batches/stat_taken"] if "batches/stat_taken" in arrays else np.full(3, np.nan)
        mine = curve[curve["key"] == trial["key"]]
        assert mine["error_pct"].tolist() == (100.0 * (1.0 - correct.sum(1) / correct.shape[1])).tolist()
        assert mine["running_error_pct"].iloc[-1] == 100.0 * (1.0 - correct.sum() / correct.size)
        assert np.array_equal(mine["stat_taken"], taken, equal_nan=True)
        assert {(row.label, row.model, row.seed, row.segment) for row in mine.itertuples()} == {
            (trial["label"], trial["model"], trial["seed"], trial["shifts"][0][2])
        }
    assert curve["adapt_images"].isna().all()


def test_torn_and_foreign_trial_files_count_as_missing_and_stale(run: pathlib.Path) -> None:
    keys = [t["key"] for t in results.load(run).plan["trials"]]
    file = run / "trials" / f"{keys[0]}.json"
    file.write_text(file.read_text()[:100])
    other = json.loads((run / "trials" / f"{keys[1]}.json").read_text())
    (run / "trials" / f"{keys[1]}.json").write_text(json.dumps({**other, "schema_version": 0}))
    (run / "trials" / "nobody.json").write_text("{}")
    assert results.load(run).segments["status"].tolist()[:3] == ["missing", "missing", "failed"]
    assert list(results.statuses(run, keys)) == [keys[i] for i in (2, 3, 5, 6, 7)]
    assert results.load(run).stale == 1


def test_a_record_on_disk_says_what_was_asked(run: pathlib.Path) -> None:
    for trial in results.load(run).plan["trials"]:
        file = run / "trials" / f"{trial['key']}.json"
        if file.exists():
            assert digest(json.loads(file.read_text())["asked"]) == trial["key"]


def test_tables_on_disk_are_those_in_memory(run: pathlib.Path) -> None:
    loaded = results.load(run)
    results.write_tables(loaded)
    for name, frame in loaded.tables.items():
        read = pd.read_parquet(run / f"{name}.parquet")
        pd.testing.assert_frame_equal(read, frame, check_dtype=False, check_exact=True)


def test_tables_made_in_a_process_of_their_own_are_the_same(run: pathlib.Path) -> None:
    def made(make: Callable[[pathlib.Path], conclusion.Outcome]) -> tuple[conclusion.Outcome, dict[str, bytes]]:
        outcome = make(run)
        files = {name: (run / name).read_bytes() for name in TABLE_FILES}
        for name in files:
            (run / name).unlink()
        return outcome, files

    (run / "trials" / "nobody.json").write_text("{}")
    outcome, files = made(conclusion.here)
    assert made(conclusion.apart) == (outcome, files)
    keys = [t["key"] for t in results.load(run).plan["trials"]]
    assert outcome == conclusion.Outcome(
        {"ok": 5, "failed": 1, "skipped": 1, "missing": 1}, 1, [(keys[2], "for a reason")], []
    )


def test_only_the_tables_of_a_large_run_are_made_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conclusion, "here", lambda run: "here")
    monkeypatch.setattr(conclusion, "apart", lambda run: "apart")
    found = [conclusion.conclude(pathlib.Path(), trials) for trials in (1, conclusion.APART - 1, conclusion.APART)]
    assert found == ["here", "here", "apart"]


def test_a_process_for_tables_that_fails_says_so(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"makes the tables of .* ended with 1"):
        conclusion.apart(tmp_path)


@pytest.mark.parametrize("conclude", [conclusion.here, conclusion.apart])
def test_damaged_arrays_are_named_at_the_end_of_a_run(
    run: pathlib.Path, conclude: Callable[[pathlib.Path], conclusion.Outcome]
) -> None:
    before = conclude(run)
    victim = run / "trials" / f"{results.load(run).plan['trials'][0]['key']}.npz"
    victim.write_bytes(victim.read_bytes()[:100])
    after = conclude(run)
    assert (before.damaged, before.counts.get("missing", 0)) == ([], 1)
    assert [victim.stem in damage for damage in after.damaged] == [True]
    assert after.counts["missing"] == 2


def test_a_driver_imports_no_pandas_and_tables_need_no_torch() -> None:
    code = "import sys, {}; sys.exit('{}' in sys.modules)"
    for modules, spared in (
        ("tta_bench.commands.run, tta_bench.schedule.pool, tta_bench.commands.status", "pandas"),
        ("tta_bench.store.results", "torch"),
    ):
        assert subprocess.run([sys.executable, "-c", code.format(modules, spared)], check=False).returncode == 0, spared


# -- several trials at once --------------------------------------------------------------------------------------------


def test_trials_written_together_are_those_written_one_by_one(suite_file: SuiteFile, tmp_path: pathlib.Path) -> None:
    trials = plan.make(suite.load(str(suite_file()))).trials
    made = [(canned(trial, batches=3), trial.asked) for trial in trials]
    records.write_all(tmp_path / "together", made, session=0)
    for result, asked in made:
        records.write(tmp_path / "single", result, asked, session=0)
    together, single = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "trials").iterdir()}
        for name in ("together", "single")
    )
    assert together == single
    assert set(together) == {f"{trial.key}.{kind}" for trial in trials for kind in ("npz", "json")}


def test_where_one_of_several_cannot_be_written_none_is(
    suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = plan.make(suite.load(str(suite_file()))).trials
    made = [(canned(trial, batches=3), trial.asked) for trial in trials]
    steps, sync = list[int](), files.os.fsync

    def full(number: int) -> None:
        steps.append(number)
        if len(steps) == 3:
            raise OSError("no space left")
        sync(number)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        records.write_all(tmp_path, made, session=0)
    assert list((tmp_path / "trials").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": {"x": np.array([object()])}}, "Python objects"),
        ({"facts": {"checkpoint": pathlib.Path("x"), "trial_s": 1.0}}, "checkpoint is PosixPath('x'), no str"),
        ({"facts": {"needs_min_batch": 2.5, "trial_s": 1.0}}, "needs_min_batch is 2.5, no int"),
        ({"segments": [{"position": "first"}]}, "segments[0].position is 'first', no int"),
        ({"shifts": [1]}, "shifts[0] is no mapping"),
        ({"environment": {"pid": "a process", "host": "node"}}, "environment.pid is 'a process', no int"),
    ],
)
def test_a_result_that_no_record_can_hold_is_a_failed_one_and_the_others_are_written(
    suite_file: SuiteFile, tmp_path: pathlib.Path, change: dict[str, Any], said: str
) -> None:
    trials = plan.make(suite.load(str(suite_file()))).trials
    made = [(canned(trial, batches=3), trial.asked) for trial in trials]
    broken = dataclasses.replace(made[2][0], **change)
    written = records.write_all(tmp_path, [*made[:2], (broken, made[2][1]), made[3]], session=0)
    assert [result.status for result in written] == ["ok", "ok", "failed", "ok"]
    assert [result is given for result, (given, _) in zip(written, made, strict=True)] == [True, True, False, True]
    record = records.read(tmp_path, broken.key)
    assert record is not None
    assert record["reason"] == written[2].reason
    assert record["reason"].startswith("the result cannot be recorded: ")
    assert said in record["reason"]
    assert (record["segments"], record["shifts"], record["facts"]["failure"]) == ([], [], "method")
    assert "trial_s" in record["facts"], "what is sound is kept"
    assert "pid" not in record["environment"] or type(record["environment"]["pid"]) is int


def test_every_array_is_on_disk_before_a_result_counts(
    suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No JSON, whose rename makes a result count, before all arrays are flushed and renamed; nothing renamed unflushed."""
    trials = plan.make(suite.load(str(suite_file()))).trials
    steps, sync, rename = list[str](), files.os.fsync, pathlib.Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (steps.append("fsync"), sync(number)))
    monkeypatch.setattr(
        pathlib.Path, "replace", lambda path, to: (steps.append(pathlib.Path(to).suffix), rename(path, to))
    )
    records.write_all(tmp_path, [(canned(t, batches=1), t.asked) for t in trials], session=0)
    assert steps == ["fsync"] * 4 + [".npz"] * 4 + ["fsync"] * 4 + [".json"] * 4
