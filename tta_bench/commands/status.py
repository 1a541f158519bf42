"""``tta-bench status``: the progress of a run, for another terminal or another day."""

from __future__ import annotations

import fcntl
import json
import pathlib
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from tta_bench.errors import Problem, UsageError
from tta_bench.schedule.status import STATUS_FILE, Tally, duration, row_of
from tta_bench.setting import Setting
from tta_bench.store import records

_SHOWN = 10  # failures


def show(run: pathlib.Path) -> None:
    """Print a run's state, counts, workers, errors so far and failures.

    Raises:
        UsageError: the folder is not a run.
    """
    plan = _read(run / "plan.json")
    if plan is None:
        raise UsageError(Problem("not a run", str(run), hint="give the folder that 'tta-bench run' works in"))
    records.check_version(run)
    protocols = [Setting.of(trial["setting_values"]).protocol_text for trial in plan["trials"]]
    rows = [(t["label"], row_of(protocol, t.get("families", ())), t["model"])
            for t, protocol in zip(plan["trials"], protocols, strict=True)]  # fmt: skip
    shifts = ([shift[0] for shift in trial["shifts"]] for trial in plan["trials"])
    tally = Tally((*row, names) for row, names in zip(rows, shifts, strict=True))
    failed: Counter[str] = Counter()
    for trial, row in zip(plan["trials"], rows, strict=True):
        if record := records.read_trial(run, trial["key"]).record:
            tally.add(*row, record["status"], record["shifts"])
            failed[record["reason"]] += record["status"] == "failed"
    _print(run, plan["suite"], tally, failed)


def _print(run: pathlib.Path, suite: str, tally: Tally, failed: Mapping[str, int]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    status = _read(run / STATUS_FILE) or {}
    console.print(f"{suite}: {_state(run, status)}", markup=False)
    console.print(f"  {tally.counts()}", markup=False)
    if status.get("state") == "running":
        console.print(f"  {status['session']}", markup=False)
        _lines(console, [f"  {line}" for line in status["workers"]], "workers")
    console.print(tally.table())
    lines = [f"failed {count} times: {reason.splitlines()[0]}" for reason, count in failed.items() if count]
    _lines(console, lines, "reasons")
    if lines:
        console.print(f"their logs are in {run / 'logs'}", markup=False)


def _lines(console: Console, lines: Sequence[str], noun: str) -> None:
    for line in lines[:_SHOWN]:
        console.print(line, markup=False)
    if len(lines) > _SHOWN:
        console.print(f"  … and {len(lines) - _SHOWN} more {noun}")


def _state(run: pathlib.Path, status: Mapping[str, Any]) -> str:
    if not status:
        return "has not run a trial yet"
    where = f"process {status['pid']} on {status['host']}"
    if status["state"] != "running":
        return f"{status['state']}, {_ago(status)} ago"
    if status["host"] == socket.gethostname() and not _locked(run):
        return f"killed: {where} has been gone for {_ago(status)}; run it again to resume"
    return f"running, {where}, as of {_ago(status)} ago"


def _ago(status: Mapping[str, Any]) -> str:
    return duration(max(0.0, time.time() - status["updated"]))


def _locked(run: pathlib.Path) -> bool:
    """Whether a process on this machine holds the run's lock."""
    try:
        with open(run / "lock", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
