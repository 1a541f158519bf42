"""Ray and this process give the same bits; kills lose nothing; adding a method changes nobody's rows."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import DIGITS_SUITE, Outcome, clean_environment, run_locally, wait_until
from plugins import KILL_WORKER
from runs import result_rows

from tta_bench.store import results

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]


def same(one: pathlib.Path, other: pathlib.Path) -> None:
    pd.testing.assert_frame_equal(result_rows(one), result_rows(other), check_exact=True)
    assert results.predictions(one) == results.predictions(other)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path) -> pathlib.Path:
    """The small suite, run in this process with one thread."""
    root = tmp_path_factory.mktemp("finished")
    (root / "small.yaml").write_text(DIGITS_SUITE)
    return run_locally(root / "small.yaml", root / "local", cache)


@pytest.fixture
def finished(finished_once: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Its copy, which a test may change."""
    return shutil.copytree(finished_once, tmp_path / "local")


@pytest.mark.faults
def test_ray_and_local_give_the_same_bits(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path,
                                          finished: pathlib.Path) -> None:  # fmt: skip
    outcome = run_cli("run", suite_file(), "--workers", 2, "--cpus-per-trial", 1, "--out", tmp_path / "ray")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(tmp_path / "ray")
    same(tmp_path / "ray", finished)
    segments = results.load(tmp_path / "ray").segments
    assert segments["threads"].unique().tolist() == [1]


def test_adding_a_method_changes_no_other_methods_rows(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path,
                                                       finished: pathlib.Path) -> None:  # fmt: skip
    file = suite_file(("[source, tent]", "[norm, source, tent]"))
    run_cli("run", file, "--executor", "local", "--cpus-per-trial", 1, "--out", tmp_path / "more")
    more = result_rows(tmp_path / "more")
    kept = more[more["label"] != "norm"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, result_rows(finished), check_exact=True)
    assert set(more["label"]) == {"norm", "source", "tent"}


def test_finished_trials_are_not_run_again(run_cli: Cli, suite_file: SuiteFile, finished: pathlib.Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "trials").iterdir()}
    outcome = run_cli("run", suite_file(), "--executor", "local", "--out", finished)
    assert "4 finished, 0 to run" in outcome.err
    assert {p: p.stat().st_mtime_ns for p in (finished / "trials").iterdir()} == before
    assert len(json.loads((finished / "run.json").read_text())["sessions"]) == 2


def test_a_torn_trial_file_is_run_again(run_cli: Cli, suite_file: SuiteFile, finished: pathlib.Path) -> None:
    victim = sorted((finished / "trials").glob("*.json"))[0]
    before = result_rows(finished)
    victim.write_text(victim.read_text()[:50])
    outcome = run_cli("run", suite_file(), "--executor", "local", "--cpus-per-trial", 1, "--out", finished)
    assert "3 finished, 1 to run" in outcome.err
    pd.testing.assert_frame_equal(result_rows(finished), before, check_exact=True)


SLOW = (
    KILL_WORKER
    + """\
import os, pathlib, time
from tta_bench.adapter import Adapter, Config

class Slow(Adapter):
    name = "slow"
    class Config(Config):
        folder: str
    def step(self, x):
        time.sleep(0.3)
        return self.predict(x)

class Killed(Adapter):
    name = "killed"
    class Config(Config):
        folder: str
        times: int = 1
    def step(self, x):
        marks = pathlib.Path(self.config.folder)
        if len(list(marks.iterdir())) < self.config.times:
            (marks / f"{os.getpid()}").touch()
            kill_worker()
        return self.predict(x)
"""
)


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "marks").mkdir()
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below, found = {pid}, []
    while new := {p for p, parent in parents.items() if parent in below} - below:
        below |= new
        found += list(new)
    return found


@pytest.mark.faults
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_killed_run_goes_on_where_it_was(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path,
                                           plugin: pathlib.Path, cache: pathlib.Path) -> None:  # fmt: skip
    file = suite_file(("[source, tent]", f"[source, tent, {{name: slow, config: {{folder: {tmp_path}/marks}}}}]"),
                      ("[clean, contrast]", "[clean, contrast, fog, brightness]"))  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["--plugin", str(plugin), "--cpus-per-trial", "1"]
    assert run_cli("run", file, *options, "--executor", "local", "--out", whole).code == 0
    command = [sys.executable, "-m", "tta_bench", "run", str(file), *options, "--out", str(broken)]
    driver = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(TTA_BENCH_CACHE=str(cache)),
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    wait_until(lambda: len(list((broken / "trials").glob("*.json"))) >= 4, driver)
    victims = [*descendants(driver.pid), driver.pid]
    for pid in victims:
        with_pid = pathlib.Path(f"/proc/{pid}")
        if with_pid.exists():
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    done = {p.name: p.read_bytes() for p in (broken / "trials").glob("*.json")}
    assert 4 <= len(done) < 12
    outcome = run_cli("run", file, *options, "--out", broken)
    assert outcome.code == 0, outcome.err
    assert f"{len(done)} finished, {12 - len(done)} to run" in outcome.err
    assert all((broken / "trials" / name).read_bytes() == content for name, content in done.items())
    same(broken, whole)


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_its_trial_retried(run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path,
                                                           plugin: pathlib.Path) -> None:  # fmt: skip
    dead = f"[source, {{name: killed, config: {{folder: {tmp_path}/marks, times: 2}}}}]"
    file = suite_file(("[source, tent]", dead), ("[clean, contrast]", "[contrast]"))
    outcome = run_cli("run", file, "--plugin", plugin, "--workers", 1, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = results.load(tmp_path / "out").shifts.set_index("label")["error_pct"]
    assert found["killed"] == found["source"]


@pytest.mark.faults
def test_a_worker_that_always_dies_is_a_failed_row_and_run_again(run_cli: Cli, suite_file: SuiteFile,
                                                                 tmp_path: pathlib.Path, plugin: pathlib.Path) -> None:  # fmt: skip
    dead = f"[source, {{name: killed, config: {{folder: {tmp_path}/marks, times: 3}}}}]"
    file = suite_file(("[source, tent]", dead), ("[clean, contrast]", "[contrast]"))
    outcome = run_cli("run", file, "--plugin", plugin, "--workers", 1, "--out", tmp_path / "out")
    assert outcome.code == 3, outcome.err
    failed = results.load(tmp_path / "out").segments.set_index("label").loc["killed"]
    assert failed["status"] == "failed"
    assert failed["reason"].startswith("3 attempts failed, the last: ActorDiedError")
    assert failed["attempts"] == 3
    again = run_cli(
        "run", file, "--plugin", plugin, "--workers", 1, "--out", tmp_path / "out"
    )  # no --retry-failed is needed
    assert again.code == 0, again.err
    assert "1 to run" in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--address", "ray://host:10001"], "Ray Client"), (["--address", "127.0.0.1:1"], "no Ray cluster answers"),
     (["--address", "nonsense"], "no Ray cluster answers"), (["--executor", "local", "--workers", "2"], "needs --executor ray"),
     (["--cpus-per-trial", "4000"], "no node can run a trial")],
)  # fmt: skip
def test_resources_that_cannot_be_had(run_cli: Cli, suite_file: SuiteFile, options: list[str], message: str) -> None:
    outcome = run_cli("run", suite_file(), "--out", "out", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
