"""Several short trials at a time: nothing is lost or doubled, and nobody fails for what a trial beside it does."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Outcome
from plugins import KILL_WORKER
from test_scheduler import same

from tta_bench import suite
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule import queue as order
from tta_bench.schedule.cluster import Node, Slot
from tta_bench.schedule.options import Options
from tta_bench.schedule.pool import Pool
from tta_bench.schedule.queue import Estimates
from tta_bench.schedule.worker import Place, Worker
from tta_bench.store import results
from tta_bench.suite import plan
from tta_bench.suite.plan import Plan, Trial

Cli = Callable[..., Outcome]
SuiteFile = Callable[..., pathlib.Path]
Behaviour = Callable[[Trial], TrialResult | Fault]


class Workers:
    """A cluster of one node whose workers run trials in this process; a trial that comes to a fault kills its worker."""

    def __init__(self, behaviour: Behaviour):
        self._behaviour, self._values = behaviour, dict[int, Any]()
        self.given: list[list[Trial]] = []  # at each call of a worker
        self.killed = 0

    def nodes(self) -> dict[str, Node]:
        return {"node": Node("node", "here", {"CPU": 1}, {"CPU": 1})}

    def start(self, node: Node, slot: Slot, arguments: Sequence[Any]) -> tuple[Any, int]:
        call = SimpleNamespace(remote=lambda trials: self._put(self._run(trials)))
        return SimpleNamespace(run_all=call), self._put(Place("elsewhere", 1, "cpu", "/nowhere"))

    def _run(self, trials: list[Trial]) -> list[TrialResult] | Fault:
        self.given.append(trials)
        worker = SimpleNamespace(run=self._result)
        try:
            return Worker.run_all(worker, trials)  # type: ignore[arg-type]
        except _Dies as death:
            return death.fault

    def _result(self, trial: Trial) -> TrialResult:
        value = self._behaviour(trial)
        if isinstance(value, Fault):
            raise _Dies(value)
        return value

    def prepare(self, *_: Any) -> int:
        return self._put([])

    def kill(self, worker: Any) -> None:
        self.killed += 1

    def wait(self, references: list[int], seconds: float) -> list[int]:
        return references[:1]

    def get(self, reference: int) -> Any:
        return self._values.pop(reference)

    def _put(self, value: Any) -> int:
        number = max(self._values, default=0) + 1
        self._values[number] = value
        return number


class _Dies(Exception):
    def __init__(self, fault: Fault):
        self.fault = fault


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.results: list[TrialResult] = []
        self.again: list[tuple[int, Fault]] = []
        self.running: list[int] = []

    def finished(self, ended: Sequence[tuple[Trial, TrialResult]]) -> None:
        assert all(trial.key == result.key for trial, result in ended)
        self.results += [result for _, result in ended]

    def retried(self, trials: Sequence[Trial], fault: Fault) -> None:
        self.again.append((len(trials), fault))

    def note(self, text: str) -> None: ...

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        self.running.append(running)


@pytest.fixture
def made(suite_file: SuiteFile) -> Plan:
    """Ten trials of one row."""
    file = suite_file(("[source, tent]", "[source]"), ("seeds: [0]", "seeds: [0, 1, 2, 3, 4]"))
    return plan.make(suite.load(str(file)))


def ok(trial: Trial, seconds: float = 0.01) -> TrialResult:
    return TrialResult(trial.key, "ok", facts={"trial_s": seconds})


def failed(trial: Trial, failure: str) -> TrialResult:
    return TrialResult(trial.key, "failed", "for a reason", facts={"failure": failure})


def pool(made: Plan, cluster: Workers, timeout: float | None = None) -> Pool:
    """One worker."""
    options, estimates = Options("small.yaml", cache="off", timeout=timeout, workers=1), Estimates(made.materials)
    return Pool(cluster, Slot(1, 0.0), options, (None, options, {}), None, estimates)  # type: ignore[arg-type]


def run(made: Plan, behaviour: Behaviour, timeout: float | None = None) -> tuple[Workers, Seen]:
    """Run the trials; each has exactly one result in the end."""
    cluster, seen = Workers(behaviour), Seen()
    pool(made, cluster, timeout).run(made.trials, seen)
    assert Counter(result.key for result in seen.results) == Counter(trial.key for trial in made.trials)
    assert seen.running[-1] == 0
    return cluster, seen


def sizes(cluster: Workers) -> list[int]:
    return [len(trials) for trials in cluster.given]


def test_short_trials_are_given_together_once_their_time_is_known(made: Plan) -> None:
    cluster, seen = run(made, ok)
    assert sizes(cluster) == [1, 9]
    assert {result.facts["attempts"] for result in seen.results} == {1}
    assert not seen.again
    assert not cluster.killed


def test_on_a_shared_cluster_it_waits_for_what_others_use(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, seen, notes = Workers(ok), Seen(), list[str]()

    def nodes() -> dict[str, Node]:
        """In use by others until the pool has said that it waits."""
        return {"node": Node("node", "here", {"CPU": 1}, {"CPU": 1 if notes else 0.5})}

    monkeypatch.setattr(cluster, "nodes", nodes)
    monkeypatch.setattr(seen, "note", notes.append)
    monkeypatch.setattr("tta_bench.schedule.pool.TICK_S", 0.01)
    pool(made, cluster).run(made.trials, seen)
    assert len(seen.results) == len(made.trials)
    assert ["in use by others" in note for note in notes] == [True]


def test_long_trials_are_given_one_by_one(made: Plan) -> None:
    cluster, _ = run(made, lambda trial: ok(trial, seconds=0.6))
    assert sizes(cluster) == [1] * 10


def test_together_they_take_about_a_second(made: Plan) -> None:
    cluster, _ = run(made, lambda trial: ok(trial, seconds=0.3))
    assert sizes(cluster) == [1, 3, 3, 3]


def test_what_had_ended_before_an_interrupt_is_kept(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, seen = Workers(ok), Seen()
    interrupted = pool(made, cluster)

    def ctrl_c(self: Pool) -> None:
        if len(self._ended) > 1:  # results have come back, and nobody knows of them yet
            raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "_expire", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(made.trials, seen)
    assert sizes(cluster) == [1, 9]
    assert len(seen.results) == 10


def test_with_a_timeout_each_is_given_alone(made: Plan) -> None:
    cluster, _ = run(made, ok, timeout=60.0)
    assert sizes(cluster) == [1] * 10


def test_a_killer_fails_alone(made: Plan) -> None:
    killer = made.trials[4].key
    cluster, seen = run(made, lambda t: Fault("infrastructure", "it died") if t.key == killer else ok(t))
    assert sizes(cluster) == [1, 9] + [1] * 11, "nine together, then each by itself, the killer three times"
    by_key = {result.key: result for result in seen.results}
    assert {key for key, result in by_key.items() if result.status == "failed"} == {killer}
    assert by_key[killer].facts["attempts"] == 3
    assert by_key[killer].reason == "3 attempts failed, the last: it died"
    innocent = by_key[made.trials[5].key].facts
    assert innocent["attempts"] == 1
    assert innocent["faults"] == ["shared: worker 0 on here process 1, which had 9 trials: it died"]
    assert [(count, fault.kind) for count, fault in seen.again] == [
        (9, "shared"),
        (1, "infrastructure"),
        (1, "infrastructure"),
    ]


def test_a_worker_lost_for_want_of_memory_puts_only_the_greedy_one_on_a_device_of_its_own(made: Plan) -> None:
    greedy = made.trials[4].key
    _, seen = run(made, lambda t: Fault("memory", "killed") if t.key == greedy else ok(t))
    by_key = {result.key: result for result in seen.results}
    assert {key for key, result in by_key.items() if result.status == "failed"} == {greedy}
    assert by_key[greedy].reason == "out of memory, also alone on a device: killed"
    assert by_key[greedy].facts["attempts"] == 2


@pytest.mark.parametrize("failure", ["infrastructure", "memory"])
def test_what_was_not_begun_is_given_again(made: Plan, failure: str) -> None:
    bad, before = made.trials[4].key, Counter[str]()

    def once(trial: Trial) -> TrialResult:
        before[trial.key] += 1
        return failed(trial, failure) if trial.key == bad and before[bad] == 1 else ok(trial)

    cluster, seen = run(made, once)
    assert before == {trial.key: 2 if trial.key == bad else 1 for trial in made.trials}, "none is run twice for it"
    by_key = {result.key: result for result in seen.results}
    assert {result.status for result in seen.results} == {"ok"}
    assert {key: r.facts["attempts"] for key, r in by_key.items()} == before, (
        "the attempt together counts: it is known whose"
    )
    assert [trials for trials in cluster.given if bad in {t.key for t in trials}][-1] == [made.trials[4]]
    assert cluster.killed >= 1


def test_a_methods_own_failure_ends_nothing(made: Plan) -> None:
    cluster, seen = run(made, lambda t: failed(t, "method") if t.key == made.trials[4].key else ok(t))
    assert sizes(cluster) == [1, 9]
    assert Counter(r.status for r in seen.results) == {"ok": 9, "failed": 1}


FIFTH = (
    KILL_WORKER
    + """\
