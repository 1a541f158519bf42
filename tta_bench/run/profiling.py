"""The profile of a trial's steps: a trace by torch's profiler in which the harness marks what the host is at.

A step lasts from the end of the one before to its own, so that it has everything that a batch costs. Inside it are marked:
waiting for the batch, the method's call, and in that the passes through source models and the backward passes; torch
itself marks what its optimizers do. :mod:`tta_bench.report.profile` reads the marks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from tta_bench.precision import Mode
from tta_bench.run.meters import Stopwatch, synchronize

STEPS = 10  # that are traced, or fewer once they have taken
_ENOUGH_S = 5.0  # seconds: a trace of many short operations would be too large to read
_WARMUP, _WARMUP_COMPILED = 3, 6  # steps before those; compiled passes warm up themselves, too

FORWARD, BACKWARD, METHOD, DATA = (f"tta-bench: {name}" for name in ("forward", "backward", "method", "data"))
STEP, OPTIMIZER = "ProfilerStep#", "Optimizer."  # how the names of torch's own marks begin


class AllStepsTraced(Exception):
    """The last step of a profile is traced."""


def warmup(mode: Mode) -> int:
    """How many steps of a trial come before those that are traced."""
    return _WARMUP_COMPILED if mode.compile == "on" else _WARMUP


class Profiler:
    """Traces up to :data:`STEPS` steps after a warm-up. Marks are set, and cost anything, in those steps alone.

    Args:
        device: of the networks.
        mode: how they compute.
        file: for the trace; its name ends in ``.json.gz``.
    """

    def __init__(self, device: torch.device, mode: Mode, file: str):
        self._device, self._file, self._warmup = device, file, warmup(mode)
        self._steps, self._traced_since = 0, math.inf
        gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = torch.profiler.profile(
            activities=[ProfilerActivity.CPU, *gpu],
            schedule=torch.profiler.schedule(wait=0, warmup=self._warmup, active=STEPS, repeat=1),
            on_trace_ready=lambda profile: profile.export_chrome_trace(file),
        )

    def start(self) -> None:
        """Begin the first step of the warm-up."""
        self._profile.start()

    def step(self) -> None:
        """End a step.

        Raises:
            AllStepsTraced: it was the last.
        """
        self._steps += 1
        traced = self._steps - self._warmup
        last = traced == STEPS or time.perf_counter() - self._traced_since > _ENOUGH_S
        if traced == 0 or last:
            synchronize(self._device)  # the trace then holds the device's work for the traced steps, and no other
        self._profile.step()
        if traced == 0:
            self._traced_since = time.perf_counter()
        if last:
            raise AllStepsTraced

    def write(self) -> None:
        """Write the trace, also where fewer steps were traced."""
        self._profile.stop()

    # -- marks ---------------------------------------------------------------------------------------------------------

    def mark(self, name: str) -> AbstractContextManager[Any]:
        """A mark around the ``with`` block."""
        traces = self._warmup <= self._steps < self._warmup + STEPS
        return record_function(name) if traces else contextlib.nullcontext()

    def marking(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of which is marked."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with self.mark(name):
                return function(*arguments, **named)

        return call

    @contextlib.contextmanager
    def watching_backward(self) -> Iterator[None]:
        """Mark every backward pass inside the ``with`` block: all call one function of torch, also ``autograd.grad``."""
        autograd: Any = torch.autograd
        original = autograd._engine_run_backward
        autograd._engine_run_backward = self.marking(BACKWARD, original)
        try:
            yield
        finally:
            autograd._engine_run_backward = original


class MarkingStopwatch(Stopwatch):
    """A stopwatch that marks what it times: the method's calls."""

    def __init__(self, device: torch.device, profiler: Profiler):
        super().__init__(device)
        self._profiler = profiler

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        with self._profiler.mark(METHOD), super().timing():
            yield
