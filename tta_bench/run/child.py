"""The child: the only process that runs a method. It has no labels, file names or shifts.

A child serves the trials of one method and source model in one mode. It receives pixels and returns scores and meter
readings; its supervisor grades (:mod:`tta_bench.run.runner`).
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pathlib
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
from tta_bench.precision import PRECISIONS
from tta_bench.run import messages
from tta_bench.run import ring as rings
from tta_bench.run.engine import Engine, prepare_compiler
from tta_bench.run.faults import DataFault, kind_of
from tta_bench.run.global_state import GlobalState, MethodState, function_snapshot, set_global_state
from tta_bench.run.loading import to_tensor
from tta_bench.run.meters import (
    PassCounter,
    StepCounter,
    Stopwatch,
    held_memory_mib,
    others_memory_mib,
    peak_memory_mib,
    reset_peak_memory,
    synchronize,
)
from tta_bench.run.output import captured, printable
from tta_bench.run.profiling import DATA, FORWARD, AllStepsTraced, MarkingStopwatch, Profiler

_GLANCE_S = 2e-4  # between looks at whether scores have been copied, while no batch is there
_MAX_PREPARED = 4  # results of prepare() that a child keeps
_ARGUMENTS = ("tta-bench",)  # the command line that a method sees: a plugin that parses it must not find ours


class _Skip(Exception):
    """The method cannot run on this model or stream."""


def serve(connection: Connection, setup: messages.ChildSetup, log: str) -> None:
    """Run trials until the supervisor closes the connection.

    Raises:
        EOFError: the supervisor closed the connection.
    """
    sys.argv = [*_ARGUMENTS]
    set_global_state(setup.threads, setup.mode)
    with captured(log):
        child = _start(connection, setup)
    while child is not None:
        request = connection.recv()
        # a batch is left from a stream that a skipped trial did not read to its end
        if not (isinstance(request, messages.TrialRequest) and child.run(request)):
            break
        child.collect_garbage()
    # A supervisor that is still sending batches must read why the trial ended, not find a closed connection.
    while True:
        connection.recv_bytes()


def _start(connection: Connection, setup: messages.ChildSetup) -> Child | None:
    try:
        child = Child(connection, setup)
        connection.send(messages.ModelLoaded(child.pristine.num_classes, environment(child.device, setup.threads)))
        return child
    except BaseException as error:  # see Child.run
        connection.send(failure_message(error))
        return None


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Host, process, device, threads and versions: recorded in the trial's row, not part of its key."""
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


def failure_message(error: BaseException) -> messages.TrialFailed:
    """The message to the supervisor about an exception."""
    text = text_of(error)
    reason = text if isinstance(error, DataFault) else f"{type(error).__name__}: {text}"
    return messages.TrialFailed(kind_of(error), printable(reason), printable(traceback.format_exc()))


