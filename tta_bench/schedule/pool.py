"""The driver's loop: hands trials to workers, collects results, responds to faults (:mod:`tta_bench.run.faults`).

All decisions are made here, in one thread, between two requests for news from the cluster.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.run.faults import Fault, failure_reason, next_action
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.cluster import Cluster, Node, Slot
from tta_bench.schedule.estimates import Estimates
from tta_bench.schedule.observer import Observer, title
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.queue import Queue
from tta_bench.schedule.worker import WorkerInfo, orphaned_log
from tta_bench.suite.plan import Trial

TICK_S = 0.25  # how long the driver waits for news before it checks deadlines and nodes
PATIENCE_S = 300.0  # how long it waits for a node when none is usable
START_S = 300.0  # limit for the start of a worker
GRACE_S = 60.0  # after a trial's timeout, for its worker to report it
MAX_FAILED_STARTS = 3  # of workers on a node where none has ever started, before it is excluded

Device = tuple[str, str]  # node id, identity of the device on that node
NodeState = Literal["checking", "usable", "excluded"]


@dataclass
class _WorkerState:
    """A worker process, from the moment it is requested."""

    number: int
    handle: Any
    node: Node
    since: float  # when it was requested or got its trial
    exclusive: bool = False  # has a whole device for one trial
    info: WorkerInfo | None = None  # None until it has started
    trial: Trial | None = None  # that it is running
    previous: Trial | None = None  # whose model and images it holds

    def __str__(self) -> str:
        pid = f" process {self.info.pid}" if self.info else ""
        return f"worker {self.number} on {self.node.host}{pid}"

    @property
    def device(self) -> Device | None:
        """Its device, once it has started."""
        return (self.node.id, self.info.device) if self.info else None


@dataclass
class _ExclusiveTrial:
    """A trial that waits for exclusive use of a device: workers there end once idle, then it gets the whole device."""

    trial: Trial
    device: Device | None = None
    worker: _WorkerState | None = None


class Pool:
    """Runs trials on a cluster.

    Args:
        cluster: connected.
        slot: resources of a worker.
        options: of the run. Nodes of an existing cluster (``address``) are checked before use; the node of a cluster
            started by this run is this machine and is not.
        arguments: of :class:`tta_bench.schedule.worker.Worker`, without its share of the device.
        needed: shared :class:`tta_bench.schedule.preflight.Requirements` that every node must meet.
        estimates: durations of trials.
    """

    def __init__(
        self, cluster: Cluster, slot: Slot, options: RunOptions, arguments: Sequence[Any], needed: Any,
        estimates: Estimates,
    ):  # fmt: skip
        self._cluster, self._slot, self._options = cluster, slot, options
        self._arguments, self._needed, self._estimates = arguments, needed, estimates
        self._checked_before = set(cluster.nodes()) if options.address is None else set[str]()
        self._requests: dict[Any, Callable[[Any], None]] = {}  # Ray's reference to what handles its value
        self._workers: dict[int, _WorkerState] = {}
        self._nodes: dict[str, NodeState] = {}  # by node id
        self._exclusions: dict[str, str] = {}  # host to why it was excluded
        self._failed_starts: Counter[str] = Counter()
        self._proven: set[str] = set()  # nodes where a worker has started
        self._history: dict[str, list[Fault]] = {}  # by trial key
        self._exclusive: deque[_ExclusiveTrial] = deque()
        self._started = 0
        self._reported_full = False
        self._unusable_since: float | None = None
        self._ticked = float("-inf")
        self._resort = False  # estimates have changed since the queue was sorted

    def run(self, trials: Sequence[Trial], observer: Observer) -> None:
        """Run ``trials`` until each has a result.

        Raises:
            UsageError: no node can run them; nothing was started.
            Stopped: no usable node is left.
        """
        self._queue, self._observer = Queue(trials, self._estimates.seconds), observer
        while len(self._queue) or self._exclusive or self._busy():
            self._step()
        self._tick()

    def _step(self) -> None:
        self._update_nodes()
        self._start_workers()
        self._assign()
        for reference in self._wait():
            self._requests.pop(reference)(self._cluster.get(reference))
        self._enforce_deadlines()
        if time.monotonic() - self._ticked > TICK_S:
            self._tick()

    def _wait(self) -> list[Any]:
        if self._requests:
            return self._cluster.wait(list(self._requests), TICK_S)
        time.sleep(TICK_S)
        return []

    def _busy(self) -> list[_WorkerState]:
        return [w for w in self._workers.values() if w.trial]

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _update_nodes(self) -> None:
        """Check new nodes, forget lost ones, give up when none has been usable for too long."""
        alive = self._cluster.nodes()
        for node in alive.values():
            if node.id not in self._nodes and self._slot.fits(node.resources):
                self._nodes[node.id] = "usable"
                if node.id not in self._checked_before:
                    self._nodes[node.id] = "checking"
                    self._check(node)
        for lost in [id for id in self._nodes if id not in alive]:
            del self._nodes[lost]
        if any(state != "excluded" for state in self._nodes.values()):
            self._unusable_since = None
        else:
            self._await_node(alive.values())

    def _await_node(self, alive: Iterable[Node]) -> None:
        reasons = "; ".join(f"{host}: {reason}" for host, reason in self._exclusions.items())
        if not self._proven:
            reasons = reasons or f"the nodes have {[dict(n.resources) for n in alive]}"
            message = f"no node can run a trial, which needs {self._slot}; {reasons}"
            raise UsageError(Problem(message, hint="lower --cpus-per-trial or --gpus-per-trial, or fix the nodes"))
        now = time.monotonic()
        if self._unusable_since is None:
            self._unusable_since = now
            self._observer.note(f"no usable node is left; waiting {PATIENCE_S:.0f} s for one")
        if now - self._unusable_since > PATIENCE_S:
            raise Stopped(Problem(f"no usable node is left{': ' if reasons else ''}{reasons}", hint="fix the cluster"))

    def _check(self, node: Node) -> None:
        reference = self._cluster.prepare(node, self._needed, self._options)
        self._requests[reference] = functools.partial(self._on_checked, node)

    def _on_checked(self, node: Node, problems: list[str] | Fault) -> None:
        if isinstance(problems, Fault):
            problems = [problems.message]
        if not problems:
            self._nodes[node.id] = "usable"
        elif self._nodes.get(node.id) == "checking" or len(self._usable()) > 1:
            self._exclude(node, "; ".join(problems))
        else:  # the only node: trials that need what is missing fail, the rest can still run
            self._observer.note(f"node {node.host}: {'; '.join(problems)}")

    def _exclude(self, node: Node, reason: str) -> None:
        self._nodes[node.id] = "excluded"
        self._exclusions[node.host] = reason
        self._observer.note(f"node {node.host} is excluded: {reason}")

    def _usable(self) -> list[Node]:
        alive = self._cluster.nodes()
        return [alive[id] for id, state in self._nodes.items() if state == "usable" and id in alive]

    # -- workers -------------------------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        """Start as many workers as there are trials and as fit beside what other users of the cluster run."""
        trials = len(self._queue) + len(self._busy())
        room = min(trials, self._options.workers or trials) - self._shared_workers()
        for node in self._usable():
            if any(e.device and e.device[0] == node.id for e in self._exclusive):
                continue  # a device there is being cleared
            on_node = [w for w in self._workers.values() if w.node.id == node.id]
            starting = sum(w.info is None for w in on_node)  # Ray still counts their resources as free
            free = min(self._slot.fits(node.resources) - len(on_node), self._slot.fits(node.free) - starting)
            for _ in range(max(0, min(free, room))):
                self._start(node, self._slot)
                room -= 1
        if self._usable() and trials and not self._workers and not self._reported_full:
            self._reported_full = True
            self._observer.note(f"the cluster is in use by others; waiting until {self._slot} is free")

    def _shared_workers(self) -> int:
        return sum(not w.exclusive for w in self._workers.values())

    def _start(self, node: Node, slot: Slot, *, exclusive: bool = False) -> _WorkerState:
        share = 1.0 if exclusive or not 0 < slot.gpus < 1 else slot.gpus
        materials, options, *rest = self._arguments
        handle, reference = self._cluster.start(node, slot, (materials, options, share, *rest))
        worker = _WorkerState(self._started, handle, node, time.monotonic(), exclusive)
        self._started += 1
        self._workers[worker.number] = worker
        self._requests[reference] = functools.partial(self._on_started, worker)
        return worker

    def _on_started(self, worker: _WorkerState, info: WorkerInfo | Fault) -> None:
        if worker.number not in self._workers:  # killed meanwhile
            return
        waiting = [e for e in self._exclusive if e.worker is worker]
        if isinstance(info, Fault):
            self._workers.pop(worker.number)
            self._failed_starts[worker.node.id] += 1
            if self._failed_starts[worker.node.id] >= MAX_FAILED_STARTS and worker.node.id not in self._proven:
                self._exclude(worker.node, f"workers cannot start: {info.message}")
            for exclusive in waiting:
                exclusive.device = exclusive.worker = None
            return
        worker.info = info
        self._proven.add(worker.node.id)
        for exclusive in waiting:
            self._give(worker, exclusive.trial)

    def _end(self, worker: _WorkerState) -> None:
        self._workers.pop(worker.number, None)
        self._cluster.kill(worker.handle)

    # -- trials --------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give each idle worker its next trial; clear a device for the first trial that needs one exclusively."""
        if self._exclusive:
            self._clear_device(self._exclusive[0])
        cleared = {e.device for e in self._exclusive if e.device}
        for worker in self._workers.values():
            idle = worker.info and not worker.trial and not worker.exclusive
            if idle and worker.device not in cleared and len(self._queue):
                self._give(worker, self._queue.take(worker.previous))

    def _give(self, worker: _WorkerState, trial: Trial) -> None:
        worker.trial, worker.since = trial, time.monotonic()
        self._requests[worker.handle.run.remote(trial)] = functools.partial(self._on_result, worker)

    def _clear_device(self, exclusive: _ExclusiveTrial) -> None:
        """One step towards exclusive use: choose a device, end its workers as they become idle, then take all of it."""
        if exclusive.worker is not None:
            return
        exclusive.device = exclusive.device or self._choose_device()
        if exclusive.device is None:
            return
        on_device = [w for w in self._workers.values() if w.device == exclusive.device]
        for worker in [w for w in on_device if not w.trial]:
            self._end(worker)
        if any(w.trial for w in on_device):
            return
        node = self._cluster.nodes().get(exclusive.device[0])
        if node is None:
            exclusive.device = None
            return
        whole = dataclasses.replace(self._slot, gpus=max(1.0, self._slot.gpus) if self._slot.gpus else 0.0)
        exclusive.worker = self._start(node, whole, exclusive=True)

    def _choose_device(self) -> Device | None:
        """The device of an idle worker, else of a busy one; without workers, any device of a usable node."""
        if started := [w for w in self._workers.values() if w.device]:
            return min(started, key=lambda w: bool(w.trial)).device
        nodes = [] if self._workers else self._usable()
        return (nodes[0].id, "") if nodes else None

    def _on_result(self, worker: _WorkerState, result: TrialResult | Fault) -> None:
        if worker.number not in self._workers:  # killed: its fault has been handled
            return
        if isinstance(result, Fault):
            self._on_lost(worker, result)
            return
        assert worker.trial is not None
        trial, worker.trial = worker.trial, None
        worker.previous = trial
        kind = result.facts.get("failure")
        if kind == "infrastructure":
            self._check(worker.node)
        if worker.exclusive or kind in ("infrastructure", "memory"):
            self._end(worker)
        if kind in ("infrastructure", "memory"):
            self._on_fault(trial, Fault(kind, f"{worker}: {result.reason}"), result)
        else:
            self._finish(trial, result, attempts=len(self._history.get(trial.key, ())) + 1)

    def _on_lost(self, worker: _WorkerState, fault: Fault) -> None:
        """Handle a worker that died, or that must be killed, while it had a trial."""
        assert worker.trial is not None
        assert worker.info is not None
        self._end(worker)
        environment = {"host": worker.node.host, "pid": worker.info.pid}
        log = orphaned_log(worker.info, worker.trial)
        result = TrialResult(worker.trial.key, "failed", fault.message, environment=environment, log=log)
        self._on_fault(worker.trial, Fault(fault.kind, f"{worker}: {fault.message}"), result)

    def _on_fault(self, trial: Trial, fault: Fault, result: TrialResult) -> None:
        """Retry the trial, or record it as failed."""
        history = self._history.setdefault(trial.key, [])
        history.append(fault)
        action = next_action(history, self._options.retries)
        if action == "fail":
            facts, reason = {**result.facts, "failure": fault.kind}, failure_reason(history, result.reason)
            self._finish(trial, dataclasses.replace(result, reason=reason, facts=facts), attempts=len(history))
            return
        self._observer.retried(trial, fault)
        self._withdraw(trial)
        if action == "retry_exclusive":
            self._exclusive.append(_ExclusiveTrial(trial))
        else:
            self._queue.put(trial)

    def _finish(self, trial: Trial, result: TrialResult, attempts: int) -> None:
        self._withdraw(trial)
        past_faults = [f"{fault.kind}: {fault.message}" for fault in self._history.pop(trial.key, [])]
        facts = {**result.facts, "attempts": attempts, "faults": past_faults}
        if result.status == "ok":
            self._resort |= self._estimates.learn(trial, result.facts["trial_s"])
        self._observer.finished(trial, dataclasses.replace(result, facts=facts))

    def _withdraw(self, trial: Trial) -> None:
        self._exclusive = deque(e for e in self._exclusive if e.trial is not trial)

    def _enforce_deadlines(self) -> None:
        """Kill workers that do not start, and those that do not report a trial's timeout, as when a disk hangs."""
        now = time.monotonic()
        for worker in [w for w in self._workers.values() if w.info is None and now - w.since > START_S]:
            self._cluster.kill(worker.handle)
            self._on_started(worker, Fault("infrastructure", f"not started after {START_S:.0f} s"))
        if self._options.timeout is None:
            return
        for worker in [w for w in self._busy() if now - w.since > self._options.timeout + GRACE_S]:
            self._on_lost(worker, Fault("timeout", f"no result after {self._options.timeout:g} s (--timeout)"))

    # -- progress ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        if self._resort:  # not for each finished trial: a long queue takes a while
            self._queue.refresh()
            self._resort = False
        states = [_describe(worker) for worker in self._workers.values()]
        self._observer.tick(len(self._busy()), states, self._seconds_left())

    def _seconds_left(self) -> float | None:
        if not self._estimates.known:
            return None
        running = sum(self._seconds_left_of(w.trial, w.since) for w in self._workers.values() if w.trial)
        return (self._queue.remaining() + running) / max(1, self._shared_workers())

    def _seconds_left_of(self, trial: Trial, since: float) -> float:
        return max(0.0, self._estimates.seconds(trial) - (time.monotonic() - since))


def _describe(worker: _WorkerState) -> str:
    seconds = f"{time.monotonic() - worker.since:.0f} s"
    if worker.info is None:
        return f"{worker}: starting, {seconds}"
    if worker.trial is None:
        return f"{worker}: idle"
    return f"{worker}: {title(worker.trial)}, {seconds}"
