"""What can go wrong with a trial, and what is done about it. The table in docs/cluster.md says the same in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tta_bench.errors import text_of

RETRIES = 2  # how often a trial is given to another worker after an infrastructure fault

Kind = Literal["infrastructure", "memory", "timeout", "method", "shared"]
Verdict = Literal["retry", "alone", "fail"]


class DataFault(Exception):
    """Images or weights cannot be had on this machine, though they could when the run was planned."""


@dataclass(frozen=True)
class Fault:
    """One attempt at a trial that gave no result.

    Attributes:
        kind: "infrastructure" (a worker, node, file: not the method's doing), "memory", "timeout", "method", or "shared":
            the worker was lost with several trials, nobody knows by which of them, and so that counts for none.
        what: in a sentence, with the place.
    """

    kind: Kind
    what: str


def verdict(history: Sequence[Fault], retries: int = RETRIES) -> Verdict:
    """What to do after the last of ``history``, all of one trial: "retry" on another worker, "alone" on a device that
    nothing else uses, or "fail".
    """
    counts, last = Counter(fault.kind for fault in history), history[-1].kind
    if last == "shared":
        return "retry"
    if last == "infrastructure" and counts[last] <= retries:
        return "alone" if counts["memory"] else "retry"
    if last == "memory" and counts[last] == 1:
        return "alone"
    return "fail"


def attempts(history: Sequence[Fault]) -> int:
    """How many attempts at a trial have failed; those that it shared with other trials are none."""
    return sum(fault.kind != "shared" for fault in history)


def reason(history: Sequence[Fault], last: str) -> str:
    """Why a trial failed for good, where ``last`` is what its last attempt said."""
    if history[-1].kind == "memory":
        return f"out of memory, also alone on a device: {last}"
    if history[-1].kind == "infrastructure" and attempts(history) > 1:
        return f"{attempts(history)} attempts failed, the last: {last}"
    return last


def ends_worker(facts: Mapping[str, Any]) -> bool:
    """Whether a worker must end after a trial: its machine lacks what the trial needs, or has no memory left.

    Args:
        facts: of the trial's result.
    """
    return facts.get("failure") in ("infrastructure", "memory")


def kind_of(error: BaseException) -> Kind:
    """The kind of fault that an exception inside a trial is."""
    if isinstance(error, DataFault):
        return "infrastructure"
    return "memory" if is_out_of_memory(error) else "method"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no more memory to give."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = text_of(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text)
