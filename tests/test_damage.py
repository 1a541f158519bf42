"""Damaged and foreign files in a run's folder: named, left out or refused; never a traceback, never another number."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import DIGITS_SUITE, Outcome, run_locally
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import reseal

from tta_bench import cli, load_results, preparation
from tta_bench.errors import UsageError
from tta_bench.store import documents, results

Cli = Callable[..., Outcome]
LOCAL = ("--executor", "local", "--cpus-per-trial", 1)


class Finished(NamedTuple):
    """A finished run, its tables, and the names of its files."""

    path: pathlib.Path
    suite: pathlib.Path
    results: results.Results
    files: list[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> Finished:
    """Two methods, clean and contrast."""
    root = tmp_path_factory.mktemp("finished")
    (root / "small.yaml").write_text(DIGITS_SUITE.replace("max_images: 100", "max_images: 40"))
    run = run_locally(root / "small.yaml", root / "run", cache)
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return Finished(run, root / "small.yaml", results.load(run), files)


@pytest.fixture
def run(finished: Finished, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(finished.path, tmp_path / "run")


def trial_file(finished: Finished, suffix: str = ".json") -> str:
    return f"trials/{finished.results.plan['trials'][1]['key']}{suffix}"


def same(loaded: results.Results, finished: Finished) -> None:
    """Every result is there, bit for bit."""
    for name in ("segments", "shifts"):
        tables = [results.result_columns(each.tables[name]) for each in (loaded, finished.results)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def replaced_by_a_folder(file: pathlib.Path) -> None:
    file.unlink()
    file.mkdir()


def with_its_middle_flipped(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


CONTENTS = {"empty": b"", "a list": b"[]", "null": b"null", "an empty object": b"{}", "a number": b"3", "text": b'"x"',
            "binary": bytes(range(256)), "deep": b"[" * 100_000, "many digits": b"1" * 5000, "a BOM": b"\xff\xfe[\0]\0"}  # fmt: skip
FAULTS: dict[str, Callable[[pathlib.Path], Any]] = {
    **{name: lambda file, content=content: file.write_bytes(content) for name, content in CONTENTS.items()},  # type: ignore[misc]
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "flipped": with_its_middle_flipped,
    "a folder": replaced_by_a_folder,
}


FEW = ("a list", "flipped", "a folder")  # the others take long: make faults
ALL = [pytest.param(name, marks=[] if name in FEW else pytest.mark.faults) for name in [*FAULTS, "missing"]]
EXCEPT_MISSING = ALL[:-1]


# -- each file, each fault ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", EXCEPT_MISSING)
@pytest.mark.parametrize("name", ["plan.json", "run.json"])
def test_commands_that_read_a_damaged_plan_or_list_of_sessions_name_it_and_end(
    run: pathlib.Path, run_cli: Cli, finished: Finished, name: str, fault: str
) -> None:
    FAULTS[fault](run / name)
    refused = [("report", run, "--format", "md"), ("merge", run, finished.path, "--out", "merged")]
    for command in refused + ([("status", run)] if name == "plan.json" else []):
        outcome = run_cli(*command)
        assert (outcome.code, outcome.err.count("problem")) == (2, 1), outcome.err
        assert f"{run / name}: " in outcome.err
    with pytest.raises(UsageError, match=name):
        load_results(run)
    if name == "run.json":
        assert "4 of 4 trials" in run_cli("status", run).out


@pytest.mark.parametrize("fault", ALL)
@pytest.mark.parametrize("name", ["status.json", "tables.json", "shifts.parquet", "lock"])
def test_files_that_only_help_are_done_without(
    run: pathlib.Path, run_cli: Cli, finished: Finished, name: str, fault: str
) -> None:
    (run / name).unlink() if fault == "missing" else FAULTS[fault](run / name)
    same(results.load(run), finished)
    outcome = run_cli("status", run)
    assert outcome.code == 0, outcome.err
    assert "4 of 4 trials: 4 ok" in outcome.out
    told = "its state is not known: " + str(run / name) if fault != "missing" else "has not run a trial yet"
    assert (told in " ".join(outcome.out.split())) == (name == "status.json")


@pytest.mark.parametrize("fault", EXCEPT_MISSING)
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_a_damaged_trial_is_named_and_the_others_stand(
    run: pathlib.Path, run_cli: Cli, finished: Finished, suffix: str, fault: str
) -> None:
    FAULTS[fault](run / trial_file(finished, suffix))
    key = finished.results.plan["trials"][1]["key"]
    shown, told = run_cli("status", run), run_cli("report", run, "--format", "md")
    assert (shown.code, told.code) == (0, 0)
    assert f"damaged, counted as not run: {run}/trials/{key}" in shown.out
    assert f"damaged, and left out: {run}/trials/{key}" in told.err
    shifts = load_results(run)
    assert shifts["status"].tolist() == ["ok", "missing", "ok", "ok"]
    assert shifts["error_pct"].dropna().tolist() == finished.results.shifts["error_pct"].drop(1).tolist()


def test_a_link_to_nowhere_is_a_damaged_trial(run: pathlib.Path, run_cli: Cli, finished: Finished) -> None:
    file = run / trial_file(finished)
    file.unlink()
    file.symlink_to(file)
    outcome = run_cli("report", run, "--format", "md")
    assert outcome.code == 0
    assert str(file).removesuffix(".json") in outcome.err


@pytest.mark.parametrize("name", ["plan.json", "run.json", "status.json", "tables.json", "trials", "logs", "lock"])
@pytest.mark.parametrize("fault", ALL)
def test_run_rebuilds_what_it_can(run: pathlib.Path, run_cli: Cli, finished: Finished, name: str, fault: str) -> None:
    """A trial is run again; what is in a file's place and no file is never replaced."""
    name = {"trials": trial_file(finished), "logs": trial_file(finished, ".log").replace("trials", "logs")}.get(
        name, name
    )
    (run / name).unlink() if fault == "missing" else FAULTS[fault](run / name)
    outcome = run_cli("run", finished.suite, "--out", run, *LOCAL)
    if fault == "a folder":
        assert (outcome.code, (run / name).is_dir()) == (2, True), outcome.err
        assert str(run / name) in outcome.err
        return
    assert outcome.code == 0, outcome.err
    again = int(name.startswith("trials"))
    assert f"{4 - again} finished, {again} to run" in outcome.err
    assert (f"{run / name} is damaged" in outcome.err) == (fault != "missing" and name in ("plan.json", "run.json"))
    same(results.load(run), finished)
    assert run_cli("status", run).code == 0
    assert "4 finished, 0 to run" in run_cli("run", finished.suite, "--out", run, *LOCAL).err


