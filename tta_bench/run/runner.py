"""Run trials on one device: the supervisor, which holds images and labels and never loads a method.

A method runs in a child (:mod:`tta_bench.run.child`) that a fork server makes; pixels go to it and scores come back
through shared memory, and are graded here. Knows nothing of Ray, of other workers, or of where results are kept.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tta_bench.data.base import digest
from tta_bench.data.cache import Direct, ImageCache, Images
from tta_bench.errors import UsageError, text_of
from tta_bench.run import child as children
from tta_bench.run import messages, metrics, output
from tta_bench.run import ring as rings
from tta_bench.run.faults import DataFault, FaultKind
from tta_bench.run.grading import Grader
from tta_bench.run.ring import Ring
from tta_bench.run.server import ForkServer, Process
from tta_bench.store import schema
from tta_bench.streams import Segment, derived_seed
from tta_bench.suite.plan import Materials, Trial

M = TypeVar("M")
OUTPUTS = ("logits", "probabilities")  # what a method's scores may be


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to.

    Attributes:
        key: the trial's key.
        status: "ok", "failed" or "skipped"; then ``reason`` says why, and ``traceback`` where.
        facts: scalars about the whole trial.
        segments: one dict for each segment: :class:`tta_bench.store.schema.Segment`.
        shifts: one dict for each segment, shift and visit: :class:`tta_bench.store.schema.Shift`.
        batches: per batch, arrays of equal length: :class:`tta_bench.store.schema.Batches`.
        images: per image in stream order, arrays of equal length: :class:`tta_bench.store.schema.Images`.
        environment: where it ran.
        log: what it printed.
    """

    key: str
    status: str
    reason: str = ""
    traceback: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    shifts: list[dict[str, Any]] = field(default_factory=list)
    batches: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""


class _Over(Exception):
    """The child says that the trial is over before its stream is."""

    def __init__(self, message: messages.Failed | messages.Skipped):
        self.message = message
        super().__init__(message)


class _Unfit(Exception):
    """What a method says of itself is not what a record can hold."""


@dataclass
class _Child:
    """A child with what it serves."""

    serves: tuple[str, str, str]  # method, model, precision
    process: Process
    opened: messages.Opened | None = None


