"""The driver's loop: gives trials to workers, takes their results, answers faults as :mod:`tta_bench.faults` says.

All decisions are made here, in one thread, between two looks at what the cluster reports.
"""

from __future__ import annotations

import dataclasses
import pathlib
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench import runlog
from tta_bench.cluster import Cluster, Node, Slot
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.faults import Fault, Kind, verdict
from tta_bench.observer import Observer
from tta_bench.order import Estimates, Queue
from tta_bench.plan import Trial
from tta_bench.preflight import CacheChoice
from tta_bench.runner import TrialResult
from tta_bench.worker import Place

TICK_S = 0.25  # how long the driver waits for news before it looks at clocks and nodes
PATIENCE_S = 300.0  # how long it waits for a node when none is left
FAILED_STARTS = 3  # of workers, on a node that never had one, after which the node is left out


@dataclass(frozen=True)
class Limits:
    """Attributes: retries: after infrastructure faults; timeout: of a trial, s, or None; workers: at most, or None."""

    retries: int
    timeout: float | None
    workers: int | None


@dataclass
class _Worker:
    """A worker process, from the moment it is asked for."""

    number: int
    handle: Any
    node: Node
    place: Place | None = None  # None: it has not started yet
    trial: Trial | None = None
    held: Trial | None = None  # the last trial, whose model and images it has
    since: float = 0.0
    alone: bool = False  # has a whole device, for one trial

    def __str__(self) -> str:
        pid = f" process {self.place.pid}" if self.place else ""
        return f"worker {self.number} on {self.node.host}{pid}"

    @property
    def device(self) -> tuple[str, str] | None:
        """The device it is on, with its node."""
        return (self.node.id, self.place.device) if self.place else None


@dataclass
class _Pending:
    """What a reference stands for."""

    kind: str  # "node", "start" or "trial"
    subject: Any


@dataclass
class _Alone:
    """A trial that waits for a device to itself: workers there end when they are free, then it gets the whole of it."""

    trial: Trial
    device: tuple[str, str] | None = None
    worker: _Worker | None = None