import pathlib, tempfile
from tta_bench.adapter import Adapter, Config

class Fifth(Adapter):
    name = "fifth"
    class Config(Config):
        folder: str
    def setup(self):
        tempfile.mkstemp(dir=self.config.folder)
        if len(list(pathlib.Path(self.config.folder).iterdir())) == 5:
            kill_worker()
    def step(self, x):
        return self.predict(x)
"""
)


@pytest.mark.faults
def test_a_worker_killed_with_several_trials_loses_none(
    run_cli: Cli, suite_file: SuiteFile, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "TOGETHER_S", 1e6)  # however slow the machine is
    (tmp_path / "marks").mkdir()
    (tmp_path / "fifth.py").write_text(FIFTH)
    row = f"[{{name: fifth, config: {{folder: {tmp_path}/marks}}}}]"
    file = suite_file(("[source, tent]", row), ("seeds: [0]", "seeds: [0, 1, 2, 3, 4]"))
    options = ("--plugin", tmp_path / "fifth.py", "--cpus-per-trial", 1)
    outcome = run_cli("run", file, *options, "--workers", 1, "--out", tmp_path / "killed")
    assert outcome.code == 0, outcome.err
    assert "and 8 more, each by itself now: worker 0" in outcome.err
    assert outcome.err.count(" ok fifth") == 10
    segments = results.load(tmp_path / "killed").segments
    assert segments["attempts"].tolist() == [1] * 10
    assert run_cli("run", file, *options, "--executor", "local", "--out", tmp_path / "whole").code == 0
    same(tmp_path / "killed", tmp_path / "whole")
