"""What a scheduler tells of its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tta_bench.faults import Fault
from tta_bench.plan import Trial
from tta_bench.runner import TrialResult


class Observer(Protocol):
    """Is told what happens; none of its methods may take long."""

    def started(self, trial: Trial, worker: str) -> None:
        """A trial was given to a worker."""

    def finished(self, trial: Trial, result: TrialResult) -> None:
        """A trial has its result; it must be kept now."""

    def retried(self, trial: Trial, fault: Fault) -> None:
        """A trial gave no result and waits again."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def tick(self, workers: Sequence[str], seconds_left: float | None) -> None:
        """What each worker does, and how long the rest is expected to take; called a few times a second."""
