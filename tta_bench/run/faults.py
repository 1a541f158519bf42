"""Kinds of faults, and how the scheduler responds to them; docs/cluster.md has the complete table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tta_bench.errors import text_of

RETRIES = 2  # further attempts after an infrastructure fault

FaultKind = Literal["infrastructure", "memory", "timeout", "method"]
Action = Literal["retry", "retry_exclusive", "fail"]


class DataFault(Exception):
    """Images or weights that were there at planning cannot be read on this machine."""


@dataclass(frozen=True)
class Fault:
    """An attempt at a trial that gave no result.

    Attributes:
        kind: "infrastructure" (a worker, node or file, not the method), "memory", "timeout" or "method".
        message: one sentence that names the worker.
    """

    kind: FaultKind
    message: str


def next_action(history: Sequence[Fault], retries: int = RETRIES) -> Action:
    """How to respond to the last fault in a trial's ``history``: retry on any worker, retry with exclusive use of a
    device, or record the trial as failed.
    """
    counts, last = Counter(fault.kind for fault in history), history[-1].kind
    if last == "infrastructure" and counts[last] <= retries:
        return "retry_exclusive" if counts["memory"] else "retry"
    if last == "memory" and counts[last] == 1:
        return "retry_exclusive"
    return "fail"


def failure_reason(history: Sequence[Fault], last_reason: str) -> str:
    """The reason recorded for a failed trial, from its faults and the reason of its last attempt."""
    if history[-1].kind == "memory":
        return f"out of memory, even with exclusive use of the device: {last_reason}"
    if history[-1].kind == "infrastructure" and len(history) > 1:
        return f"{len(history)} attempts failed, the last: {last_reason}"
    return last_reason


def kind_of(error: BaseException) -> FaultKind:
    """The kind of fault of an exception raised inside a trial."""
    if isinstance(error, DataFault):
        return "infrastructure"
    return "memory" if is_out_of_memory(error) else "method"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the host is out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = text_of(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text)
