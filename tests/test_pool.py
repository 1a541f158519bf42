"""The driver's loop on a fake cluster: no trial is lost or run twice, and faults are retried as documented."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tta_bench import suite
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.cluster import Node, Slot
from tta_bench.schedule.estimates import Estimates
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.pool import Pool
from tta_bench.schedule.worker import WorkerInfo
from tta_bench.suite import plan
from tta_bench.suite.plan import Plan, Trial

SuiteFile = Callable[..., pathlib.Path]
Behaviour = Callable[[Trial], TrialResult | Fault]


class FakeCluster:
    """A cluster of one node whose workers run trials in this process; a trial that returns a fault kills its worker."""

    def __init__(self, behaviour: Behaviour):
        self._behaviour, self._values = behaviour, dict[int, Any]()
        self.attempts: list[Trial] = []
        self.checks = self.started = self.killed = 0

    def nodes(self) -> dict[str, Node]:
        return {"node": Node("node", "here", {"CPU": 1}, {"CPU": 1})}

    def start(self, node: Node, slot: Slot, arguments: Sequence[Any]) -> tuple[Any, int]:
        self.started += 1
        run = SimpleNamespace(remote=lambda trial: self._put(self._run(trial)))
        return SimpleNamespace(run=run), self._put(WorkerInfo("elsewhere", self.started, "cpu", "/logs"))

    def _run(self, trial: Trial) -> TrialResult | Fault:
        self.attempts.append(trial)
        return self._behaviour(trial)

    def prepare(self, *_: Any) -> int:
        self.checks += 1
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


class RecordingObserver:
    """An observer that remembers its calls."""

    def __init__(self) -> None:
        self.results: list[TrialResult] = []
        self.retries: list[tuple[str, Fault]] = []
        self.running: list[int] = []
        self.notes: list[str] = []

    def finished(self, trial: Trial, result: TrialResult) -> None:
        assert trial.key == result.key
        self.results.append(result)

    def retried(self, trial: Trial, fault: Fault) -> None:
        self.retries.append((trial.key, fault))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        self.running.append(running)


@pytest.fixture
def ten(suite_file: SuiteFile) -> Plan:
    """A plan of ten trials of one row."""
    file = suite_file(("[source, tent]", "[source]"), ("seeds: [0]", "seeds: [0, 1, 2, 3, 4]"))
    return plan.make(suite.load(str(file)))


def ok(trial: Trial) -> TrialResult:
    return TrialResult(trial.key, "ok", facts={"trial_s": 0.01})


def failed(trial: Trial, failure: str) -> TrialResult:
    return TrialResult(trial.key, "failed", "for a reason", facts={"failure": failure})


def pool_of_one(plan: Plan, cluster: FakeCluster, timeout: float | None = None) -> Pool:
    """A pool with one worker."""
    options = RunOptions("small.yaml", cache="off", timeout=timeout, workers=1)
    return Pool(cluster, Slot(1, 0.0), options, (None, options, {}), None, Estimates(plan.materials))  # type: ignore[arg-type]


def run(plan: Plan, behaviour: Behaviour) -> tuple[FakeCluster, RecordingObserver]:
    """Run the trials; each has exactly one result in the end."""
    cluster, observer = FakeCluster(behaviour), RecordingObserver()
    pool_of_one(plan, cluster).run(plan.trials, observer)
    assert Counter(result.key for result in observer.results) == Counter(trial.key for trial in plan.trials)
    assert observer.running[-1] == 0
    return cluster, observer


def by_key(observer: RecordingObserver) -> dict[str, TrialResult]:
    return {result.key: result for result in observer.results}


def test_one_worker_runs_all_trials_in_turn(ten: Plan) -> None:
    cluster, observer = run(ten, ok)
    assert len(cluster.attempts) == 10
    assert {(r.status, r.facts["attempts"]) for r in observer.results} == {("ok", 1)}
    assert (cluster.started, cluster.killed, observer.retries) == (1, 0, [])


def test_a_result_is_reported_before_the_next_trial_is_waited_for(ten: Plan) -> None:
    observer, reported = RecordingObserver(), list[int]()

    def behaviour(trial: Trial) -> TrialResult:
        reported.append(len(observer.results))
        return ok(trial)

    pool_of_one(ten, FakeCluster(behaviour)).run(ten.trials, observer)
    assert reported == list(range(10))


def test_on_a_shared_cluster_it_waits_for_resources_in_use_by_others(
    ten: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, observer = FakeCluster(ok), RecordingObserver()

    def nodes() -> dict[str, Node]:
        """In use by others until the pool has reported that it waits."""
        return {"node": Node("node", "here", {"CPU": 1}, {"CPU": 1 if observer.notes else 0.5})}

    monkeypatch.setattr(cluster, "nodes", nodes)
    monkeypatch.setattr("tta_bench.schedule.pool.TICK_S", 0.01)
    pool_of_one(ten, cluster).run(ten.trials, observer)
    assert len(observer.results) == 10
    assert observer.notes == ["the cluster is in use by others; waiting until 1 CPU is free"]


def test_a_trial_that_always_kills_its_worker_fails_after_three_attempts(ten: Plan) -> None:
    killer = ten.trials[4].key
    cluster, observer = run(ten, lambda t: Fault("infrastructure", "it died") if t.key == killer else ok(t))
    results = by_key(observer)
    assert {key for key, result in results.items() if result.status == "failed"} == {killer}
    assert results[killer].reason == "3 attempts failed, the last: it died"
    assert results[killer].facts["attempts"] == 3
    assert results[killer].facts["faults"][0] == "infrastructure: worker 0 on here process 1: it died"
    assert results[killer].log == f"the output is on elsewhere: /logs/{killer}.log"
    assert {result.facts["attempts"] for key, result in results.items() if key != killer} == {1}
    assert [(key, fault.kind) for key, fault in observer.retries] == [(killer, "infrastructure")] * 2
    assert cluster.killed == 3


def test_a_trial_that_exhausts_memory_is_retried_with_exclusive_use_of_a_device(ten: Plan) -> None:
    greedy = ten.trials[4].key
    _, observer = run(ten, lambda t: Fault("memory", "killed") if t.key == greedy else ok(t))
    results = by_key(observer)
    assert {key for key, result in results.items() if result.status == "failed"} == {greedy}
    assert results[greedy].reason == "out of memory, even with exclusive use of the device: killed"
    assert results[greedy].facts["attempts"] == 2


@pytest.mark.parametrize(("failure", "checks"), [("infrastructure", 1), ("memory", 0)])
def test_a_trial_that_fails_once_for_lack_of_files_or_memory_gets_a_new_worker(
    ten: Plan, failure: str, checks: int
) -> None:
    bad, attempts = ten.trials[4].key, Counter[str]()

    def fails_once(trial: Trial) -> TrialResult:
        attempts[trial.key] += 1
        return failed(trial, failure) if trial.key == bad and attempts[bad] == 1 else ok(trial)

    cluster, observer = run(ten, fails_once)
    assert attempts == {trial.key: 2 if trial.key == bad else 1 for trial in ten.trials}
    assert {result.status for result in observer.results} == {"ok"}
    assert {key: result.facts["attempts"] for key, result in by_key(observer).items()} == attempts
    assert cluster.killed >= 1
    assert cluster.checks == checks, "files may be missing on the node"


def test_a_methods_own_failure_ends_no_worker(ten: Plan) -> None:
    cluster, observer = run(ten, lambda t: failed(t, "method") if t.key == ten.trials[4].key else ok(t))
    assert len(cluster.attempts) == 10
    assert cluster.killed == 0
    assert Counter(r.status for r in observer.results) == {"ok": 9, "failed": 1}


def test_a_worker_that_never_reports_a_timeout_is_killed(ten: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = ten.trials[4].key
    cluster, observer = FakeCluster(ok), RecordingObserver()

    def wait(references: list[int], seconds: float) -> list[int]:
        return [r for r in references if getattr(cluster._values[r], "key", None) != hanging][:1]

    monkeypatch.setattr(cluster, "wait", wait)
    monkeypatch.setattr("tta_bench.schedule.pool.GRACE_S", 0.0)
    pool_of_one(ten, cluster, timeout=0.05).run(ten.trials, observer)
    result = by_key(observer)[hanging]
    assert (result.status, result.facts["failure"]) == ("failed", "timeout")
    assert result.reason == "no result after 0.05 s (--timeout)"
    assert cluster.killed >= 1
