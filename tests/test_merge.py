"""Joining runs: what of which run counts, what is refused, and what is said to be missing."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest
from conftest import DIGITS_SUITE, Outcome
from merging import changed, frozen, keys, record, replanned

from tta_bench import suite
from tta_bench.store import results, rundir, schema
from tta_bench.suite import plan

Cli = Callable[..., Outcome]
Copy = Callable[..., pathlib.Path]

# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts", [("seed1", "seed0"), ("source", "tent"), ("tent", "source"), ("seed0", "tent", "seed1")]
)
def test_parts_join_to_the_same_bits_as_one_run(run_cli: Cli, part_runs: pathlib.Path, parts: tuple[str, ...]) -> None:
    before = frozen(*(part_runs / part for part in parts))
    outcome = run_cli("merge", *(part_runs / part for part in parts), "--out", "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{pathlib.Path('out').absolute()}\n"
    joined, whole = results.load(pathlib.Path("out")), results.load(part_runs / "whole")
    for name in ("segments", "shifts"):
        tables = [results.result_columns(getattr(loaded, name)) for loaded in (joined, whole)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert [t["key"] for t in joined.plan["trials"]] == [t["key"] for t in whole.plan["trials"]]
    kept = ["label", "seed", "segment", "images_seen", "running_error_pct"]
    pd.testing.assert_frame_equal(joined.batches[kept], whole.batches[kept])
    costs = [c.name for c in schema.SEGMENTS if c.kind in ("cost", "origin")]
    tables = [pd.read_parquet(f"{name}/segments.parquet").drop(columns=costs) for name in ("out", part_runs / "whole")]
    pd.testing.assert_frame_equal(*tables)
    assert len(pd.read_parquet("out/batches.parquet")) == len(whole.batches)
    assert all(pathlib.Path("out", log).is_file() for log in joined.segments["log"])
    assert before == frozen(*(part_runs / part for part in parts)), "the runs are left as they are"


def test_a_plan_joined_with_itself_keeps_its_order(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    shuffled = part_copy("whole", "shuffled")

    def shuffle(content: dict[str, Any]) -> None:
        """As of a suite with methods [tent, source], seeds [1, 0], corruptions [contrast, clean]."""
        content["trials"].reverse()

    replanned(shuffled, shuffle)
    assert run_cli("merge", shuffled, part_copy("whole"), "--out", "out").code == 0
    assert json.loads(pathlib.Path("out/plan.json").read_text())["trials"] == json.loads(
        (shuffled / "plan.json").read_text())["trials"], "the first run's order, though another has another"  # fmt: skip


WIDE = DIGITS_SUITE.replace("[source, tent]", "[tent, source, norm]").replace("[clean, contrast]", "[fog, clean, snow]")


@pytest.mark.parametrize("order", ["cba", "bca"])
@pytest.mark.parametrize(
    ("protocol", "trials"), [("{kind: reset, adapt_images: [80, 40, all]}", 180), ("{kind: continual}", 24)]
)
def test_parts_of_a_plan_join_in_the_suites_order(
    run_cli: Cli, tmp_path: pathlib.Path, protocol: str, trials: int, order: str
) -> None:
    second = WIDE[WIDE.index("  - name") : WIDE.index("methods:")].replace("resnet_bn", "again", 1)
    text = WIDE.replace("methods:", f"{second}methods:").replace("[5]", "[3, 5]").replace("seeds: [0]", "seeds: [1, 3]")
    (tmp_path / "wide.yaml").write_text(f"{text}protocol: {protocol}\n")
    results.write_plan(tmp_path, plan.make(suite.load(str(tmp_path / "wide.yaml"))))
    whole = json.loads((tmp_path / "plan.json").read_text())
    assert len(whole["trials"]) == trials
    parts: dict[str, Callable[[dict[str, Any]], bool]] = {
        "c": lambda t: t["seed"] == 3,
        "b": lambda t: t["model"] == "again" and t["label"] != "source",
        "a": lambda t: max(severity for _, severity, _ in t["shifts"]) == 3 or t["label"] == "tent",
        "all": lambda t: t["seed"] == 1,
    }
    for name, wanted in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.json").write_text(
            json.dumps({**whole, "trials": [t for t in whole["trials"] if wanted(t)]})
        )
        (tmp_path / name / "run.json").write_text(
            json.dumps({"schema_version": results.SCHEMA_VERSION, "sessions": []})
        )
    assert run_cli("merge", *order, "all", "--out", "out").code == 3
    assert json.loads(pathlib.Path("out/plan.json").read_text())["trials"] == whole["trials"]


def test_every_row_still_says_which_session_ran_it(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    first = part_copy("seed0", "first")
    content = json.loads((first / "run.json").read_text())
    content["sessions"].append({**content["sessions"][0], "session": 1, "host": "elsewhere"})
    (first / "run.json").write_text(json.dumps(content))
    moved = keys(first, "tent")[0]
    changed(first, moved, session=1)
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


def test_a_joined_run_is_run_on_and_reported_like_any_other(
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


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_planned_trials_without_a_result_are_listed(run_cli: Cli, part_runs: pathlib.Path) -> None:
    outcome = run_cli("merge", part_runs / "source", part_runs / "seed0", "--out", "out")
    assert outcome.code == 3
    assert "missing 2 of 8:\n  tent · resnet_bn: 2 (clean seed 1, contrast-5 seed 1)\n" in outcome.err
    assert "small: 6 ok, 2 missing" in outcome.err


def test_a_suite_says_what_no_run_ever_planned(run_cli: Cli, part_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wider = tmp_path / "wider.yaml"
    text = (part_runs / "small.yaml").read_text()
    wider.write_text(text.replace("[source, tent]", "[source, norm, tent]").replace("[5]", "[3, 4, 5]"))
    command = ("merge", part_runs / "seed1", part_runs / "seed0")
    assert run_cli(*command, "--out", "narrow").code == 0
    outcome = run_cli(*command, "--out", "wide", "--suite", wider)
    assert outcome.code == 3
    assert "missing 16 of 24:" in outcome.err
    assert "  norm · resnet_bn: 8 (clean seed 0, contrast-3 seed 0, contrast-4 seed 0, contrast-5 seed 0, clean seed 1, …)" in outcome.err  # fmt: skip
    assert "  tent · resnet_bn: 4 (contrast-3 seed 0, contrast-4 seed 0, contrast-3 seed 1, contrast-4 seed 1)" in outcome.err  # fmt: skip
    segments = results.load(pathlib.Path("wide")).segments
    assert segments["label"].tolist() == ["source"] * 8 + ["norm"] * 8 + ["tent"] * 8, "in the suite's order"
    assert segments["segment"].tolist() == ["clean", "contrast-3", "contrast-4", "contrast-5"] * 6


def test_a_suite_that_now_asks_otherwise_is_said(run_cli: Cli, part_runs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = (part_runs / "small.yaml").read_text()
    (tmp_path / "now.yaml").write_text(text.replace("tent]", "{name: tent, config: {lr: 0.5}}]"))
    outcome = run_cli("merge", part_runs / "seed1", part_runs / "seed0", "--out", "out", "--suite", "now.yaml")
    assert outcome.code == 0, outcome.err
    assert (
        "4 trials were run with other code, weights, data or hyperparameters than --suite asks for now" in outcome.err
    )
    assert results.load(pathlib.Path("out")).counts == {"ok": 8}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [("seed1", lambda plan: plan.update(suite="large"), "suite is large, and small in"),
     ("seed1", lambda plan: plan.update(all_images=True), "all_images (no --limit) is True, and False in"),
     ("limited", lambda plan: None, "the number of images is 50, and 100 in"),
     ("seed1", lambda plan: [t.update(batch_size=7) for t in plan["trials"]], "batch_size is 7, and 40 in"),
     ("seed1", lambda plan: [t["setting_values"].update(protocol="continual") for t in plan["trials"]], "protocol is continual, and reset in"),
     ("seed1", lambda plan: [t.update(dataset="D") for t in plan["trials"]], "the data of resnet_bn is D, and"),
     ("seed1", lambda plan: plan["models"]["resnet_bn"].update(weights_sha256="0" * 64), "the weights of resnet_bn is 0000"),
     ("seed1", lambda plan: plan.update(schema_version=99), "written by a newer tta-bench")],
)  # fmt: skip
def test_runs_that_are_no_parts_of_one_benchmark_are_refused(
    run_cli: Cli,
    part_runs: pathlib.Path,
    part_copy: Copy,
    name: str,
    change: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    other = part_copy(name, "other")
    replanned(other, change)
    outcome = run_cli("merge", part_runs / "seed0", other, "--out", "out", "--keep", other)
    assert outcome.code == 2
    assert str(other) in outcome.err
    assert said in outcome.err
    assert not pathlib.Path("out").exists()


def test_a_cell_asked_for_in_two_ways_is_refused_unless_one_counts(
    run_cli: Cli, part_runs: pathlib.Path, otherwise: pathlib.Path
) -> None:
    outcome = run_cli("merge", part_runs / "seed1", otherwise, "--out", "out")
    assert outcome.code == 2
    assert "2 trials were asked for in different ways" in outcome.err
    assert "tent · resnet_bn: clean seed 1\n" in outcome.err
    assert f"{part_runs / 'seed1'} and {otherwise} differ in method.config.lr (0.00025 / 0.5)\n" in outcome.err
    assert not pathlib.Path("out").exists()
    outcome = run_cli("merge", part_runs / "seed1", otherwise, "--out", "out", "--keep", otherwise)
    assert outcome.code == 0, outcome.err
    assert f"2 cells were asked for differently; kept as {otherwise} asked" in outcome.err
    joined = results.load(pathlib.Path("out"))
    assert [t["config"].get("lr") for t in joined.plan["trials"]] == [None, None, 0.5, 0.5]
    assert (joined.counts, joined.stale) == ({"ok": 4}, 0)


def test_a_row_of_two_makings_is_refused_though_no_cell_is_in_both(
    run_cli: Cli, part_runs: pathlib.Path, otherwise: pathlib.Path
) -> None:
    outcome = run_cli("merge", part_runs / "seed0", otherwise, "--out", "out")
    assert outcome.code == 2
    assert "2 trials were asked for in different ways" in outcome.err
    assert "differ in method.config.lr (0.00025 / 0.5)\n" in outcome.err
    assert not pathlib.Path("out").exists()
    outcome = run_cli("merge", part_runs / "seed0", otherwise, "--out", "out", "--keep", otherwise)
    assert outcome.code == 3
    assert f"2 trials were asked for in another way than {otherwise} asked; left out" in outcome.err
    assert "missing 2 of 8:\n  tent · resnet_bn: 2 (clean seed 0, contrast-5 seed 0)\n" in outcome.err


def test_keep_decides_only_what_its_run_asked_for(
    run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy, otherwise: pathlib.Path
) -> None:
    source, part = part_copy("source"), part_copy("otherwise", "part")
    replanned(source, lambda content: content.update(trials=[t for t in content["trials"] if t["label"] == "source"]))
    (part / "trials" / f"{keys(part, 'tent')[1]}.json").unlink()  # the other run's counts, and agrees in the rate
    cells = (
        "merge",
        part_runs / "seed1",
        otherwise,
        part_runs / "seed0",
        "--out",
        "out",
        "--keep",
        part_runs / "seed0",
    )
    rows = ("merge", part_runs / "seed0", otherwise, source, "--out", "out", "--keep", source)
    for command in (cells, rows):
        outcome = run_cli(*command)
        assert outcome.code == 2
        assert "2 trials were asked for in different ways" in outcome.err
    outcome = run_cli("merge", part, otherwise, part_runs / "seed0", "--out", "out", "--keep", part)
    assert outcome.code == 3, outcome.err
    assert f"2 trials were asked for in another way than {part} asked; left out" in outcome.err


@pytest.mark.parametrize("part", ["data", "stream", "model"])
def test_rows_over_other_data_or_weights_are_refused(
    run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy, part: str
) -> None:
    tent = part_copy("tent")
    key = keys(tent, "tent")[1]
    asked = record(tent, key)["asked"]
    changed(tent, key, asked={**asked, part: {**asked["model"], "weights_sha256": "0"} if part == "model" else "0"})
    outcome = run_cli("merge", part_runs / "source", tent, "--out", "out")
    assert outcome.code == 2
    assert "1 trial was asked for in different ways" in outcome.err
    assert "tent · resnet_bn: contrast-5 seed 0" in outcome.err
    assert f"differ in {'model.weights_sha256' if part == 'model' else part} (" in outcome.err


def test_a_folder_that_holds_a_run_is_never_written_to(run_cli: Cli, part_runs: pathlib.Path, part_copy: Copy) -> None:
    one, two, three = part_copy("seed0"), part_copy("seed1"), part_copy("whole")
    before = frozen(one, two, three)
    for target, said in ((two, "one of the runs to merge"), (three, "--out holds a run")):
        outcome = run_cli("merge", one, two, "--out", target)
        assert outcome.code == 2
        assert said in outcome.err
    assert frozen(one, two, three) == before
    (three / "plan.json").unlink()
    assert run_cli("merge", one, two, "--out", three).code == 2, "a merge that was killed left it"


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
    ("arguments", "said"),
    [(["seed0"], "merge joins two or more"), (["seed0", "./seed0"], "given twice"), (["seed0", "nowhere"], "not a whole run"),
     (["seed0", "bare"], "run.json")],
)  # fmt: skip
def test_what_is_no_set_of_runs_is_refused(run_cli: Cli, part_copy: Copy, arguments: list[str], said: str) -> None:
    part_copy("seed0")
    (part_copy("seed1", "bare") / "run.json").unlink()
    outcome = run_cli("merge", *arguments, "--out", "out")
    assert outcome.code == 2
    assert said in outcome.err
    assert not pathlib.Path("out").exists()
