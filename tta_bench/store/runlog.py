"""A trial's log: its identity, output and ending."""

from __future__ import annotations

import pathlib

from tta_bench.files import write_text
from tta_bench.run.runner import TrialResult
from tta_bench.suite.plan import Trial

_SHOWN = 100  # shifts whose ids are listed


def name(key: str) -> str:
    """The path of a trial's log below the run's folder."""
    return f"logs/{key}.log"


def write(run: pathlib.Path, trial: Trial, result: TrialResult) -> None:
    """Write a trial's log: its identity, earlier attempts, output and traceback."""
    where = result.environment
    device = where.get("device_name") or where.get("device", "?")
    names = [shift.id for shift in trial.stream.shifts]
    shifts = ", ".join(names) if len(names) <= _SHOWN else f"{len(names)} shifts"
    lines = [
        f"{trial.label} · {trial.model} · {shifts} · seed {trial.seed}",
        f"{result.status} {result.reason}".rstrip(),
        f"on {where.get('host', '?')}, process {where.get('pid', '?')}, {device}",
        *(f"attempt before: {fault}" for fault in result.facts.get("faults", ())),
        "",
        result.log,
        result.traceback,
    ]
    file = run / name(trial.key)
    file.parent.mkdir(exist_ok=True)
    write_text(file, "\n".join(lines))