class Supervisor:
    """Runs trials one after another.

    Args:
        materials: what all trials share.
        cache: the image cache.
        threads: CPU threads of torch in a method's process; the same number gives the same bits.
        server: makes the children.
        timeout: seconds after which a trial's child is ended, or None.
    """

    def __init__(
        self,
        materials: Materials,
        cache: ImageCache,
        threads: int,
        server: ForkServer,
        timeout: float | None = None,
    ):
        self.materials, self.cache, self.server = materials, cache, server
        self.streams = materials.streams()
        self.logs = server.folder
        self._threads, self._timeout = threads, timeout
        self._child: _Child | None = None

    def run(self, trial: Trial) -> TrialResult:
        """Run a trial to its end.

        Never raises for what a method, its data or its device does: that is a ``failed`` result with the reason.
        """
        log = self.logs / f"{trial.key}.log"
        log.touch()
        start = time.perf_counter()
        deadline = None if self._timeout is None else start + self._timeout
        outcome, changes = self._outcome(trial, log, deadline)
        child = self._child
        where = (
            dict(child.opened.environment)
            if child and child.opened
            else {"host": socket.gethostname(), "pid": os.getpid()}
        )
        if changes or outcome["status"] == "failed":
            self.end_child()
        facts = {**outcome.pop("facts", {}), "trial_s": time.perf_counter() - start}
        if changes:
            facts["global_changes"] = output.shown(", ".join(changes))
        text = output.read(log)
        log.unlink(missing_ok=True)
        return TrialResult(trial.key, environment=where, facts=facts, log=text, **outcome)

    def _outcome(
        self, trial: Trial, log: pathlib.Path, deadline: float | None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(status, reason, facts, …; what the method has changed in its process's global state)."""
        try:
            return _Run(self, trial, log, deadline).result()
        except _Over as over:
            message = over.message
            if isinstance(message, messages.Skipped):
                return {"status": "skipped", "reason": message.reason}, message.changes
            return _failure(message.kind, message.reason, message.traceback), message.changes
        except DataFault as fault:
            return _failure("infrastructure", str(fault)), ()
        except FloatingPointError as error:
            return _failure("method", f"FloatingPointError: {error}"), ()
        except _Unfit as unfit:
            return _failure("method", str(unfit)), ()
        except TimeoutError as error:
            return _failure("timeout", str(error)), ()
        except (EOFError, ConnectionError):
            return _failure(*self._death()), ()
        except Exception as error:  # a trial never ends the run, whatever the harness has overlooked
            return _failure("method", f"{type(error).__name__}: {text_of(error)}", traceback.format_exc()), ()

    def _death(self) -> tuple[FaultKind, str]:
        """Why the child has ended by itself."""
        child, self._child = self._child, None
        try:
            code = child.process.end(kill=False) if child else None
        except ConnectionError:
            code = None
        if code is None:
            return "infrastructure", "the fork server has ended"
        if code == -signal.SIGKILL:
            return "memory", "the method's process was killed (SIGKILL): most likely the machine had no memory left"
        if code < 0:
            return "method", f"the method's process died of {signal.Signals(-code).name}"
        return "method", f"the method ended its process, with exit code {code}"

    def child(self, trial: Trial, log: pathlib.Path, deadline: float | None) -> _Child:
        """The child that serves the trial's method, model and precision: the one that is there, or a new one."""
        serves = (trial.method, trial.model, trial.precision)
        if self._child is None or self._child.serves != serves:
            self.end_child()
            opening = messages.Opening(
                trial.method,
                self.materials.models[trial.model],
                trial.asked["model"]["weights_sha256"],
                trial.precision,
                self.materials.registry,
                self._threads,
                self.materials.folder,
            )
            self._child = _Child(serves, self.server.fork(children.serve, opening, str(log)))
            self._child.opened = self.receive(self._child, messages.Opened, deadline)
        return self._child

    def end_child(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.process.end()
            self._child = None

    def receive(self, child: _Child, kind: type[M], deadline: float | None) -> M:
        """The child's next message, of the kind that is due.

        Raises:
            _Over: the trial is over.
            TimeoutError: none came before the deadline.
            EOFError: the child has ended.
        """
        connection = child.process.connection
        if deadline is not None and not connection.poll(max(0.0, deadline - time.perf_counter())):
            raise TimeoutError(f"no result after {self._timeout:g} s (--timeout)")
        message = connection.recv()
        if isinstance(message, messages.Failed | messages.Skipped):
            raise _Over(message)
        if not isinstance(message, kind):
            raise ConnectionError(f"the method's process sent {type(message).__name__}, not {kind.__name__}")
        return message


def _failure(kind: FaultKind, reason: str, where: str = "") -> dict[str, Any]:
    texts = {"reason": output.shown(reason), "traceback": output.shown(where)}
    return {"status": "failed", **texts, "facts": {"failure": kind}}


def _check(wrong: Iterable[str]) -> None:
    """Refuse what no record can hold.

    Raises:
        _Unfit: there is something wrong.
    """
    if found := [*wrong]:
        raise _Unfit(f"the method says what no record can hold: {'; '.join(found)}")


def _texts_shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with texts that every table can take."""
    return {name: output.shown(value) if type(value) is str else value for name, value in facts.items()}


class _Run:
    """One trial under way."""

    def __init__(self, supervisor: Supervisor, trial: Trial, log: pathlib.Path, deadline: float | None):
        self._supervisor, self._trial, self._log, self._deadline = supervisor, trial, log, deadline
        materials = supervisor.materials
        self._dataset = materials.datasets[trial.model]
        self._stream = supervisor.streams.build(trial.model, trial.stream)
        with _reading():
            entries = [materials.cache_entry(trial.model, trial.stream, shift) for shift in self._stream.shifts]
            self._images = [supervisor.cache.images(entry) for entry in entries]
        self._child = supervisor.child(trial, log, deadline)

    def result(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Have the method set up, then run the stream segment by segment."""
        self._ring = self._begin()
        ready = self._set_up()
        grader = Grader(self._stream, self._dataset)
        for position, segment in enumerate(self._stream.segments):
            graded = list(self._graded(segment, ready.outputs))
            self._send(messages.SegmentEnd())
            grader.add(position, graded, self._receive(messages.Measured))
        self._send(messages.TrialEnd())
        over, found = self._receive(messages.TrialOver), grader.results()
        _check(schema.row_faults(found["segments"], found["shifts"]))
        return {"status": "ok", "facts": _texts_shown(ready.facts), **found}, over.changes

    def _begin(self) -> Ring:
        trial, process = self._trial, self._child.process
        assert self._child.opened is not None
        asked = {k: trial.asked.get(k) for k in ("method", "model", "source", "batch_size", "seed", "precision")}
        source = self._dataset.source
        size = rings.Size(trial.stream.batch_size, self._dataset.side, self._child.opened.classes)
        job = messages.Job(
            trial.config,
            size,
            self._dataset.side,
            trial.stream.batch_size,
            int(np.diff(self._stream.bounds).min()),
            derived_seed("prepare", trial.seed),
            derived_seed("method", trial.seed, self._stream.sha256),
            None if source is None else len(source.ids),
            digest(asked),
            str(self._log),
        )
        self._send(job)
        with _reading():
            return rings.offered(size, process.connection, process.pid)

    def _set_up(self) -> messages.SetUp:
        """Hand out source images until the method is ready."""
        while not isinstance(message := self._receive(messages.SetUp | messages.SourceWanted), messages.SetUp):  # type: ignore[arg-type]
            source = self._dataset.source
            assert source is not None
            order = np.random.default_rng(derived_seed("source", self._trial.seed)).permutation(len(source.ids))
            wanted = order[message.first : message.first + message.images]
            with _reading():
                self._ring.pixels[0, : len(wanted)] = [source.decode(int(i)) for i in wanted]
            self._send(messages.Batch(0, len(wanted)))
        _check(schema.fact_faults(schema.Facts, message.facts))
        if message.outputs not in OUTPUTS:
            raise _Unfit(f"outputs must be {' or '.join(OUTPUTS)}, it is {message.outputs!r:.100}")
        return message

    def _graded(self, segment: Segment, outputs: str) -> Iterator[metrics.Graded]:
        """Verdicts on a segment's batches in order; some batches are always on their way."""
        on_their_way = deque[messages.Batch]()
        for number in range(segment.first, segment.last):
            if len(on_their_way) == rings.SLOTS:
                yield self._verdicts(on_their_way.popleft(), outputs)
            batch, slot = self._stream.batch(number), number % rings.SLOTS
            with _reading():
                _fill(self._ring.pixels[slot, : len(batch.image)], self._images, batch.shift, batch.image)
            on_their_way.append(messages.Batch(slot, len(batch.image), batch.reset_before, batch.adapt))
            self._send(on_their_way[-1])
        while on_their_way:
            yield self._verdicts(on_their_way.popleft(), outputs)

    def _verdicts(self, batch: messages.Batch, outputs: str) -> metrics.Graded:
        self._receive(messages.Scored)
        return metrics.grade(self._ring.scores[batch.slot, : batch.images], outputs)

    def _send(self, message: Any) -> None:
        self._child.process.connection.send(message)

    def _receive(self, kind: type[M]) -> M:
        return self._supervisor.receive(self._child, kind, self._deadline)


@contextmanager
def _reading() -> Iterator[None]:
    """What cannot be read here is this machine's fault, not the method's."""
    try:
        yield
    except (UsageError, OSError) as error:
        raise DataFault(str(error)) from error


def _fill(out: np.ndarray, images: list[Images | Direct], shift: np.ndarray, image: np.ndarray) -> None:
    """Write a batch's pixels into ``out`` (B, side, side, 3), also where it mixes shifts."""
    for number in np.unique(shift):
        of_shift = shift == number
        if of_shift.all():
            images[number].fill(out, image)
        else:
            out[of_shift] = images[number].take(image[of_shift])
