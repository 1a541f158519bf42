"""The supervisor: runs trials on one device, holds images and labels, and never loads a method.

A method runs in a child (:mod:`tta_bench.run.child`) started by a fork server. Pixels go to it and scores come back
through shared memory; they are graded here. Knows nothing of Ray, other workers, or where results are stored.
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
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tta_bench.data.base import digest
from tta_bench.data.cache import Direct, ImageCache, Images, default_root
from tta_bench.errors import UsageError, text_of
from tta_bench.precision import Mode
from tta_bench.run import child as children
from tta_bench.run import messages, meters, metrics, output
from tta_bench.run import ring as rings
from tta_bench.run.faults import DataFault, FaultKind
from tta_bench.run.grading import Grader
from tta_bench.run.image_makers import batches, makers
from tta_bench.run.ring import Ring
from tta_bench.run.server import ForkServer, Process
from tta_bench.store import schema
from tta_bench.streams import derived_seed
from tta_bench.suite.plan import Materials, Trial

M = TypeVar("M")
OUTPUTS = ("logits", "probabilities")  # kinds of scores
# batches after which statistics, events and counters are read, so that they do not pile up in long segments
BLOCK = 1000


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        key: of the trial.
        status: "ok", "failed" or "skipped"; "profiled", with a trace and no rows, is never stored.
        reason, traceback: why it failed or was skipped.
        facts: scalars about the whole trial.
        segments: a dict per segment: :class:`tta_bench.store.schema.Segment`.
        shifts: a dict per segment, shift and visit: :class:`tta_bench.store.schema.Shift`.
        batches: per batch, arrays of equal length: :class:`tta_bench.store.schema.Batches`.
        images: per image in stream order, arrays of equal length: :class:`tta_bench.store.schema.Images`; none of a long
            stream.
        environment: host, device and versions.
        log: output of the method.
        trace: of a profile: a Chrome trace, gzipped JSON.
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
    trace: bytes = field(default=b"", repr=False)


class _TrialEnded(Exception):
    """The child reported the end of the trial before the end of its stream."""

    def __init__(self, message: messages.TrialFailed | messages.TrialSkipped | messages.TrialProfiled):
        self.message = message
        super().__init__(message)


class _InvalidFacts(Exception):
    """A method reported values that do not fit the schema of records."""


@dataclass
class _Child:
    """A child and the trials it serves."""

    serves: tuple[str, str, Mode]  # method, source model, how it computes
    process: Process
    loaded: messages.ModelLoaded | None = None
    is_streaming: bool = False  # in a stream, which a trial may leave before its end


class Supervisor:
    """Runs trials one after another.

    Args:
        materials: what all trials share.
        cache: the image cache.
        threads: CPU threads of torch in the child, for equal numbers of which results are bit-identical; and the number
            of processes that make images, where a stream's are not cached.
        server: forks the children.
        timeout: seconds after which a trial's child is killed, or None.
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
        self.threads, self._timeout = threads, timeout
        self._child: _Child | None = None

    def run(self, trial: Trial) -> TrialResult:
        """Run a trial; errors of the method, its data or its device give a ``failed`` result and do not raise."""
        log = self.logs / f"{trial.key}.log"
        log.touch()
        start, load = time.perf_counter(), meters.load()
        deadline = None if self._timeout is None else start + self._timeout
        outcome, changes = self._outcome(trial, log, deadline)
        environment = {"host": socket.gethostname(), "pid": os.getpid()}
        if self._child and self._child.loaded:
            environment = dict(self._child.loaded.environment)
        if changes or outcome["status"] == "failed" or (self._child and self._child.is_streaming):
            self.end_child()
        facts = {**outcome.pop("facts", {}), "trial_s": time.perf_counter() - start}
        facts |= {"load_start": load, "load_end": meters.load()}
        if changes:
            facts["global_changes"] = output.printable(", ".join(changes))
        text = output.read(log)
        log.unlink(missing_ok=True)
        return TrialResult(trial.key, environment=environment, facts=facts, log=text, **outcome)

    def _outcome(
        self, trial: Trial, log: pathlib.Path, deadline: float | None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(status, reason, facts, …; the global state that the method has changed)."""
        try:
            return _TrialExchange(self, trial, log, deadline).result()
        except _TrialEnded as ended:
            message = ended.message
            if isinstance(message, messages.TrialProfiled):
                outcome = {"status": "profiled", "facts": message.facts, "trace": _taken(_trace_file(log))}
                return outcome, message.changes
            if isinstance(message, messages.TrialSkipped):
                return {"status": "skipped", "reason": message.reason}, message.changes
            return _failure(message.kind, message.reason, message.traceback), message.changes
        except DataFault as fault:
            return _failure("infrastructure", str(fault)), ()
        except metrics.WrongOutputs as error:
            return _failure("method", str(error)), ()
        except FloatingPointError as error:
            return _failure("method", f"FloatingPointError: {error}"), ()
        except _InvalidFacts as invalid:
            return _failure("method", str(invalid)), ()
        except TimeoutError as error:
            return _failure("timeout", str(error)), ()
        except (EOFError, ConnectionError):
            return _failure(*self._cause_of_death()), ()
        except Exception as error:  # a bug of the harness must not end the run either
            return _failure("method", f"{type(error).__name__}: {text_of(error)}", traceback.format_exc()), ()

    def _cause_of_death(self) -> tuple[FaultKind, str]:
        """(kind, reason) of the unexpected end of the child."""
        child, self._child = self._child, None
        try:
            code = child.process.end(kill=False) if child else None
        except ConnectionError:
            code = None
        if code is None:
            return "infrastructure", "the fork server ended unexpectedly"
        if code == -signal.SIGKILL:
            return (
                "memory",
                "the method's process was killed (SIGKILL), most likely because the machine ran out of memory",
            )
        if code < 0:
            return "method", f"the method's process was killed by {signal.Signals(-code).name}"
        return "method", f"the method's process exited with code {code}"

    def child(self, trial: Trial, log: pathlib.Path, deadline: float | None) -> _Child:
        """The child for the trial's method, source model and mode: the current one if it fits, or a new one."""
        serves = (trial.method, trial.model, trial.mode)
        if self._child is None or self._child.serves != serves:
            self.end_child()
            setup = messages.ChildSetup(
                trial.method,
                self.materials.models[trial.model],
                trial.asked["model"]["weights_sha256"],
                trial.mode,
                self.materials.registry,
                self.threads,
                self.materials.folder,
                str((self.cache.root or default_root()) / "compiled"),
            )
            self._child = _Child(serves, self.server.fork(children.serve, setup, str(log)))
            self._child.loaded = self.receive(self._child, messages.ModelLoaded, deadline)
        return self._child

    def end_child(self) -> None:
        """Kill the child, if there is one."""
        if self._child is not None:
            self._child.process.end()
            self._child = None

    def receive(self, child: _Child, kind: type[M], deadline: float | None) -> M:
        """The child's next message, which must be of type ``kind``.

        Raises:
            _TrialEnded: the child reported that the trial failed, was skipped or is profiled.
            TimeoutError: no message arrived before the deadline.
            EOFError: the child has ended.
            ConnectionError: the message is of another type.
        """
        connection = child.process.connection
        if deadline is not None and not connection.poll(max(0.0, deadline - time.perf_counter())):
            raise TimeoutError(f"no result after {self._timeout:g} s (--timeout)")
        message = connection.recv()
        if isinstance(message, messages.TrialFailed | messages.TrialSkipped | messages.TrialProfiled):
            raise _TrialEnded(message)
        if not isinstance(message, kind):
            raise ConnectionError(f"the method's process sent an unexpected {type(message).__name__}")
        return message


def _trace_file(log: pathlib.Path) -> pathlib.Path:
    return log.with_suffix(".json.gz")


def _taken(file: pathlib.Path) -> bytes:
    """The content of a file, which is deleted."""
    content = file.read_bytes()
    file.unlink()
    return content


def _failure(kind: FaultKind, reason: str, traceback: str = "") -> dict[str, Any]:
    texts = {"reason": output.printable(reason), "traceback": output.printable(traceback)}
    return {"status": "failed", **texts, "facts": {"failure": kind}}


def _refuse(violations: Iterable[str]) -> None:
    """Check that there are no violations of the schema of records.

    Raises:
        _InvalidFacts: there are some.
    """
    if texts := [*violations]:
        raise _InvalidFacts(f"the method reported invalid values: {'; '.join(texts)}")


def _printable_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with printable strings."""
    return {name: output.printable(value) if type(value) is str else value for name, value in facts.items()}


class _Sent(NamedTuple):
    """Batch ``number`` of the stream, in flight; its ``images`` images may have been left out of its message."""

    message: messages.Batch
    number: int
    images: int


class _Block(NamedTuple):
    """Batches [first, last) of a segment, after which the child reads its meters; ``ends``: it is the segment's last."""

    segment: int
    first: int
    last: int
    ends: bool


class _TrialExchange:
    """One trial, as an exchange of messages with its child."""

    def __init__(self, supervisor: Supervisor, trial: Trial, log: pathlib.Path, deadline: float | None):
        self._supervisor, self._trial, self._log, self._deadline = supervisor, trial, log, deadline
        materials = supervisor.materials
        self._dataset = materials.datasets[trial.model]
        self._stream = supervisor.streams.build(trial.model, trial.stream)
        with _reading():
            entries = [materials.cache_entry(trial.model, trial.stream, shift) for shift in trial.stream.cached]
            self._images = [supervisor.cache.images(entry) for entry in entries]
        self._child = supervisor.child(trial, log, deadline)

    def result(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Let the method set up, then run the stream."""
        if self._images:
            return self._result(None)
        stream = self._stream
        with makers(self._supervisor.server, self._dataset, stream.shifts, self._supervisor.threads) as processes:
            shown = (number for number in range(len(stream.adapt)) if self._is_shown(number))
            return self._result(batches(processes, map(stream.batch, shown)))

    def _result(self, pixels: Iterator[np.ndarray] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Run the stream; ``pixels`` of the batches that are shown, in order, where none are cached."""
        self._pixels = pixels
        self._ring = self._request()
        ready = self._await_method()
        self._child.is_streaming = True
        grader = Grader(self._stream, self._dataset, self._supervisor.materials.per_image)
        verdicts = list[metrics.BatchVerdicts]()
        for sent in self._in_flight():
            if isinstance(sent, _Sent):
                verdicts.append(self._verdicts(sent, grader, ready.outputs))
                continue
            grader.add(sent.first, verdicts, self._receive(messages.BlockMeasurements))
            verdicts.clear()
            if sent.ends:
                grader.end_segment(sent.segment)
        self._send(messages.TrialEnd())
        self._child.is_streaming = False
        done, results = self._receive(messages.TrialDone), grader.results()
        _refuse(schema.row_faults(results["segments"], results["shifts"]))
        facts = _printable_facts({**ready.facts, **done.facts}) | grader.facts()
        return {"status": "ok", "facts": facts, **results}, done.changes

    def _request(self) -> Ring:
        trial, process = self._trial, self._child.process
        of_prepare = ("method", "model", "source", "batch_size", "seed", *vars(Mode()), "classes")
        prepare_key = {name: trial.asked.get(name) for name in of_prepare}
        source = self._dataset.source
        sizes = np.diff(self._stream.bounds)
        full = sizes if self._stream.grades is None else sizes[self._stream.adapt]  # a window fills before it adapts
        largest = max(trial.stream.batch_size, int(sizes.max()))
        size = rings.RingSize(largest, self._dataset.side, self._classes)
        request = messages.TrialRequest(
            trial.config,
            size,
            self._dataset.side,
            largest,
            int(min(full, default=largest)),
            any(self._is_shown(int(number)) for number in np.flatnonzero(~self._stream.adapt)),
            derived_seed("prepare", trial.seed),
            derived_seed("method", trial.seed, self._stream.sha256),
            None if source is None else len(source.ids),
            digest(prepare_key),
            str(self._log),
            trial.calibrates,
            trial.mask,
            str(_trace_file(self._log)) if trial.profiles else None,
        )
        self._send(request)
        with _reading():
            return rings.send(size, process.connection, process.pid)

    def _await_method(self) -> messages.MethodReady:
        """Send source images until the method is ready."""
        expected: Any = messages.MethodReady | messages.SourceImagesRequest
        while not isinstance(message := self._receive(expected), messages.MethodReady):
            source = self._dataset.source
            assert source is not None
            order = np.random.default_rng(derived_seed("source", self._trial.seed)).permutation(len(source.ids))
            requested = order[message.first : message.first + message.images]
            with _reading():
                self._ring.pixels[0, : len(requested)] = [source.decode(int(i)) for i in requested]
            self._send(messages.Batch(0, len(requested)))
        _refuse(schema.fact_faults(schema.Facts, message.facts))
        if message.outputs not in OUTPUTS:
            raise _InvalidFacts(f"outputs must be {' or '.join(OUTPUTS)}, not {message.outputs!r:.100}")
        return message

    def _is_shown(self, number: int) -> bool:
        """Whether the method is given a batch: all but the skipped ones that count at chance."""
        segment = self._stream.segments[self._stream.segment[number]]
        return bool(self._stream.adapt[number]) or segment.role != "stream" or not self._trial.counts_at_chance

    def _in_flight(self) -> Iterator[_Sent | _Block]:
        """Send the stream to the child; yields what was sent, in order.

        Up to ``SLOTS`` batches are sent before the first of them is yielded, also across blocks and segments: while scores
        are graded, the child has images to go on with. The caller receives the answer to each item before it asks for the
        next, so that the item's slot is free.
        """
        sent = deque[_Sent | _Block]()
        for block in self._blocks():
            for number in range(block.first, block.last):
                while sum(isinstance(each, _Sent) for each in sent) == rings.SLOTS:
                    yield sent.popleft()
                sent.append(self._send_batch(number))
            self._send(messages.BlockEnd())
            sent.append(block)
        yield from sent

    def _blocks(self) -> Iterator[_Block]:
        for position, segment in enumerate(self._stream.segments):
            for first in range(segment.first, segment.last, BLOCK):
                last = min(first + BLOCK, segment.last)
                yield _Block(position, first, last, last == segment.last)

    def _send_batch(self, number: int) -> _Sent:
        """Send a batch through its slot; one that is skipped and counts at chance goes without its images."""
        batch, slot = self._stream.batch(number), number % rings.SLOTS
        shown = len(batch.image) if self._is_shown(number) else 0
        if shown:
            with _reading():
                out = self._ring.pixels[slot, :shown]
                if self._pixels is not None:
                    out[:] = next(self._pixels)
                else:
                    _fill(out, self._images, batch.shift, batch.image)
        message = messages.Batch(slot, shown, batch.reset_before, batch.adapt)
        self._send(message)
        return _Sent(message, number, len(batch.image))

    @property
    def _classes(self) -> int:
        """The number of classes that the method's network tells apart."""
        assert self._child.loaded is not None
        return self._child.loaded.classes if self._trial.mask is None else len(self._trial.mask)

    def _verdicts(self, sent: _Sent, grader: Grader, outputs: str) -> metrics.BatchVerdicts:
        self._receive(messages.Scored)
        if not sent.message.images:
            return metrics.chance(sent.images, self._classes)
        return metrics.grade(self._ring.scores[sent.message.slot, : sent.images], grader.labels(sent.number), outputs)

    def _send(self, message: Any) -> None:
        self._child.process.connection.send(message)

    def _receive(self, kind: type[M]) -> M:
        return self._supervisor.receive(self._child, kind, self._deadline)


@contextmanager
def _reading() -> Iterator[None]:
    """Errors of reading are the machine's fault, not the method's.

    Raises:
        DataFault: something cannot be read.
    """
    try:
        yield
    except (UsageError, OSError) as error:
        raise DataFault(str(error)) from error


def _fill(out: np.ndarray, images: list[Images | Direct], shift: np.ndarray, image: np.ndarray) -> None:
    """Write the pixels of a batch, which may mix shifts, into ``out`` (B, side, side, 3)."""
    for number in np.unique(shift):
        of_shift = shift == number
        if of_shift.all():
            images[number].fill(out, image)
        else:
            out[of_shift] = images[number].take(image[of_shift])