class Child:
    """State that is kept between trials: the pristine source model with its counter, and results of ``prepare``.

    Raises:
        DataFault: the weights are missing on this machine, or differ from those the run was planned with.
    """

    def __init__(self, connection: Connection, setup: messages.ChildSetup):
        with contextlib.suppress(OSError):  # files at relative paths are then reported as missing
            os.chdir(setup.folder)
        self.connection, self.setup = connection, setup
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = PRECISIONS[setup.mode.precision].dtype
        compiles = setup.mode.compile == "on"
        obstacle = ""
        if compiles:
            obstacle = prepare_compiler(self.device, pathlib.Path(setup.compiled))
            function_snapshot.cache_clear()  # the compiler has replaced functions of torch
        # copies of images and of scores, beside the steps of other batches
        self.image_copies, self.score_copies = (
            torch.cuda.Stream() if self.device.type == "cuda" else None for _ in range(2)
        )
        self.state = GlobalState(compiles=compiles)
        self.has_collected = False
        self.method: type[Adapter] | None = None  # loaded in the first trial
        model = _load(setup)
        self.pristine = model.to(self.device, self.dtype)
        self.counter = PassCounter(self.pristine)
        self.engine = Engine(setup.mode, self.device, self.counter, obstacle)
        if self.engine.is_needed:
            self.pristine.engine = self.engine
        self.prepared: OrderedDict[str, tuple[dict[str, Tensor], dict[str, Any]]] = OrderedDict()

    def run(self, request: messages.TrialRequest) -> bool:
        """Run one trial; False if no other may follow.

        Whatever a method raises, also ``SystemExit`` and ``KeyboardInterrupt``, becomes the trial's outcome.
        """
        outcome: messages.TrialDone | messages.TrialProfiled | messages.TrialSkipped | messages.TrialFailed
        with captured(request.log):
            try:
                outcome = _kind_of_run(request)(self, request).run()
            except (_Skip, MissingPart) as skipped:
                outcome = messages.TrialSkipped(printable(str(skipped)))
            except BaseException as error:
                outcome = failure_message(error)
            changes = (*self.state.changes(), *(self.method_state.changes() if self.method else ()))
        self.connection.send(replace(outcome, changes=changes))
        return not isinstance(outcome, messages.TrialFailed | messages.TrialProfiled)

    def collect_garbage(self) -> None:
        """Free the memory that a trial left in reference cycles; within a trial a collection would be a pause.

        After the first one later collections pass over what is there: modules, and code that was compiled.
        """
        gc.collect()
        if not self.has_collected:
            gc.freeze()
            self.has_collected = True

    def load_method(self) -> type[Adapter]:
        """The method's class; the state of its modules is recorded when it is loaded."""
        if self.method is None:
            method = self.setup.registry.load(self.setup.method)
            self.method_state = MethodState(method)
            self.method = method
        return self.method


def _load(setup: messages.ChildSetup) -> SourceModel:
    try:
        model = setup.network.load()
    except (UsageError, OSError) as error:
        raise DataFault(str(error)) from error
    if state_sha256(model.net) != setup.weights_sha256:
        raise DataFault("the weights differ from those the run was planned with")
    return model


