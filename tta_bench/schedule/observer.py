"""The interface through which a scheduler reports on its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.suite.plan import Trial


class Observer(Protocol):
    """Receives a scheduler's reports, in the driver's main thread; the scheduler waits for each call."""

    def finished(self, trial: Trial, result: TrialResult) -> None:
        """A trial has a result, which must be stored now."""

    def retried(self, trial: Trial, fault: Fault) -> None:
        """An attempt at a trial failed; the trial will be run again."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        """Number of running trials, state of each worker, expected time left; called a few times a second."""


def title(trial: Trial) -> str:
    """A short description of a trial for progress lines."""
    shifts = trial.stream.shifts
    shown = shifts[0].id if len(shifts) == 1 else f"{len(shifts)} shifts"
    protocol = trial.setting.protocol if trial.setting.protocol != "reset" else ""
    parts = [trial.label, trial.model, ", ".join(filter(None, [shown, protocol])), trial.setting.varied_told]
    parts.append(f"seed {trial.seed}")
    return " · ".join(filter(None, parts))
