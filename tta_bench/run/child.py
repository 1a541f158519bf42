"""The process in which a method runs: the only one, and it has no labels, file names or shifts.

It serves the trials of one method, source model and precision. It gets pixels, and returns scores and what the meters
say; grading is its supervisor's (:mod:`tta_bench.run.runner`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import random
import socket
import sys
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_bench import optimizers
from tta_bench.adapter import Adapter, Config, Context, SourceRequest, context_for
from tta_bench.errors import UsageError, text_of
from tta_bench.models import MissingPart, SourceModel, state_sha256
from tta_bench.run import messages
from tta_bench.run import ring as rings
from tta_bench.run.faults import DataFault, kind_of
from tta_bench.run.global_state import GlobalState, OwnState, settle
from tta_bench.run.loading import to_tensor
from tta_bench.run.meters import PassCounter, StepCounter, Stopwatch, peak_memory_mib, reset_peak_memory
from tta_bench.run.output import captured, shown
from tta_bench.run.precision import PRECISIONS

_KEPT = 4  # prepared statistics that a child holds
_ARGUMENTS = ("tta-bench",)  # what a method finds as the command line: a plugin that reads it must not meet ours


class _Skip(Exception):
    """The method says that it cannot run here."""


def serve(connection: Connection, opening: messages.Opening, log: str) -> None:
    """Run trials until the supervisor closes the connection.

    Raises:
        EOFError: it has closed it.
    """
    sys.argv = [*_ARGUMENTS]
    settle(opening.threads)
    with captured(log):
        child = _opened(connection, opening)
    while child is not None and child.run(connection.recv()):
        pass
    while (
        True
    ):  # a supervisor that is still sending batches must find out why the trial is over, not a closed connection
        connection.recv_bytes()


def _opened(connection: Connection, opening: messages.Opening) -> Child | None:
    try:
        child = Child(connection, opening)
        connection.send(messages.Opened(child.pristine.num_classes, environment(child.device, opening.threads)))
        return child
    except BaseException as error:  # see Child.run
        connection.send(failed(error))
        return None


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Where a trial ran: none of it is in the key, all of it is in the row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": device.type,
        "device_name": name,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def failed(error: BaseException) -> messages.Failed:
    """What the supervisor is told of an exception."""
    text = text_of(error)
    reason = text if isinstance(error, DataFault) else f"{type(error).__name__}: {text}"
    return messages.Failed(kind_of(error), shown(reason), shown(traceback.format_exc()))


class Child:
    """What is kept between trials: the pristine source model with its counter, and prepared statistics.

    Raises:
        DataFault: this machine has other weights than the run was planned with, or none.
    """

    def __init__(self, connection: Connection, opening: messages.Opening):
        with contextlib.suppress(OSError):  # what relative paths name is then said to be lacking
            os.chdir(opening.folder)
        self.connection, self.opening = connection, opening
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = PRECISIONS[opening.precision]
        self.state = GlobalState()
        self.method: type[Adapter] | None = None  # loaded in its first trial
        model = _loaded(opening)
        self.pristine = model.to(self.device, self.precision.dtype)
        self.counter = PassCounter(self.pristine)
        self.prepared: OrderedDict[str, tuple[dict[str, Tensor], dict[str, Any]]] = OrderedDict()

    def run(self, job: messages.Job) -> bool:
        """Run one trial; whatever a method raises, ``SystemExit`` and ``KeyboardInterrupt`` too, is a result of it.

        False where no other trial may follow.
        """
        outcome: messages.TrialOver | messages.Skipped | messages.Failed
        with captured(job.log):
            try:
                _Trial(self, job).run()
                outcome = messages.TrialOver()
            except (_Skip, MissingPart) as skipped:
                outcome = messages.Skipped(shown(str(skipped)))
            except BaseException as error:
                outcome = failed(error)
            changes = (*self.state.changes(), *(self.own.changes() if self.method else ()))
        self.connection.send(replace(outcome, changes=changes))
        return not isinstance(outcome, messages.Failed)

    def load_method(self) -> type[Adapter]:
        """The method's class; what its modules hold is remembered when it is loaded."""
        if self.method is None:
            method = self.opening.registry.load(self.opening.method)
            self.own = OwnState(method)
            self.method = method
        return self.method


def _loaded(opening: messages.Opening) -> SourceModel:
    try:
        model = opening.network.load()
    except (UsageError, OSError) as error:
        raise DataFault(str(error)) from error
    if state_sha256(model.net) != opening.weights_sha256:
        raise DataFault("the weights are others than those that the run was planned with")
    return model


