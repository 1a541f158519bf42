"""What a trial prints, C libraries and warnings included, goes into a file of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from tta_bench.run.runner import TrialResult
from tta_bench.suite.plan import Trial

KEPT = 1 << 20  # bytes of a trial's output that are kept: of longer ones the beginning and the end


@contextlib.contextmanager
def captured(file: pathlib.Path) -> Iterator[None]:
    """Send what this process writes to its standard output and error into ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    saved = [os.dup(1), os.dup(2)]
    with open(file, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        _flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()


def read(file: pathlib.Path) -> str:
    """A captured file's text, shortened in the middle; empty where there is none."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= KEPT:
                return stream.read().decode(errors="replace")
            start = stream.read(KEPT // 2)
            stream.seek(-KEPT // 2, os.SEEK_END)
            end = stream.read()
    except OSError:
        return ""
    gap = f"\n… {size - KEPT} bytes left out …\n"
    return start.decode(errors="replace") + gap + end.decode(errors="replace")


def name(key: str) -> str:
    """The log of a trial, below the run's folder."""
    return f"logs/{key}.log"


def write(run: pathlib.Path, trial: Trial, result: TrialResult) -> None:
    """Write a trial's log: what it was, each attempt, what it printed, and its traceback."""
    where = result.environment
    device = where.get("device_name") or where.get("device", "?")
    lines = [
        f"{trial.label} · {trial.model} · {', '.join(s.id for s in trial.stream.shifts)} · seed {trial.seed}",
        f"{result.status} {result.reason}".rstrip(),
        f"on {where.get('host', '?')}, process {where.get('pid', '?')}, {device}",
        *(f"attempt before: {fault}" for fault in result.facts.get("faults", ())),
        "",
        result.log,
        result.traceback,
    ]
    file = run / name(trial.key)
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines))