class Pool:
    """Runs trials on a cluster.

    Args:
        cluster: connected.
        slot: what each worker gets.
        limits: on retries, time, workers.
        arguments: of :class:`tta_bench.worker.Worker`, but for the share of the device.
        needed: a shared :class:`tta_bench.preflight.Requirements`, which every node must meet.
        checked: the nodes that are there at the start meet it: they are this machine.
        cache: where nodes keep their image caches.
        estimates: of what trials take.
    """

    def __init__(
        self, cluster: Cluster, slot: Slot, limits: Limits, arguments: Sequence[Any], needed: Any, cache: CacheChoice,
        estimates: Estimates, *, checked: bool,
    ):  # fmt: skip
        self._cluster, self._slot, self._limits = cluster, slot, limits
        self._arguments, self._needed, self._cache, self._estimates = arguments, needed, cache, estimates
        self._checked_before = set(cluster.nodes()) if checked else set[str]()
        self._pending: dict[Any, _Pending] = {}
        self._workers: dict[int, _Worker] = {}
        self._nodes: dict[str, str] = {}  # node id to "checking", "usable" or "left out"
        self._complaints: dict[str, str] = {}  # host to why it was left out
        self._failed_starts: Counter[str] = Counter()
        self._proven: set[str] = set()  # nodes on which a worker has started
        self._history: dict[str, list[Fault]] = {}
        self._waiting_alone: deque[_Alone] = deque()
        self._started = 0
        self._lonely_since: float | None = None
        self._ticked = float("-inf")

    def run(self, trials: Sequence[Trial], observer: Observer) -> None:
        """Run ``trials`` until each has a result.

        Raises:
            UsageError: no node can run them; nothing was started.
            Stopped: no usable node is left.
        """
        self._queue, self._observer = Queue(trials, self._estimates.seconds), observer
        while len(self._queue) or self._waiting_alone or self._busy():
            self._meet_nodes()
            self._start_workers()
            self._assign()
            for reference in self._cluster.wait(list(self._pending), TICK_S) if self._pending else self._idle():
                self._handle(self._pending.pop(reference), reference)
            self._expire()
            if time.monotonic() - self._ticked > TICK_S:
                self._ticked = time.monotonic()
                observer.tick([self._state(worker) for worker in self._workers.values()], self._seconds_left())

    def _idle(self) -> list[Any]:
        time.sleep(TICK_S)
        return []

    def _busy(self) -> list[_Worker]:
        return [w for w in self._workers.values() if w.trial is not None]

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _meet_nodes(self) -> None:
        """Check nodes that are new, forget those that are gone, give up when none has been usable for long."""
        alive = self._cluster.nodes()
        for node in alive.values():
            if node.id not in self._nodes and self._slot.fits(node.resources):
                self._nodes[node.id] = "usable"
                if node.id not in self._checked_before:
                    self._nodes[node.id] = "checking"
                    self._check(node)
        for gone in [id for id in self._nodes if id not in alive]:
            del self._nodes[gone]
        if any(state != "left out" for state in self._nodes.values()):
            self._lonely_since = None
            return
        self._lonely(alive.values())

    def _lonely(self, alive: Any) -> None:
        reasons = "; ".join(f"{host}: {why}" for host, why in self._complaints.items())
        if not self._proven:
            what = f"no node can run a trial, which needs {self._slot}: {reasons or [dict(n.resources) for n in alive]}"
            raise UsageError(Problem(what, hint="lower --cpus-per-trial or --gpus-per-trial, or mend the nodes"))
        now = time.monotonic()
        if self._lonely_since is None:
            self._lonely_since = now
            self._observer.note(f"no usable node is left; waiting {PATIENCE_S:.0f} s for one")
        if now - self._lonely_since > PATIENCE_S:
            raise Stopped(Problem(f"no usable node is left{': ' if reasons else ''}{reasons}", hint="mend the cluster"))

    def _check(self, node: Node) -> None:
        self._pending[self._cluster.prepare(node, self._needed, self._cache)] = _Pending("node", node)

    def _checked(self, node: Node, lacks: list[str] | Fault) -> None:
        if isinstance(lacks, Fault):
            lacks = [lacks.what]
        if not lacks:
            self._nodes[node.id] = "usable"
        elif self._nodes.get(node.id) == "checking" or len(self._usable()) > 1:
            self._leave_out(node, "; ".join(lacks))
        else:  # it is all there is: trials that need what it lacks fail, the others go on
            self._observer.note(f"node {node.host}: {'; '.join(lacks)}")

    def _leave_out(self, node: Node, why: str) -> None:
        self._nodes[node.id] = "left out"
        self._complaints[node.host] = why
        self._observer.note(f"node {node.host} is left out: {why}")

    # -- workers -------------------------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """As many as fit, and as there is work for."""
        work = len(self._queue) + len(self._busy())
        room = min(work, self._limits.workers or work) - sum(not w.alone for w in self._workers.values())
        for node in self._usable():
            there = [w for w in self._workers.values() if w.node.id == node.id]
            free = self._slot.fits(node.resources) - len(there)
            if any(a.device and a.device[0] == node.id for a in self._waiting_alone):
                continue  # a device there is being cleared
            for _ in range(max(0, min(free, room))):
                self._start(node, self._slot)
                room -= 1

    def _usable(self) -> list[Node]:
        alive = self._cluster.nodes()
        return [alive[id] for id, state in self._nodes.items() if state == "usable" and id in alive]

    def _start(self, node: Node, slot: Slot, *, alone: bool = False) -> _Worker:
        share = 1.0 if alone or not 0 < slot.gpus < 1 else slot.gpus
        setting, cache, threads, expected = self._arguments
        handle, reference = self._cluster.start(node, slot, (setting, cache, threads, share, expected))
        worker = _Worker(self._started, handle, node, alone=alone, since=time.monotonic())
        self._started += 1
        self._workers[worker.number] = worker
        self._pending[reference] = _Pending("start", worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        self._workers.pop(worker.number, None)
        self._cluster.kill(worker.handle)

    # -- trials --------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give every free worker its next trial; clear a device for a trial that must be alone."""
        if self._waiting_alone:
            self._clear(self._waiting_alone[0])
        cleared = {a.device for a in self._waiting_alone if a.device}
        free = [w for w in self._workers.values() if w.place and w.trial is None and not w.alone]
        for worker in [w for w in free if w.device not in cleared][: len(self._queue)]:
            self._give(worker, self._queue.take(worker.held))

    def _give(self, worker: _Worker, trial: Trial) -> None:
        worker.trial, worker.since = trial, time.monotonic()
        reference = worker.handle.run.remote(trial)
        self._pending[reference] = _Pending("trial", worker)
        self._observer.started(trial, str(worker))

    def _clear(self, alone: _Alone) -> None:
        """One step towards running ``alone``: choose a device, end its workers as they become free, take all of it."""
        if alone.worker is not None:
            return
        alone.device = alone.device or self._choose_device()
        if alone.device is None:
            return
        there = [w for w in self._workers.values() if w.device == alone.device]
        for worker in [w for w in there if w.trial is None]:
            self._end(worker)
        if all(w.trial is None for w in there):
            node = self._cluster.nodes().get(alone.device[0])
            if node is None:
                alone.device = None
                return
            whole = dataclasses.replace(self._slot, gpus=max(1.0, self._slot.gpus) if self._slot.gpus else 0.0)
            alone.worker = self._start(node, whole, alone=True)

    def _choose_device(self) -> tuple[str, str] | None:
        """The device of a worker, a free one before a busy one; where there is no worker at all, any of a usable node."""
        if started := [w for w in self._workers.values() if w.device]:
            return min(started, key=lambda w: w.trial is not None).device
        nodes = [] if self._workers else self._usable()
        return (nodes[0].id, "") if nodes else None

    # -- news ----------------------------------------------------------------------------------------------------------

    def _handle(self, pending: _Pending, reference: Any) -> None:
        value = self._cluster.get(reference)
        if pending.kind == "node":
            self._checked(pending.subject, value)
        elif pending.kind == "start":
            self._has_started(pending.subject, value)
        elif pending.subject.number in self._workers:  # else it was ended: its fault is known
            self._ended(pending.subject, value)

    def _has_started(self, worker: _Worker, place: Place | Fault) -> None:
        if worker.number not in self._workers:
            return
        if isinstance(place, Fault):
            self._workers.pop(worker.number)
            self._failed_starts[worker.node.id] += 1
            if self._failed_starts[worker.node.id] >= FAILED_STARTS and worker.node.id not in self._proven:
                self._leave_out(worker.node, f"a worker cannot start: {place.what}")
            for alone in [a for a in self._waiting_alone if a.worker is worker]:
                alone.device = alone.worker = None
            return
        worker.place = place
        self._proven.add(worker.node.id)
        for alone in [a for a in self._waiting_alone if a.worker is worker]:
            self._give(worker, alone.trial)

    def _ended(self, worker: _Worker, value: TrialResult | Fault) -> None:
        """A trial's worker has news: a result, or a fault in place of one."""
        trial = worker.trial
        assert trial is not None
        worker.trial, worker.held = None, trial
        if isinstance(value, Fault):
            self._lost(worker, trial, value)
            return
        failure: Kind | None = value.facts.get("failure")
        if worker.alone or failure in ("infrastructure", "memory") or value.facts.get("device_ruined"):
            self._end(worker)  # its process holds what it has allocated, or can use its device or disk no more
        if failure == "infrastructure":
            self._check(worker.node)
        if failure in ("infrastructure", "memory"):
            self._fault(trial, Fault(failure, f"{worker}: {value.reason}"), value)
        else:
            self._finish(trial, value, attempts=len(self._history.get(trial.key, [])) + 1)

    def _lost(self, worker: _Worker, trial: Trial, fault: Fault) -> None:
        """A trial's worker is gone, or has to go."""
        self._end(worker)
        where = {"host": worker.node.host, "pid": worker.place.pid if worker.place else None}
        nothing = TrialResult(trial.key, "failed", fault.what, environment=where, log=_left_behind(worker, trial))
        self._fault(trial, Fault(fault.kind, f"{worker}: {fault.what}"), nothing)

    def _fault(self, trial: Trial, fault: Fault, result: TrialResult) -> None:
        """Try the trial again, or make its failure a result."""
        history = self._history.setdefault(trial.key, [])
        history.append(fault)
        decision = verdict(history, self._limits.retries)
        if decision == "fail":
            failed = dataclasses.replace(result, reason=_reason(history, result.reason))
            facts = {**result.facts, "failure": fault.kind}
            self._finish(trial, dataclasses.replace(failed, facts=facts), attempts=len(history))
            return
        self._observer.retried(trial, fault)
        self._waiting_alone = deque(a for a in self._waiting_alone if a.trial is not trial)
        if decision == "alone":
            self._waiting_alone.append(_Alone(trial))
        else:
            self._queue.put(trial)

    def _finish(self, trial: Trial, result: TrialResult, attempts: int) -> None:
        self._waiting_alone = deque(a for a in self._waiting_alone if a.trial is not trial)
        faults = [f"{fault.kind}: {fault.what}" for fault in self._history.pop(trial.key, [])]
        facts = {**result.facts, "attempts": attempts, "faults": faults}
        if result.status == "ok" and self._estimates.learn(trial, result.facts["trial_s"]):
            self._queue.refresh()
        self._observer.finished(trial, dataclasses.replace(result, facts=facts))

    def _expire(self) -> None:
        """End workers whose trial has had its time."""
        if self._limits.timeout is None:
            return
        now = time.monotonic()
        for worker in [w for w in self._busy() if now - w.since > self._limits.timeout]:
            assert worker.trial is not None
            self._lost(
                worker, worker.trial, Fault("timeout", f"no result after {self._limits.timeout:g} s (--timeout)")
            )

    # -- what it looks like ----------------------------------------------------------------------------------------------

    def _state(self, worker: _Worker) -> str:
        if worker.place is None:
            return f"{worker}: starting, {time.monotonic() - worker.since:.0f} s"
        if worker.trial is None:
            return f"{worker}: idle"
        shifts = worker.trial.stream.shifts
        shown = shifts[0].id if len(shifts) == 1 else f"{len(shifts)} shifts"
        what = f"{worker.trial.label} · {worker.trial.model} · {shown} · seed {worker.trial.seed}"
        return f"{worker}: {what}, {time.monotonic() - worker.since:.0f} s"

    def _seconds_left(self) -> float | None:
        if not self._estimates.known:
            return None
        running = sum(max(0.0, self._estimates.seconds(w.trial) - (time.monotonic() - w.since))
                      for w in self._busy() if w.trial is not None)  # fmt: skip
        return (self._queue.remaining() + running) / max(1, sum(not w.alone for w in self._workers.values()))


def _left_behind(worker: _Worker, trial: Trial) -> str:
    """What a trial had printed when its worker died, where that is on this machine."""
    assert worker.place is not None
    file = pathlib.Path(worker.place.logs) / f"{trial.key}.log"
    if worker.place.host != socket.gethostname():
        return f"its output stayed on {worker.place.host}: {file}"
    text = runlog.read(file)
    file.unlink(missing_ok=True)
    return text


def _reason(history: Sequence[Fault], last: str) -> str:
    """Why a trial failed for good."""
    if history[-1].kind == "memory":
        return f"out of memory, also alone on a device: {last}"
    if history[-1].kind == "infrastructure" and len(history) > 1:
        return f"{len(history)} attempts failed, the last: {last}"
    return last