def test_sessions_that_are_lost_keep_their_numbers(run: pathlib.Path, run_cli: Cli, finished: Finished) -> None:
    """A new session must not pass for the one that ran the old trials."""
    (run / "run.json").write_text("torn")
    assert run_cli("run", finished.suite, "--out", run, *LOCAL).code == 0
    lost, new = documents.sessions(run)
    assert (lost["session"], lost["tta_bench"], lost["packages"]["torch"]) == (0, "unknown", "unknown")
    assert (new["session"], new["command"][:2]) == (1, ["tta-bench", "run"])
    assert (run / "run.json.damaged").read_text() == "torn"
    assert set(load_results(run, table="segments")["session"]) == {0}
    assert run_cli("merge", run, finished.path, "--out", "merged").code == 0
    report = run_cli("report", run, "--format", "html")
    assert report.code == 0, report.err


def test_a_newer_versions_files_are_refused_and_left(run: pathlib.Path, run_cli: Cli, finished: Finished) -> None:
    for name in ("plan.json", "run.json", trial_file(finished)):
        content = json.loads((run / name).read_text())
        changed = json.dumps({**content, "schema_version": 99})
        (run / name).write_text(changed)
        outcome = run_cli("run", finished.suite, "--out", run, *LOCAL)
        assert outcome.code == 2
        assert f"{name}: written by a newer tta-bench" in outcome.err
        assert (run / name).read_text() == changed
        (run / name).write_text(json.dumps(content))


