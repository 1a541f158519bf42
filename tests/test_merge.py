"""Joining runs: which results are copied, which runs are refused, what is listed as missing."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Outcome, run_locally
from merging import edit_arrays, edit_record, flip_predictions, keys, planned, record, replanned, snapshot

from tta_bench.store import documents, results, rundir

Cli = Callable[..., Outcome]
Copy = Callable[..., pathlib.Path]

# -- the merged run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("seed1", "seed0"), ("tent", "source"), ("seed0", "tent", "seed1")])
def test_parts_join_to_the_same_bits_as_one_run(run_cli: Cli, part_runs: pathlib.Path, parts: tuple[str, ...]) -> None:
    before = snapshot(*(part_runs / part for part in parts))
    outcome = run_cli("merge", *(part_runs / part for part in parts), "--out", "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{pathlib.Path('out').absolute()}\n"
    joined, whole = results.load(pathlib.Path("out")), results.load(part_runs / "whole")
    for name in ("segments", "shifts"):
        tables = [results.result_columns(getattr(loaded, name)) for loaded in (joined, whole)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert results.predictions(pathlib.Path("out")) == results.predictions(part_runs / "whole")
    kept = ["label", "seed", "segment", "images_seen", "running_error_pct"]
    pd.testing.assert_frame_equal(joined.batches[kept], whole.batches[kept])
    assert len(pd.read_parquet("out/batches.parquet")) == len(whole.batches)
    assert all(pathlib.Path("out", log).is_file() for log in joined.segments["log"])
    assert before == snapshot(*(part_runs / part for part in parts)), "the runs are left as they are"


def test_every_row_still_names_the_session_that_ran_it(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    first = part_copy("seed0", "first")
    content = documents.read(first / documents.RUN, documents.Run)
    content["sessions"].append({**content["sessions"][0], "session": 1, "host": "elsewhere"})
    documents.write(first / documents.RUN, content)
    moved = keys(first, "tent")[0]
    edit_record(first, moved, session=1)
    assert run_cli("merge", first, part_runs / "seed1", "--out", "ab").code == 0
    sessions = json.loads(pathlib.Path("ab/run.json").read_text())["sessions"]
    assert [s["session"] for s in sessions] == [0, 1, 2]
    assert [s["merged_from"] for s in sessions] == [
        {"run": "first", "session": 0}, {"run": "first", "session": 1}, {"run": "seed1", "session": 0}]  # fmt: skip
    assert sessions[1]["host"] == "elsewhere"
    segments = results.load(pathlib.Path("ab")).segments
    assert set(segments[segments["key"] == moved]["session"]) == {1}
    assert set(segments[segments["seed"] == 1]["session"]) == {2}
    assert run_cli("merge", "ab", part_runs / "source", "--out", "abc").code == 0
    origins = [s["merged_from"] for s in json.loads(pathlib.Path("abc/run.json").read_text())["sessions"]]
    assert origins[2] == {"run": "ab", "session": 2, "merged_from": {"run": "seed1", "session": 0}}
    assert origins[3] == {"run": "source", "session": 0}


def test_a_merged_run_is_resumed_and_reported_like_any_other(
    run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy
) -> None:
    part = part_copy("seed1")
    for suffix in ("json", "npz"):
        (part / "trials" / f"{keys(part, 'tent')[0]}.{suffix}").unlink()
    assert run_cli("merge", part_runs / "seed0", part, "--out", "out").code == 3
    local = ("--executor", "local", "--cpus-per-trial", 1)
    outcome = run_cli("run", part_runs / "small.yaml", "--out", "out", *local)
    assert outcome.code == 0, outcome.err
    assert "7 finished, 1 to run" in outcome.err
    segments = results.load(pathlib.Path("out")).segments
    assert segments["session"].value_counts().to_dict() == {0: 4, 1: 3, 2: 1}
    assert run_cli("report", "out", "--format", "md").code == 0


def test_methods_and_models_keep_the_first_runs_order(run_cli: Cli, part_copy: Copy) -> None:
    first, second = part_copy("seed0", "first"), part_copy("seed1", "second")
    replanned(first, lambda plan: plan["trials"].reverse())
    assert run_cli("merge", first, second, "--out", "out").code == 0
    rows = [(trial["label"], trial["seed"]) for trial in planned(pathlib.Path("out"))]
    assert rows == [("tent", 0)] * 2 + [("tent", 1)] * 2 + [("source", 0)] * 2 + [("source", 1)] * 2


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_planned_trials_without_a_result_are_listed(run_cli: Cli, part_runs: pathlib.Path) -> None:
    outcome = run_cli("merge", part_runs / "source", part_runs / "seed0", "--out", "out")
    assert outcome.code == 3
    assert "missing 2 of 8:\n  tent · resnet_bn: 2 (clean seed 1, contrast-5 seed 1)\n" in outcome.err
    assert "small: 6 ok, 2 missing" in outcome.err


def test_a_suite_lists_what_no_run_has_planned(run_cli: Cli, part_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wider = tmp_path / "wider.yaml"
    text = (part_runs / "small.yaml").read_text()
    wider.write_text(text.replace("[source, tent]", "[source, norm, tent]").replace("[5]", "[3, 4, 5]"))
    command = ("merge", part_runs / "seed1", part_runs / "seed0")
    outcome = run_cli(*command, "--out", "wide", "--suite", wider)
    assert outcome.code == 3
    assert "missing 16 of 24:" in outcome.err
    assert "  norm · resnet_bn: 8 (clean seed 0, contrast-3 seed 0, contrast-4 seed 0, contrast-5 seed 0, clean seed 1, …)" in outcome.err  # fmt: skip
    assert "  tent · resnet_bn: 4 (contrast-3 seed 0, contrast-4 seed 0, contrast-3 seed 1, contrast-4 seed 1)" in outcome.err  # fmt: skip
    segments = results.load(pathlib.Path("wide")).segments
    assert segments["label"].tolist() == ["source"] * 8 + ["norm"] * 8 + ["tent"] * 8, "in the suite's order"
    assert segments["segment"].tolist() == ["clean", "contrast-3", "contrast-4", "contrast-5"] * 6
    narrow = tmp_path / "narrow.yaml"
    narrow.write_text(text.replace("[source, tent]", "[source]"))
    outcome = run_cli(*command, "--out", "narrow", "--suite", narrow)
    assert outcome.code == 0
    assert "4 trials that the suite does not ask for are left out" in outcome.err
    assert results.load(pathlib.Path("narrow")).counts == {"ok": 4}


def test_a_suite_finds_its_checkpoints_in_the_runs(
    run_cli: Cli, suite_file: Callable[..., pathlib.Path], tmp_path: pathlib.Path, cache: pathlib.Path
) -> None:
    options = "{epochs: 1, images: 8, every: 1, source_images: 40, selection_images: 20, selection_batch: 20}"
    methods = f"[source, {{name: mgg, config: {{checkpoint: {{pretrain: {options}}}}}}}]"
    file = suite_file(("[source, tent]", methods), ("[clean, contrast]", "[contrast]"))
    source = run_locally(file, tmp_path / "source", cache, only=["method=source"])
    other = shutil.copytree(source, tmp_path / "other")
    refused = run_cli("merge", source, other, "--suite", file, "--out", "refused")
    assert refused.code == 2
    assert "no run has prepared mgg-resnet_bn" in refused.err
    mgg = run_locally(file, tmp_path / "mgg", cache, only=["method=mgg"])
    outcome = run_cli("merge", source, mgg, "--suite", file, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert results.load(tmp_path / "out").counts == {"ok": 2}
    shutil.rmtree(mgg)
    resumed = run_cli("run", file, "--out", "out", "--dry-run")
    assert "2 finished, 0 to run" in resumed.err, "the checkpoint was copied, too"


# -- runs that are refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [("seed1", lambda plan: plan.update(suite="large"), "suite is large, but small in"),
     ("seed1", lambda plan: plan.update(numerics_version=99), "numerics_version is 99, but "),
     ("limited", lambda plan: None, "number of images is 50, but 100 in"),
     ("seed1", lambda plan: [t.update(protocol="continual") for t in plan["trials"]], "protocol is continual, but reset in"),
     ("seed1", lambda plan: [t.update(adapt_images=64) for t in plan["trials"]], "largest adapt_images is 64, but all in"),
     ("seed1", lambda plan: [t.update(data="D") for t in plan["trials"]], "images of resnet_bn · clean is D, but"),
     ("seed1", lambda plan: plan["models"]["resnet_bn"].update(weights_sha256="00"), "model · resnet_bn · weights_sha256 is 00"),
     ("seed1", lambda plan: [t["asked"]["method"].update(code_sha256="00") for t in plan["trials"]],
      "tent · resnet_bn · batch size 40 · code_sha256 is 00, but"),
     ("seed1", lambda plan: [t["asked"].update(source="00") for t in plan["trials"]], "source images is 00, but None in"),
     ("seed0", lambda plan: plan["trials"][3].update(key="0" * 64), "contrast-5 contrast-5 0 is 00000"),
     ("seed1", lambda plan: plan.update(schema_version=99), "written by a newer tta-bench")],
)  # fmt: skip
def test_runs_that_are_not_parts_of_one_benchmark_are_refused(
    run_cli: Cli,
    part_runs: pathlib.Path,
    part_copy: Copy,
    name: str,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    other = part_copy(name, "other")
    replanned(other, change)
    outcome = run_cli("merge", part_runs / "seed0", other, "--out", "out", "--keep", other)
    assert outcome.code == 2
    assert str(other) in outcome.err
    assert message in outcome.err
    assert not pathlib.Path("out").exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_row_of_two_learning_rates_is_refused(
    run_cli: Cli, part_runs: pathlib.Path, otherwise: pathlib.Path, seed: int
) -> None:
    """Whether they fill the same cells or not."""
    one = part_runs / f"seed{seed}"
    outcome = run_cli("merge", one, otherwise, "--out", "out")
    assert outcome.code == 2
    assert f"{otherwise}: tent · resnet_bn · batch size 40 · config · lr is 0.5, but 0.00025 in {one}" in outcome.err
    assert not pathlib.Path("out").exists()


def test_a_suite_that_asks_otherwise_is_refused(run_cli: Cli, part_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = (part_runs / "small.yaml").read_text()
    (tmp_path / "now.yaml").write_text(text.replace("tent]", "{name: tent, config: {lr: 0.5}}]"))
    outcome = run_cli("merge", part_runs / "seed1", part_runs / "seed0", "--out", "out", "--suite", "now.yaml")
    assert outcome.code == 2
    assert "config · lr is 0.00025, but 0.5 in --suite now.yaml" in outcome.err


def test_a_folder_that_holds_a_run_is_never_written_to(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    one, two, three = part_copy("seed0"), part_copy("seed1"), part_copy("whole")
    before = snapshot(one, two, three)
    for target in (two, three):
        outcome = run_cli("merge", one, two, "--out", target)
        assert outcome.code == 2
        assert "--out holds a run" in outcome.err
    assert snapshot(one, two, three) == before
    (three / "plan.json").unlink()
    assert run_cli("merge", one, two, "--out", three).code == 2, "left by a merge that was killed"


def test_a_folder_in_use_or_taken_meanwhile_is_refused(
    run_cli: Cli, part_runs: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("merge", part_runs / "seed0", part_runs / "seed1", "--out", "out")
    with rundir.locked(pathlib.Path("out")):
        outcome = run_cli(*command)
    assert outcome.code == 2
    assert "the run is in use by process" in outcome.err
    locked = rundir.locked

    @contextmanager
    def taken(run: pathlib.Path) -> Iterator[None]:
        (run / "plan.json").write_text("another's")
        with locked(run):
            yield

    monkeypatch.setattr(rundir, "locked", taken)
    assert run_cli(*command).code == 2
    assert pathlib.Path("out/plan.json").read_text() == "another's"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["seed0"], "two or more different runs"), (["seed0", "./seed0"], "two or more different runs"),
     (["seed0", "nowhere"], "not a run: it has no plan.json"), (["seed0", "bare"], "run.json")],
)  # fmt: skip
def test_folders_that_are_not_several_whole_runs_are_refused(
    run_cli: Cli, part_copy: Copy, arguments: list[str], message: str
) -> None:
    part_copy("seed0")
    (part_copy("seed1", "bare") / "run.json").unlink()
    outcome = run_cli("merge", *arguments, "--out", "out")
    assert outcome.code == 2
    assert message in outcome.err
    assert not pathlib.Path("out").exists()


# -- the same key in several runs --------------------------------------------------------------------------------------


def test_equal_predictions_agree_and_the_first_is_kept(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("whole", "other")

    def round_otherwise(arrays: dict[str, np.ndarray]) -> None:
        arrays["images/confidence"] = arrays["images/confidence"] * np.float32(1 + 1e-6)

    edit_arrays(other, keys(other, "tent")[0], round_otherwise)
    outcome = run_cli("merge", part_runs / "seed0", other, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert f"{part_runs / 'seed0'}: 4 trials\n" in outcome.err
    assert f"{other}: 4 trials\n" in outcome.err
    segments = results.load(pathlib.Path("out")).segments
    assert segments.groupby("seed")["session"].unique().map(list).to_dict() == {0: [0], 1: [1]}


def test_different_predictions_are_refused(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("whole", "other")
    flip_predictions(other, keys(other, "tent")[0], images=3)
    outcome = run_cli("merge", part_runs / "whole", other, "--out", "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert not pathlib.Path("out").exists(), "nothing is written"
    message = f"tent · resnet_bn · clean seed 0: 3 of 100 predictions differ from those in {part_runs / 'whole'}"
    assert f"{other}: {message}" in outcome.err
    assert "--keep" in outcome.err


@pytest.mark.parametrize(("keep", "session"), [("whole", 0), ("other", 1)])
def test_keep_names_the_run_whose_results_win(run_cli: Cli, part_copy: Copy, keep: str, session: int) -> None:
    whole, other = part_copy("whole"), part_copy("whole", "other")
    key = keys(other, "tent")[0]
    flip_predictions(other, key, images=3)
    outcome = run_cli("merge", whole, other, "--out", "out", "--keep", keep)
    assert outcome.code == 0, outcome.err
    assert record(pathlib.Path("out"), key)["session"] == session
    with np.load(f"out/trials/{key}.npz") as joined, np.load(f"{keep}/trials/{key}.npz") as kept:
        assert np.array_equal(joined["images/predicted"], kept["images/predicted"])


def test_keep_decides_nothing_between_two_other_runs(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    other = part_copy("seed0", "other")
    flip_predictions(other, keys(other, "tent")[0], images=3)
    command = ("merge", part_runs / "whole", other, part_runs / "seed1", "--out", "out", "--keep")
    assert run_cli(*command, part_runs / "seed1").code == 2
    outcome = run_cli(*command, "nobody")
    assert outcome.code == 2
    assert "--keep nobody is none of the runs" in outcome.err
    assert run_cli(*command, other).code == 0


METHOD = {"failure": "method"}
MACHINE = {"failure": "infrastructure"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(("failed", METHOD), ("ok", None), 1), (("skipped", {}), ("ok", None), 1), (("ok", None), ("failed", METHOD), 0),
     (("failed", MACHINE), ("failed", METHOD), 1), (("failed", MACHINE), ("skipped", {}), 1),
     (("failed", METHOD), ("skipped", {}), 0), (("failed", MACHINE), ("failed", MACHINE), 0)],
)  # fmt: skip
@pytest.mark.parametrize("keep", [[], ["--keep", "b"]])  # which decides only between failures of one kind
def test_ok_goes_before_failed_and_failures_of_a_machine_come_last(
    run_cli: Cli, part_copy: Copy, first: tuple[str, Any], second: tuple[str, Any], kept: int, keep: list[str]
) -> None:
    runs = part_copy("seed0", "a"), part_copy("seed0", "b")
    key = keys(runs[0], "tent")[0]
    for run, (status, facts) in zip(runs, (first, second), strict=True):
        if status != "ok":
            edit_record(run, key, status=status, facts=facts, reason="for a reason", segments=[], shifts=[])
    outcome = run_cli("merge", *runs, "--out", "out", *keep)
    joined = record(pathlib.Path("out"), key)
    if keep and "ok" not in (first[0], second[0]) and (first[1] == MACHINE) == (second[1] == MACHINE):
        kept = 1
    assert joined["session"] == kept
    assert joined["status"] == (first, second)[kept][0]
    assert outcome.code == (3 if joined["status"] == "failed" else 0)
    assert ("failed 1 of 4:\n  tent · resnet_bn: 1 (clean seed 0)" in outcome.err) == (joined["status"] == "failed")


# -- damaged files -----------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[pathlib.Path], Any]] = {
    "truncated json": lambda path: os.truncate(path.with_suffix(".json"), 100),
    "json list": lambda path: path.with_suffix(".json").write_text("[]"),
    "truncated npz": lambda path: os.truncate(path.with_suffix(".npz"), 100),
    "no npz": lambda path: path.with_suffix(".npz").unlink(),
    "another's": lambda path: edit_record(path.parent.parent, path.name, key="0" * 64),
    "schema version": lambda path: edit_record(path.parent.parent, path.name, schema_version=99),
    "unknown session": lambda path: edit_record(path.parent.parent, path.name, session=7),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trial_does_not_count_and_is_named(
    run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy, damage: str
) -> None:
    part = part_copy("seed0", "part")
    key = keys(part, "tent")[1]
    DAMAGES[damage](part / "trials" / key)
    alone = run_cli("merge", part, part_runs / "seed1", "--out", "alone")
    assert alone.code == 3, alone.err
    assert f"damaged, and counted as not run: {part}/trials/{key}." in alone.err
    assert "missing 1 of 8:\n  tent · resnet_bn: 1 (contrast-5 seed 0)\n" in alone.err
    assert not list(pathlib.Path("alone/trials").glob(f"{key}.*"))
    both = run_cli("merge", part, part_runs / "whole", "--out", "both")
    assert both.code == 0, both.err
    assert record(pathlib.Path("both"), key)["session"] == 1, "the other run's counts"