class _Trial:
    """One trial under way."""

    def __init__(self, child: Child, job: messages.Job):
        self.child, self.job, self.device = child, job, child.device
        self.ring = rings.taken(job.ring, child.connection)
        _seed(job.prepare_seed)  # of no stream: what prepare() returned is reused by others
        self.counter = child.counter
        self.counter.read()
        registry = child.opening.registry
        cls = child.load_method()
        model = copy.deepcopy(child.pristine)
        model.weights_sha256 = child.opening.weights_sha256
        config = cls.Config.model_validate(job.config, context={"registry": registry})
        context = context_for(model, job.batch_size, job.side, self.device, job.prepare_seed)
        if reason := cls.skip(model, config, context) or _short_batch(cls, model, config, context, job.smallest_batch):
            raise _Skip(reason)
        self.adapter = cls(model, config, context)
        self.steps = StepCounter()
        self.watch = Stopwatch(self.device)
        self.sent = deque[Any]()  # CUDA events after the scores that the supervisor has not been told of

    def run(self) -> None:
        """Set the method up, then work through the stream as it comes."""
        with self.steps.watching(), rings.pinned(self.ring, self.device):
            facts = self._set_up()
            self.child.connection.send(messages.SetUp(self.adapter.outputs, facts))
            while self._segment():
                pass

    # -- set-up --------------------------------------------------------------------------------------------------------

    def _set_up(self) -> dict[str, Any]:
        adapter = self.adapter
        adapter.setup()
        adapter.remember()
        prepared, facts = self._prepared()
        adapter.reset()  # prepare() leaves nothing behind but what it returned, so that it may be reused
        adapter.prepared = {name: value.clone() for name, value in prepared.items()}
        adapter.context.generator.manual_seed(self.job.method_seed)
        _seed(self.job.method_seed)
        self.steps.read()
        self.counter.read()
        self.needs = optimizers.needs(adapter)
        return {
            **facts,
            "adapted_parameters": sum(p.numel() for p in adapter.model.parameters() if p.requires_grad),
            "batch_statistics": _batch_statistics(adapter),
            "checkpoint": optimizers.checkpoint_origin(adapter),
            "reset_keeps": _kept(adapter.reset_keeps),
            **self.needs.columns(),
        }

    def _prepared(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(what ``prepare`` returned, facts about it); reused for a method, config, model, source data and seed.

        Raises:
            TypeError: the method asks for source images without declaring it, so that they are not in the trial's key.
        """
        request, kept = self.adapter.source_request(), self.child.prepared
        if request is None:
            return {}, {}
        if not self.adapter.needs.source_images:
            raise TypeError("source_request() asks for images, but the method's needs do not have source_images")
        place = f"{self.job.prepared_as} {request}"
        if place not in kept:
            kept[place] = self._prepare(request)
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        return kept[place]

    def _prepare(self, request: SourceRequest) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.job.source_images is None:
            raise _Skip("the suite names no source images")
        count = min(request.images, self.job.source_images)
        start = time.perf_counter()
        returned = self.adapter.prepare(self._source(count, request.batch_size))
        prepared = {name: value.detach().clone() for name, value in returned.items()}
        forwarded, backwarded = self.counter.read()
        facts = {
            "source_images": count,
            "prepare_s": time.perf_counter() - start,
            "prepare_images_forwarded": forwarded,
            "prepare_images_backwarded": backwarded,
        }
        return prepared, facts

    def _source(self, count: int, batch_size: int) -> Iterator[Tensor]:
        for first in range(0, count, batch_size):
            end = min(first + batch_size, count)
            parts = []
            for start in range(first, end, self.job.ring.images):
                self.child.connection.send(messages.SourceWanted(start, min(self.job.ring.images, end - start)))
                parts.append(self._images(self.child.connection.recv()))
            yield torch.cat(parts)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def _segment(self) -> bool:
        """Work through one segment; False where the trial is at its end instead."""
        reset_peak_memory(self.device)
        data_ms, stats = list[float](), list[Mapping[str, float | Tensor] | None]()
        while True:
            self._tell_all_but_what_runs()
            start = time.perf_counter()
            message = self.child.connection.recv()
            if isinstance(message, messages.TrialEnd):
                return False
            if isinstance(message, messages.SegmentEnd):
                break
            x = self._images(message)
            data_ms.append((time.perf_counter() - start) * 1e3)
            stats.append(self._batch(message, x))
        self.child.connection.send(self._measured(np.array(data_ms), stats))
        return True

    def _tell_all_but_what_runs(self) -> None:
        """Tell of scores that have arrived; where the next batch has not come, wait for those that have not."""
        while self.sent and (self.sent[0].query() or not self.child.connection.poll()):
            self._tell_oldest()

    def _batch(self, batch: messages.Batch, x: Tensor) -> Mapping[str, float | Tensor] | None:
        """What the method says of a batch, once its scores are on their way; None where it did not adapt."""
        adapts = batch.adapt and batch.images >= self.needs.min_batch
        with self.watch.timing():
            if batch.reset:
                self.adapter.reset()
            scores = self.adapter.step(x) if adapts else self.adapter.predict(x)
            said = _copied(optimizers.stats(self.adapter)) if adapts else None
        _check_shape(scores, batch.images, self.adapter.context.num_classes)
        torch.from_numpy(self.ring.scores[batch.slot, : batch.images]).copy_(scores.detach(), non_blocking=True)
        if self.device.type == "cuda":
            self.sent.append(torch.cuda.current_stream().record_event())
        else:
            self.child.connection.send(messages.Scored())
        return said

    def _tell_oldest(self) -> None:
        self.sent.popleft().synchronize()
        self.child.connection.send(messages.Scored())

    def _images(self, batch: messages.Batch) -> Tensor:
        pixels = self.ring.pixels[batch.slot, : batch.images]
        return to_tensor(pixels, self.device, self.child.precision.dtype)

    def _measured(self, data_ms: np.ndarray, stats: list[Mapping[str, float | Tensor] | None]) -> messages.Measured:
        while self.sent:
            self._tell_oldest()
        forwarded, backwarded = self.counter.read()
        return messages.Measured(
            forwarded,
            backwarded,
            self.steps.read(),
            peak_memory_mib(self.device),
            np.array([said is not None for said in stats]),
            self.watch.read_ms(),
            data_ms,
            {name: _numbers(name, stats) for name in optimizers.stats(self.adapter)},
        )


def _short_batch(cls: type[Adapter], model: SourceModel, config: Config, context: Context, smallest: int) -> str | None:
    """Why the method cannot adapt on the stream's short batches, such as a last one of one image; None where it can."""
    least = (cls.declared(config).needs | config.plugin_needs()).min_batch
    if not least <= smallest < context.batch_size:
        return None
    reason = cls.skip(model, config, replace(context, batch_size=smallest))
    return f"a batch of the stream has {smallest} of {context.batch_size} images: {reason}" if reason else None


def _seed(seed: int) -> None:
    """A method's own randomness is Context.generator; a stray global draw at least does not depend on what ran before."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _batch_statistics(adapter: Adapter) -> str:
    """Whether BatchNorm normalises with the batch's own statistics: "per-batch", "per-image" at batch 1, "" where not."""
    layers = [m for m in adapter.model.net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not any(layer.training or layer.running_mean is None for layer in layers):
        return ""
    return "per-image" if adapter.context.batch_size == 1 else "per-batch"


def _kept(names: Any) -> str:
    """``reset_keeps`` as a column.

    Raises:
        TypeError: it holds something that is no name; or it is a single text, which would be read letter by letter.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"reset_keeps must be a tuple of names, it is {names!r:.100}")
    return ",".join(names)


def _copied(stats: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Tensors as they are now; they are read at the end of the segment, and a method may go on writing to them."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in stats.items()}


def _numbers(name: str, stats: list[Mapping[str, float | Tensor] | None]) -> np.ndarray:
    """One statistic of each batch, float64, not a number where it was not adapted on; read from the device all at once.

    Raises:
        TypeError: its name cannot be a column's, or its value is no number.
    """
    if not (name.isascii() and name.isidentifier()):
        raise TypeError(f"stats() says {name!r}: a name must be of letters, digits and underscores")
    numbers = np.full(len(stats), np.nan)
    values = [s[name] for s in stats if s is not None]
    try:
        if values and all(isinstance(value, Tensor) for value in values):
            read = torch.stack([torch.as_tensor(value) for value in values]).double().cpu().numpy()
        else:
            read = np.array([float(value) for value in values])
        numbers[[s is not None for s in stats]] = read
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"stats() must return numbers or 0-dim tensors; {name!r} is {values[0]!r:.100}") from error
    return numbers


def _check_shape(scores: Any, batch: int, classes: int) -> None:
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (batch, classes):
        raise TypeError(f"step() must return scores of shape ({batch}, {classes}), it returned {shape}")