def test_another_runs_plan_takes_no_result_away_unseen(
    run: pathlib.Path, run_cli: Cli, finished: Finished, tmp_path: pathlib.Path
) -> None:
    content = documents.plan(run)
    for number, trial in enumerate(content["trials"]):
        trial["key"] = f"{number:064}"
    documents.write(run / "plan.json", content)
    outcome = run_cli("report", run, "--format", "md")
    assert outcome.code == 0
    assert "4 trial files of an earlier plan, left out here" in (run / "report" / "errors.md").read_text()


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [("family", "\ud800", "half a character"), ("calibration_gaps", [0.0, "x"], "shifts[0].calibration_gaps is"),
     ("images", 10**30, "shifts[0].images is 1000"), ("shift", "fog-5", "its rows are not those that plan.json has")],
)  # fmt: skip
def test_a_record_that_no_table_can_hold_is_named(
    run: pathlib.Path, run_cli: Cli, finished: Finished, fact: str, value: object, message: str
) -> None:
    """Its checksum is right: it was not damaged, but written otherwise."""
    record = json.loads((run / trial_file(finished)).read_text())
    record["shifts"][0][fact] = value
    (run / trial_file(finished)).write_text(json.dumps(record))
    reseal(run / trial_file(finished))
    outcome = run_cli("report", run, "--format", "md", "--verify")
    assert outcome.code in (2, 3)
    assert trial_file(finished) in outcome.err
    assert message in outcome.err


def test_a_prepared_file_that_is_damaged_is_made_again(tmp_path: pathlib.Path) -> None:
    """Truncated, changed or another's; one without a digest, of an earlier version, is believed."""
    said = list[str]()

    def make(out: pathlib.Path, say: Callable[[str], None]) -> str:
        out.write_text("made")
        return "done"

    job = preparation.Preparation("job", {"seed": 0}, ".txt", make)
    preparation.finish([job], tmp_path, said.append)
    file = preparation.results({"job": job}, tmp_path)["job"]
    assert preparation.waiting([job], tmp_path) == preparation.damaged(tmp_path) == []
    for content in ("mad", "made ", "nade"):
        file.write_text(content)
        assert preparation.damaged(tmp_path) == [file]
        assert preparation.results({"job": job}, tmp_path) == {}
        said.clear()
        preparation.finish([job], tmp_path, said.append)
        assert said[0] == f"damaged, and made again: {file}"
        assert file.read_text() == "made"
    file.with_name(file.name + ".sha256").unlink()
    file.write_text("old")
    assert preparation.results({"job": job}, tmp_path) == {"job": file}


# -- a random search ---------------------------------------------------------------------------------------------------

VALUES = [None, True, -1, 3, 10**400, 2**63, 0.5, float("nan"), float("inf"), "", "x", "../../x", "\ud800", "z" * 5000,
          [], {}, [[]], {"x": 1}, [1, "x", None]]  # fmt: skip


class Damage(NamedTuple):
    """What was done to which file; ``resealed``: its checksum was made anew or taken out, so that it is no damage."""

    file: str
    how: str
    resealed: bool = False


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a JSON document with each of its keys."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from places(node[key])


def mutate(draw: Callable[..., Any], content: Any) -> str:
    """Change a JSON document in a place."""
    every = [*places(content)]
    node, key = every[draw(st.integers(0, len(every) - 1))]
    how = draw(st.sampled_from(["replaced", "deleted", "added", "moved"]))
    if how == "deleted":
        del node[key]
    elif how == "added" and isinstance(node, dict):
        node["unknown"] = draw(st.sampled_from(VALUES))
    elif how == "moved":
        other, place = every[draw(st.integers(0, len(every) - 1))]
        node[key] = copy.deepcopy(other[place])
    else:
        node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return f"{how} {key!r}: {node!r:.80}"


