"""Counts, times and memory, measured from outside the method.

Forwards are counted at the network's stem and gradients at the classifier's input, by hooks that do one thing: an
in-place add to a preallocated counter on the model's device. Compiled code has no hooks; there the engine counts. All
deep copies of the model share the counter, so a teacher's passes count, and a captured graph replays the add. Counters
are read once a block (a segment, or 1,000 batches of a long one), so nothing here makes the host wait for a GPU inside a
block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tta_bench.models import SourceModel


class _SharedHook:
    """A hook that survives ``copy.deepcopy`` as itself, so that every copy of a model adds to one counter."""

    survives_reset = True  # an adapter's reset() does not rewind the counter

    def __init__(self, counter: Tensor):
        self.counter = counter

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedHook:
        return self


class _CountForwards(_SharedHook):
    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not torch.compiler.is_compiling():
            self.counter.add_(inputs[0].shape[0])


class _CountBackwards(_SharedHook):
    """Watches the classifier's input; where that needs no gradient (only the head is trained), its output.

    An image counts where its row of the gradient is not all zero: one that a method filtered out of its loss does not.
    Forwarded images are counted as well: if none passes here, the number with a gradient is unknown.
    """

    def __init__(self, counter: Tensor, seen: Tensor):
        super().__init__(counter)
        self.seen = seen

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        self.seen.add_(inputs[0].shape[0])
        watched = inputs[0] if inputs[0].requires_grad else output
        if watched.requires_grad:
            watched.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self.counter.add_(gradient.flatten(1).any(1).sum())


def stem(net: nn.Module) -> nn.Module:
    """The first module that has parameters of its own and no children."""
    return next(m for m in net.modules() if not [*m.children()] and [*m.parameters(recurse=False)])


class PassCounter:
    """Images forwarded and images that a gradient came back for, over all deep copies of one source model.

    Attach it once to the pristine model, before any copy is made.
    """

    def __init__(self, model: SourceModel):
        device = model.mean.device
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        stem(model.net).register_forward_pre_hook(_CountForwards(self._counts[0]))
        model.classifier().register_forward_hook(_CountBackwards(self._counts[1], self._counts[2]))

    def add_forwarded(self, images: int, *, at_classifier: bool) -> None:
        """Count a compiled forward pass, with its classifier or only up to the features."""
        self._counts[0].add_(images)
        if at_classifier:
            self._counts[2].add_(images)

    def add_backwarded(self, images: Tensor) -> None:
        """Count the images (B,) bool that a gradient came back for in a compiled pass."""
        self._counts[1].add_(images.sum())

    def read(self) -> tuple[int, int | None]:
        """(images forwarded, images backwarded) since the last read; waits for the device.

        The second is None if the network bypassed its classifier.
        """
        forwarded, backwarded, seen = self._counts.tolist()
        self._counts.zero_()
        return forwarded, backwarded if seen or not forwarded else None


class StepCounter:
    """Optimizer steps taken by any ``torch.optim.Optimizer`` in this process. A step inside a step counts once."""

    def __init__(self) -> None:
        self._depth = 0
        self._steps = 0

    def _before(self, *_: Any) -> None:
        self._depth += 1

    def _after(self, *_: Any) -> None:
        self._depth -= 1
        self._steps += self._depth == 0

    @contextmanager
    def watching(self) -> Iterator[StepCounter]:
        """Count inside the ``with`` block."""
        hooks = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def read(self) -> int:
        """Steps since the last read."""
        steps, self._steps = self._steps, 0
        return steps


class Stopwatch:
    """Duration of each timed block. On a GPU by events around it, which are read, all at once, by :meth:`read_ms`."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the ``with`` block."""
        start = self._now()
        yield
        self._marks.append((start, self._now()))

    def read_ms(self) -> np.ndarray:
        """Milliseconds of each block since the last read, float64; waits for the device."""
        marks, self._marks = self._marks, []
        if not self._cuda:
            return np.array([(end - start) * 1e3 for start, end in marks])
        torch.cuda.synchronize()
        return np.array([start.elapsed_time(end) for start, end in marks])


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak on ``device``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest device memory in use since the last reset, in MiB; None on the CPU, where no such figure is meaningful."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def others_memory_mib(device: torch.device) -> float | None:
    """Memory of ``device`` that is in use but not held by this process's torch, MiB; None on the CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (total - free - torch.cuda.memory_reserved(device)) / 2**20


def load() -> float | None:
    """Running and waiting processes of the machine for each of its CPUs, mean of the last minute; None if not told."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):  # not on every system
        return None


def held_memory_mib(device: torch.device) -> float | None:
    """Device memory that torch's allocator holds for this process, in use or not, in MiB; None on the CPU.

    It is what other processes cannot have. The process's CUDA context comes on top.
    """
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None
