"""The driver's loop: gives trials to workers, takes their results, answers faults (:mod:`tta_bench.run.faults`).

All decisions are made here, in one thread, between two looks at what the cluster reports.

A worker may be given several short trials at a time, never under ``--timeout``. Where such a worker is lost, nobody knows
which of them it was: they are given again, each by itself, and only then counts an attempt. A trial with any fault in its
history is given by itself.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.run import faults
from tta_bench.run.faults import Fault, Kind
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.cluster import Cluster, Node, Slot
from tta_bench.schedule.observer import Observer, title
from tta_bench.schedule.options import Options
from tta_bench.schedule.queue import Estimates, Queue
from tta_bench.schedule.worker import Place, left_behind
from tta_bench.suite.plan import Trial

TICK_S = 0.25  # how long the driver waits for news before it looks at clocks and nodes
PATIENCE_S = 300.0  # how long it waits for a node when none is left
START_S = 300.0  # a worker may take to start
LATE_S = 60.0  # after a trial's time, when its worker must have said that it was over
FAILED_STARTS = 3  # of workers, on a node that never had one, after which the node is left out


@dataclass
class _Worker:
    """A worker process, from the moment it is asked for."""

    number: int
    handle: Any
    node: Node
    place: Place | None = None  # None: it has not started yet
    trials: Sequence[Trial] = ()  # that it was given and has not answered for
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

    kind: str  # "node", "start" or "trials"
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
        options: of the run; nodes of a cluster that was there before (``address``) are checked first, while the node of
            one that was started here is this machine.
        arguments: of :class:`tta_bench.schedule.worker.Worker`, but for the share of the device.
        needed: a shared :class:`tta_bench.schedule.preflight.Requirements`, which every node must meet.
        estimates: of what trials take.
    """

    def __init__(
        self, cluster: Cluster, slot: Slot, options: Options, arguments: Sequence[Any], needed: Any,
        estimates: Estimates,
    ):  # fmt: skip
        self._cluster, self._slot, self._options = cluster, slot, options
        self._arguments, self._needed, self._estimates = arguments, needed, estimates
        self._checked_before = set(cluster.nodes()) if options.address is None else set[str]()
        self._pending: dict[Any, _Pending] = {}
        self._workers: dict[int, _Worker] = {}
        self._nodes: dict[str, str] = {}  # node id to "checking", "usable" or "left out"
        self._complaints: dict[str, str] = {}  # host to why it was left out
        self._failed_starts: Counter[str] = Counter()
        self._proven: set[str] = set()  # nodes on which a worker has started
        self._history: dict[str, list[Fault]] = {}
        self._ended: list[tuple[Trial, TrialResult]] = []  # that the observer has not been told of
        self._waiting_alone: deque[_Alone] = deque()
        self._started = 0
        self._told_of_waiting = False
        self._lonely_since: float | None = None
        self._ticked = float("-inf")

    def run(self, trials: Sequence[Trial], observer: Observer) -> None:
        """Run ``trials`` until each has a result.

        Raises:
            UsageError: no node can run them; nothing was started.
            Stopped: no usable node is left.
        """
        self._queue, self._observer = Queue(trials, self._estimates.seconds), observer
        try:
            while len(self._queue) or self._waiting_alone or self._busy():
                self._step()
        except KeyboardInterrupt:
            self._report()  # what has ended meanwhile is kept
            raise
        self._tick()

    def _step(self) -> None:
        self._meet_nodes()
        self._start_workers()
        self._assign()
        for reference in self._cluster.wait(list(self._pending), TICK_S) if self._pending else self._idle():
            self._handle(self._pending.pop(reference), reference)
        self._expire()
        self._report()
        if time.monotonic() - self._ticked > TICK_S:
            self._tick()

    def _report(self) -> None:
        if self._ended:
            ended, self._ended = self._ended, []
            self._observer.finished(ended)

    def _idle(self) -> list[Any]:
        time.sleep(TICK_S)
        return []

    def _busy(self) -> list[_Worker]:
        return [w for w in self._workers.values() if w.trials]

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
        self._pending[self._cluster.prepare(node, self._needed, self._options)] = _Pending("node", node)

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
        """As many as there is work for and as fit beside what other users of the cluster run."""
        work = len(self._queue) + len(self._busy())
        room = min(work, self._options.workers or work) - sum(not w.alone for w in self._workers.values())
        for node in self._usable():
            there = [w for w in self._workers.values() if w.node.id == node.id]
            starting = sum(w.place is None for w in there)  # what they will take is still free
            free = min(self._slot.fits(node.resources) - len(there), self._slot.fits(node.free) - starting)
            if any(a.device and a.device[0] == node.id for a in self._waiting_alone):
                continue  # a device there is being cleared
            for _ in range(max(0, min(free, room))):
                self._start(node, self._slot)
                room -= 1
        if self._usable() and work and not self._workers and not self._told_of_waiting:
            self._told_of_waiting = True
            self._observer.note(f"all that {self._slot} needs is in use by others; waiting until some of it is free")

    def _usable(self) -> list[Node]:
        alive = self._cluster.nodes()
        return [alive[id] for id, state in self._nodes.items() if state == "usable" and id in alive]

    def _start(self, node: Node, slot: Slot, *, alone: bool = False) -> _Worker:
        share = 1.0 if alone or not 0 < slot.gpus < 1 else slot.gpus
        materials, options, *rest = self._arguments
        handle, reference = self._cluster.start(node, slot, (materials, options, share, *rest))
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
        free = [w for w in self._workers.values() if w.place and not w.trials and not w.alone]
        for worker in [w for w in free if w.device not in cleared]:
            if len(self._queue):
                self._give(worker, self._queue.take(worker.held, self._together))

    def _together(self, trial: Trial) -> int:
        """How many trials like this one a worker gets: no more than its share of those that wait."""
        if self._options.timeout is not None:
            return 1  # which of them had taken its time could not be told
        share = math.ceil(len(self._queue) / max(1, sum(not w.alone for w in self._workers.values())))
        return min(share, self._estimates.together(trial))

    def _give(self, worker: _Worker, trials: Sequence[Trial]) -> None:
        worker.trials, worker.since = trials, time.monotonic()
        self._pending[worker.handle.run_all.remote(trials)] = _Pending("trials", worker)

    def _clear(self, alone: _Alone) -> None:
        """One step towards running ``alone``: choose a device, end its workers as they become free, take all of it."""
        if alone.worker is not None:
            return
        alone.device = alone.device or self._choose_device()
        if alone.device is None:
            return
        there = [w for w in self._workers.values() if w.device == alone.device]
        for worker in [w for w in there if not w.trials]:
            self._end(worker)
        if not any(w.trials for w in there):
            node = self._cluster.nodes().get(alone.device[0])
            if node is None:
                alone.device = None
                return
            whole = dataclasses.replace(self._slot, gpus=max(1.0, self._slot.gpus) if self._slot.gpus else 0.0)
            alone.worker = self._start(node, whole, alone=True)

    def _choose_device(self) -> tuple[str, str] | None:
        """The device of a worker, a free one before a busy one; where there is no worker at all, any of a usable node."""
        if started := [w for w in self._workers.values() if w.device]:
            return min(started, key=lambda w: bool(w.trials)).device
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
            self._answered(pending.subject, value)

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
            self._give(worker, [alone.trial])

    def _answered(self, worker: _Worker, value: Sequence[TrialResult] | Fault) -> None:
        """A worker has news of its trials: results, or a fault in place of them."""
        if isinstance(value, Fault):
            self._lost(worker, value)
            return
        trials, worker.trials = worker.trials, ()
        worker.held = trials[len(value) - 1]
        for trial in reversed(trials[len(value) :]):  # it had to end before these
            self._queue.put(trial, singly=False)
        if worker.alone or faults.ends_worker(value[-1].facts):
            self._end(worker)
        for trial, result in zip(trials, value, strict=False):
            self._judge(worker, trial, result)

    def _judge(self, worker: _Worker, trial: Trial, result: TrialResult) -> None:
        """Take a trial's result, or answer the fault that it tells of."""
        failure: Kind | None = result.facts.get("failure")
        if failure == "infrastructure":
            self._check(worker.node)
        if failure in ("infrastructure", "memory"):
            self._fault(trial, Fault(failure, f"{worker}: {result.reason}"), result)
        else:
            self._finish(trial, result, faults.attempts(self._history.get(trial.key, ())) + 1)

    def _lost(self, worker: _Worker, fault: Fault) -> None:
        """A worker that had trials is gone, or has to go."""
        trials, worker.trials = worker.trials, ()
        self._end(worker)
        if len(trials) == 1:
            assert worker.place is not None
            [trial], where = trials, {"host": worker.node.host, "pid": worker.place.pid}
            log = left_behind(worker.place, trial)
            nothing = TrialResult(trial.key, "failed", fault.what, environment=where, log=log)
            self._fault(trial, Fault(fault.kind, f"{worker}: {fault.what}"), nothing)
            return
        shared = Fault("shared", f"{worker}, which had {len(trials)} trials: {fault.what}")
        for trial in reversed(trials):
            log = left_behind(worker.place, trial, elsewhere=False) if worker.place else ""
            own = dataclasses.replace(shared, what=f"{shared.what}\n{log}".rstrip())  # of the one that it was running
            self._history.setdefault(trial.key, []).append(own)
            self._queue.put(trial, singly=True)
        self._observer.retried(trials, shared)

    def _fault(self, trial: Trial, fault: Fault, result: TrialResult) -> None:
        """Try the trial again, or make its failure a result."""
        history = self._history.setdefault(trial.key, [])
        history.append(fault)
        decision = faults.verdict(history, self._options.retries)
        if decision == "fail":
            failed = dataclasses.replace(result, reason=faults.reason(history, result.reason))
            failed = dataclasses.replace(failed, facts={**result.facts, "failure": fault.kind})
            self._finish(trial, failed, faults.attempts(history))
            return
        self._observer.retried([trial], fault)
        self._waiting_alone = deque(a for a in self._waiting_alone if a.trial is not trial)
        if decision == "alone":
            self._waiting_alone.append(_Alone(trial))
        else:
            self._queue.put(trial, singly=True)

    def _finish(self, trial: Trial, result: TrialResult, attempts: int) -> None:
        self._waiting_alone = deque(a for a in self._waiting_alone if a.trial is not trial)
        before = [f"{fault.kind}: {fault.what}" for fault in self._history.pop(trial.key, [])]
        facts = {**result.facts, "attempts": attempts, "faults": before}
        if result.status == "ok" and self._estimates.learn(trial, result.facts["trial_s"]):
            self._queue.refresh()
        self._ended.append((trial, dataclasses.replace(result, facts=facts)))

    def _expire(self) -> None:
        """End workers that do not start, or have not ended their trial when it had had its time: a disk that hangs."""
        now = time.monotonic()
        for worker in [w for w in self._workers.values() if w.place is None and now - w.since > START_S]:
            self._cluster.kill(worker.handle)
            self._has_started(worker, Fault("infrastructure", f"it has not started after {START_S:.0f} s"))
        if self._options.timeout is None:
            return
        given = self._options.timeout + LATE_S
        for worker in [w for w in self._busy() if now - w.since > given]:
            self._lost(worker, Fault("timeout", f"no result after {self._options.timeout:g} s (--timeout)"))

    # -- what it looks like ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        states = [self._state(worker) for worker in self._workers.values()]
        self._observer.tick(len(self._busy()), states, self._seconds_left())

    def _state(self, worker: _Worker) -> str:
        seconds = f"{time.monotonic() - worker.since:.0f} s"
        if worker.place is None:
            return f"{worker}: starting, {seconds}"
        if not worker.trials:
            return f"{worker}: idle"
        several = f"{len(worker.trials)} short trials from " if len(worker.trials) > 1 else ""
        return f"{worker}: {several}{title(worker.trials[0])}, {seconds}"

    def _seconds_left(self) -> float | None:
        if not self._estimates.known:
            return None
        now = time.monotonic()
        running = sum(max(0.0, sum(map(self._estimates.seconds, w.trials)) - (now - w.since)) for w in self._busy())
        return (self._queue.remaining() + running) / max(1, sum(not w.alone for w in self._workers.values()))