def damage(draw: Callable[..., Any], run: pathlib.Path, files: Sequence[str]) -> Damage:
    """Damage a file of a run."""
    written = [name for name in files if name.endswith(".json") and name != "status.json"]
    name = draw(st.sampled_from([*files, "status.json", *3 * [*written, "plan.json"]]))
    file = run / name
    ways = ["flips", "cut", "content", "swap", "folder", "missing"] + ["json", "resealed"] * 3 * name.endswith(".json")
    how = draw(st.sampled_from(ways))
    content = bytearray(file.read_bytes())
    if how == "flips":
        for _ in range(draw(st.integers(1, 3)) if content else 0):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif how == "content":
        file.write_bytes(draw(st.sampled_from([*CONTENTS.values()])))
    elif how == "swap":
        other = draw(st.sampled_from(files))
        file.write_bytes((run / other).read_bytes())
        (run / other).write_bytes(content)
        return Damage(f"{name} {other}", how)
    elif how in ("folder", "missing"):
        file.unlink()
        file.mkdir() if how == "folder" else None
    else:
        document = json.loads(content)
        how = f"{how}, {mutate(draw, document)}"
        if how.startswith("resealed") and isinstance(document, dict) and not name.startswith("trials"):
            document.pop("checksum", None)
        file.write_text(json.dumps(document))
        if how.startswith("resealed") and name.startswith("trials"):
            reseal(file)
    return Damage(name, how, how.startswith("resealed"))


def call(*arguments: object) -> tuple[int, str]:
    """(exit code, output) of a command; anything but a refusal is raised."""
    outcome = CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])
    if isinstance(outcome.exception, UsageError):
        return 2, str(outcome.exception)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def check(data: st.DataObject, finished: Finished) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, merged = shutil.copytree(finished.path, pathlib.Path(folder, "run")), pathlib.Path(folder, "merged")
        done = damage(data.draw, run, finished.files)
        command = data.draw(st.sampled_from(["report", "status", "merge", "load"]))
        if command == "load":
            loaded(run, finished, done)
        elif command == "merge":
            code, output = call("merge", run, finished.path, "--out", merged)
            assert code in (0, 2, 3), output
            if code == 0 and not done.resealed:
                same(results.load(merged), finished)
        elif command == "report":
            code, output = call("report", run, "--format", "md", "--verify", "--reference")
            assert code in (0, 2, 3), output
        else:
            code, output = call("status", run)
            assert code in (0, 2), output


def loaded(run: pathlib.Path, finished: Finished, done: Damage) -> None:
    """Each trial's numbers are the old ones, or it is missing and its file is named."""
    if done.resealed or "plan.json" in done.file or "run.json" in done.file:
        with contextlib.suppress(UsageError):
            load_results(run)
        return
    now = results.load(run)
    before = finished.results.shifts.set_index("key")
    for row in now.shifts.itertuples():
        if row.status == "missing":
            assert str(row.key) in done.file
            assert any(str(row.key) in text for text in now.damaged) or done.how in ("missing", "swap")
        else:
            assert row.error_pct == before.loc[str(row.key), "error_pct"]


QUIET = settings(deadline=None, database=None, suppress_health_check=[*HealthCheck])


@settings(QUIET, max_examples=30, derandomize=True)
@given(data=st.data())
def test_no_damage_ends_a_command_in_a_traceback_or_changes_a_number(finished: Finished, data: st.DataObject) -> None:
    check(data, finished)


@pytest.mark.faults
@settings(QUIET, max_examples=600)
@given(data=st.data())
def test_no_damage_of_many_does(finished: Finished, data: st.DataObject) -> None:
    check(data, finished)
