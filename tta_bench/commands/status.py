"""``tta-bench status``: the progress of a run, for another terminal or another day."""

from __future__ import annotations

import fcntl
import pathlib
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from tta_bench.errors import UsageError
from tta_bench.schedule.status import STATUS_FILE, Tally, duration, row_of
from tta_bench.setting import Setting
from tta_bench.store import documents, records

_SHOWN = 10  # failures, damaged trials


def show(run: pathlib.Path) -> None:
    """Print a run's state, counts, workers, errors so far, failures and damaged files.

    Raises:
        UsageError: the folder is not a run, or its plan is damaged.
    """
    records.check_version(run)
    plan = documents.plan(run)
    protocols = [Setting.of(trial["setting_values"]).protocol_text for trial in plan["trials"]]
    rows = [(t["label"], row_of(protocol, t.get("families", ())), t["model"])
            for t, protocol in zip(plan["trials"], protocols, strict=True)]  # fmt: skip
    shifts = ([shift[0] for shift in trial["shifts"]] for trial in plan["trials"])
    tally = Tally((*row, names) for row, names in zip(rows, shifts, strict=True))
    failed: Counter[str] = Counter()
    damaged: dict[str, None] = {}
    for trial, row in zip(plan["trials"], rows, strict=True):
        stored = records.read_planned(run, trial)
        if stored.damage:
            damaged[stored.damage] = None
        if record := stored.record:
            tally.add(*row, record["status"], record["shifts"])
            failed[record["reason"].partition("\n")[0]] += record["status"] == "failed"
    _print(run, plan["suite"], tally, failed, list(damaged))


def _print(run: pathlib.Path, suite: str, tally: Tally, failed: Mapping[str, int], damaged: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    status = _status(run)
    console.print(f"{suite}: {status if isinstance(status, str) else _state(run, status)}", markup=False)
    console.print(f"  {tally.counts()}", markup=False)
    if not isinstance(status, str) and status["state"] == "running":
        console.print(f"  {status['session']}", markup=False)
        _lines(console, [f"  {line}" for line in status["workers"]], "workers")
    console.print(tally.table())
    _lines(console, [f"damaged, counted as not run: {damage}" for damage in damaged], "damaged trials")
    lines = [f"failed {count} times: {reason}" for reason, count in failed.items() if count]
    _lines(console, lines, "reasons")
    if lines:
        console.print(f"their logs are in {run / 'logs'}", markup=False)


def _lines(console: Console, lines: Sequence[str], noun: str) -> None:
    for line in lines[:_SHOWN]:
        console.print(line, markup=False)
    if len(lines) > _SHOWN:
        console.print(f"  … and {len(lines) - _SHOWN} more {noun}")


def _state(run: pathlib.Path, status: Mapping[str, Any]) -> str:
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


def _status(run: pathlib.Path) -> Mapping[str, Any] | str:
    """What the driver wrote last, or why it is not known."""
    if not (run / STATUS_FILE).exists():
        return "has not run a trial yet"
    try:
        return documents.read(run / STATUS_FILE, documents.Status)
    except UsageError as error:
        return f"its state is not known: {error.problems[0].where} {error.problems[0].message}"