class _TrialRun:
    """One trial while it runs."""

    def __init__(self, child: Child, request: messages.TrialRequest):
        self.child, self.request, self.device = child, request, child.device
        self.ring = rings.receive(request.ring, child.connection)
        _seed(request.prepare_seed)  # does not depend on the stream: other trials reuse the result of prepare()
        self.counter = child.counter
        self.counter.read()
        registry = child.setup.registry
        cls = child.load_method()
        model = copy.deepcopy(child.pristine)
        model.weights_sha256 = child.setup.weights_sha256
        if request.mask is not None:
            model.keep_classes(request.mask)
        config = cls.Config.model_validate(request.config, context={"registry": registry})
        context = context_for(model, request.batch_size, request.side, self.device, request.prepare_seed)
        reason = cls.skip(model, config, context)
        reason = reason or _short_batch_reason(cls, model, config, context, request.smallest_batch)
        if reason := reason or _prediction_reason(cls, config, request):
            raise _Skip(reason)
        self.adapter = cls(model, config, context)
        self.steps = StepCounter()
        self.stopwatch = Stopwatch(self.device)
        self.unreported = deque[Any]()  # CUDA events, each recorded after scores not yet reported to the supervisor

    def run(self) -> messages.TrialDone | messages.TrialProfiled:
        """Set up the method, then process the stream as it arrives."""
        with self.steps.watching(), rings.pin(self.ring, self.device):
            facts = self._set_up()
            self.child.connection.send(messages.MethodReady(self.adapter.outputs, facts))
            while self._block():
                pass
        held = {"device_held_mib": held_memory_mib(self.device)}
        return messages.TrialDone({**self.child.engine.facts(), **held})

    # -- set-up --------------------------------------------------------------------------------------------------------

    def _set_up(self) -> dict[str, Any]:
        adapter = self.adapter
        self.child.engine.begin(self.request.batch_size)
        adapter.setup()
        self.child.engine.adjust(adapter)
        adapter.remember()
        prepared, facts = self._prepared()
        adapter.reset()  # so that only the result of prepare() remains, which other trials may reuse
        adapter.prepared = {name: value.clone() for name, value in prepared.items()}
        adapter.context.generator.manual_seed(self.request.method_seed)
        _seed(self.request.method_seed)
        self.steps.read()
        self.counter.read()
        self.child.engine.was_cold()
        self.needs = optimizers.needs(adapter)
        return {
            **facts,
            "device_others_mib": others_memory_mib(self.child.device),
            "adapted_parameters": sum(p.numel() for p in adapter.model.parameters() if p.requires_grad),
            "batch_statistics": _batch_statistics(adapter),
            "checkpoint": optimizers.checkpoint_origin(adapter),
            "reset_keeps": _names_column(adapter.reset_keeps),
            **self.needs.columns(),
        }

    def _prepared(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(result of ``prepare``, facts about it); reused for equal method, config, model, source data and seed.

        Raises:
            TypeError: the method requests source images without declaring it, so that they are not in the trial's key.
        """
        source_request, cache = self.adapter.source_request(), self.child.prepared
        if source_request is None:
            return {}, {}
        if not self.adapter.needs.source_images:
            raise TypeError("source_request() asks for images, but the method's needs do not have source_images")
        if not self.adapter.shares_prepared:
            return self._prepare(source_request)
        key = f"{self.request.prepare_key} {source_request}"
        if key not in cache:
            cache[key] = self._prepare(source_request)
            if len(cache) > _MAX_PREPARED:
                cache.popitem(last=False)
        return cache[key]

    def _prepare(self, source_request: SourceRequest) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.request.source_images is None:
            raise _Skip("the suite names no source images")
        count = min(source_request.images, self.request.source_images)
        start = time.perf_counter()
        returned = self.adapter.prepare(self._source_batches(count, source_request.batch_size))
        prepared = {name: value.detach().clone() for name, value in returned.items()}
        forwarded, backwarded = self.counter.read()
        facts = {
            "source_images": count,
            "prepare_s": time.perf_counter() - start,
            "prepare_images_forwarded": forwarded,
            "prepare_images_backwarded": backwarded,
        }
        return prepared, facts

    def _source_batches(self, count: int, batch_size: int) -> Iterator[Tensor]:
        for first in range(0, count, batch_size):
            end = min(first + batch_size, count)
            parts = []
            for start in range(first, end, self.request.ring.images):
                self.child.connection.send(
                    messages.SourceImagesRequest(start, min(self.request.ring.images, end - start))
                )
                parts.append(self._images(self.child.connection.recv()))
                synchronize(self.device)  # the next images come into the same slot
            yield torch.cat(parts)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def _block(self) -> bool:
        """Process one block; False at the end of the trial."""
        reset_peak_memory(self.device)
        data_ms, cold, stats = list[float](), list[bool](), list[Mapping[str, float | Tensor] | None]()
        while True:
            self._report_finished()
            start = time.perf_counter()
            message = self._next()
            if isinstance(message, messages.TrialEnd):
                return False
            if isinstance(message, messages.BlockEnd):
                break
            x = self._images(message)
            data_ms.append((time.perf_counter() - start) * 1e3)
            stats.append(self._batch(message, x))
            cold.append(self.child.engine.was_cold())
        self.child.connection.send(self._measurements(np.array(data_ms), np.array(cold, dtype=bool), stats))
        return True

    def _next(self) -> Any:
        return self.child.connection.recv()

    def _report_finished(self) -> None:
        """Report scores that have been copied, until the next batch is there."""
        while self.unreported:
            if self.unreported[0].query():
                self._report_oldest()
            elif self.child.connection.poll(_GLANCE_S):
                return

    def _batch(self, batch: messages.Batch, x: Tensor) -> Mapping[str, float | Tensor] | None:
        """Run the method on a batch and start copying its scores; returns its statistics, or None if it did not adapt."""
        adapts = batch.adapt and batch.images >= self.needs.min_batch
        with self.stopwatch.timing():
            if batch.reset:
                self.adapter.reset()
            if batch.images:
                scores = self.adapter.step(x) if adapts else self.adapter.predict(x)
            else:
                scores = x.new_empty(0, self.adapter.context.num_classes)
            stats = _cloned(optimizers.stats(self.adapter)) if adapts else None
        _check_shape(scores, batch.images, self.adapter.context.num_classes)
        self._copy_out(scores.detach(), torch.from_numpy(self.ring.scores[batch.slot, : batch.images]))
        return stats

    def _copy_out(self, scores: Tensor, target: Tensor) -> None:
        stream = self.child.score_copies
        if stream is None:
            target.copy_(scores)
            self.child.connection.send(messages.Scored())
            return
        scores = scores.to(self.device, copy=True)  # the next step may change them
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            target.copy_(scores, non_blocking=True)
        scores.record_stream(stream)
        self.unreported.append(stream.record_event())

    def _report_oldest(self) -> None:
        self.unreported.popleft().synchronize()
        self.child.connection.send(messages.Scored())

    def _images(self, batch: messages.Batch) -> Tensor:
        pixels = self.ring.pixels[batch.slot, : batch.images]
        stream = self.child.image_copies
        if stream is None:
            return to_tensor(pixels, self.device, self.child.dtype)
        with torch.cuda.stream(stream):
            images = to_tensor(pixels, self.device, self.child.dtype)
        present = torch.cuda.current_stream()
        present.wait_stream(stream)
        images.record_stream(present)
        return images

    def _measurements(
        self, data_ms: np.ndarray, cold: np.ndarray, stats: list[Mapping[str, float | Tensor] | None]
    ) -> messages.BlockMeasurements:
        while self.unreported:
            self._report_oldest()
        forwarded, backwarded = self.counter.read()
        return messages.BlockMeasurements(
            forwarded,
            backwarded,
            self.steps.read(),
            peak_memory_mib(self.device),
            np.array([each is not None for each in stats]),
            self.stopwatch.read_ms(),
            data_ms,
            cold,
            {name: _values(name, stats) for name in optimizers.stats(self.adapter)},
        )


class _CalibrationRun(_TrialRun):
    """A trial that times each step and then a plain forward pass of the same batch with the adapted network.

    The device is synchronised before and after each. The times replace the method's statistics; see
    :mod:`tta_bench.run.calibration`.
    """

    def __init__(self, child: Child, request: messages.TrialRequest):
        super().__init__(child, request)
        self.forwards = Stopwatch(self.device)
        self.plain = list[bool]()  # whether the step returned the scores of the plain pass

    def _batch(self, batch: messages.Batch, x: Tensor) -> Mapping[str, float | Tensor] | None:
        images = x.clone()
        synchronize(self.device)
        stats = super()._batch(batch, x)
        synchronize(self.device)
        with self.forwards.timing(), torch.no_grad():
            scores = self.adapter.model(images)
        returned = torch.from_numpy(self.ring.scores[batch.slot, : batch.images])
        self.plain.append(torch.allclose(scores.float().cpu(), returned))
        return stats

    def _measurements(
        self, data_ms: np.ndarray, cold: np.ndarray, stats: list[Mapping[str, float | Tensor] | None]
    ) -> messages.BlockMeasurements:
        measured = super()._measurements(data_ms, cold, stats)
        times = {"forward_ms": self.forwards.read_ms(), "plain": np.array(self.plain, dtype=np.float64)}
        self.plain.clear()
        return replace(measured, stats=times)


class _ProfiledRun(_TrialRun):
    """A trial that ends after a few steps, of which it leaves a trace; see :mod:`tta_bench.run.profiling`."""

    def __init__(self, child: Child, request: messages.TrialRequest):
        assert request.trace is not None
        self.profiler = Profiler(child.device, child.setup.mode, request.trace)
        child.pristine.engine = self.profiler.marking(FORWARD, child.pristine.engine)
        super().__init__(child, request)
        self.stopwatch = MarkingStopwatch(child.device, self.profiler)

    def run(self) -> messages.TrialProfiled:
        with contextlib.suppress(AllStepsTraced), self.profiler.watching_backward():
            super().run()
        self.profiler.write()
        return messages.TrialProfiled(self.child.engine.facts())

    def _set_up(self) -> dict[str, Any]:
        facts = super()._set_up()
        self.profiler.start()
        return facts

    def _next(self) -> Any:
        with self.profiler.mark(DATA):
            return super()._next()

    def _batch(self, batch: messages.Batch, x: Tensor) -> Mapping[str, float | Tensor] | None:
        stats = super()._batch(batch, x)
        self.profiler.step()
        return stats


def _kind_of_run(request: messages.TrialRequest) -> type[_TrialRun]:
    if request.trace is not None:
        return _ProfiledRun
    return _CalibrationRun if request.calibrates else _TrialRun


def _short_batch_reason(
    cls: type[Adapter], model: SourceModel, config: Config, context: Context, smallest: int
) -> str | None:
    """Why the method cannot adapt on the stream's smallest batch, often the last one, or None."""
    minimum = (cls.declared(config).needs | config.plugin_needs()).min_batch
    if not minimum <= smallest < context.batch_size:
        return None
    reason = cls.skip(model, config, replace(context, batch_size=smallest))
    return f"a batch of the stream has {smallest} of {context.batch_size} images: {reason}" if reason else None


def _prediction_reason(cls: type[Adapter], config: Config, request: messages.TrialRequest) -> str | None:
    """Why a method without ``predict`` cannot run on the stream, or None."""
    minimum = (cls.declared(config).needs | config.plugin_needs()).min_batch
    if cls.predicts or not (request.predicts or request.smallest_batch < minimum):
        return None
    batches = "batches that are not adapted on" if request.predicts else f"a batch of fewer than {minimum} images"
    return f"the method cannot predict without adapting, and the stream has {batches}"


def _seed(seed: int) -> None:
    """Seed the global generators: methods draw from ``Context.generator``, but a stray global draw must be repeatable."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _batch_statistics(adapter: Adapter) -> str:
    """Whether BatchNorm uses batch statistics: "per-batch", "per-image" at batch size 1, or "" if it does not."""
    layers = [m for m in adapter.model.net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not any(layer.training or layer.running_mean is None for layer in layers):
        return ""
    return "per-image" if adapter.context.batch_size == 1 else "per-batch"


def _names_column(names: Any) -> str:
    """``reset_keeps`` as a column.

    Raises:
        TypeError: it is a string, or holds something other than strings.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"reset_keeps must be a tuple of names, it is {names!r:.100}")
    return ",".join(names)


def _cloned(stats: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Copies of the tensors: they are read at the end of the block, and the method may change them until then."""
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in stats.items()}


def _values(name: str, stats: list[Mapping[str, float | Tensor] | None]) -> np.ndarray:
    """A statistic as (batches,) float64, NaN for batches not adapted on; read from the device in one copy.

    Raises:
        TypeError: its name is not a valid column name, or a value is not a number.
    """
    if not (name.isascii() and name.isidentifier()):
        raise TypeError(f"stats() has the name {name!r}: names must consist of letters, digits and underscores")
    numbers = np.full(len(stats), np.nan)
    values = [s[name] for s in stats if s is not None]
    try:
        if values and all(isinstance(value, Tensor) for value in values):
            column = torch.stack([torch.as_tensor(value) for value in values]).double().cpu().numpy()
        else:
            column = np.array([float(value) for value in values])
        numbers[[s is not None for s in stats]] = column
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"stats() must return numbers or 0-dim tensors; {name!r} is {values[0]!r:.100}") from error
    return numbers


def _check_shape(scores: Any, batch: int, classes: int) -> None:
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (batch, classes):
        raise TypeError(f"step() must return scores of shape ({batch}, {classes}), it returned {shape}")
