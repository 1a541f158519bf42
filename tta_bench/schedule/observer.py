"""What a scheduler tells of its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.suite.plan import Trial


class Observer(Protocol):
    """Is told what happens; none of its methods may take long."""

    def finished(self, ended: Sequence[tuple[Trial, TrialResult]]) -> None:
        """Trials have their results; they must be kept now."""

    def retried(self, trials: Sequence[Trial], fault: Fault) -> None:
        """Trials, which one worker had, gave no result and wait again."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        """How many trials run now, what each worker does, and how long the rest is expected to take; called a few times a
        second.
        """


def title(trial: Trial) -> str:
    """A trial in a few words, for those who watch."""
    shifts = trial.stream.shifts
    shown = shifts[0].id if len(shifts) == 1 else f"{len(shifts)} shifts, {trial.setting.protocol}"
    parts = [trial.label, trial.model, shown, trial.setting.varied_told, f"seed {trial.seed}"]
    return " · ".join(filter(None, parts))
