"""The end of a run: its tables are written, and it is said what came out."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from tta_bench.errors import Problem, Stopped, UsageError

APART = 1000  # trials in a plan from which on its tables are made in a process of their own


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
        counts: trials by status.
        stale: trial files whose key is not in the plan.
        failed: (key, reason) of each trial that failed, in plan order.
        damaged: what is wrong with trials whose files do not match their checksum.
    """

    counts: dict[str, int]
    stale: int
    failed: list[tuple[str, str]]
    damaged: list[str]


def conclude(run: pathlib.Path, trials: int) -> Outcome:
    """Rebuild the tables of a run and say what it has come to.

    The tables of a large run take more memory than all else that its driver does, and pandas itself a good part of that:
    such tables are made in a process that ends with them.

    Args:
        run: its folder.
        trials: in its plan.

    Raises:
        OSError: the tables cannot be written.
        Stopped: a trial's arrays are damaged.
    """
    return apart(run) if trials >= APART else here(run)


def here(run: pathlib.Path) -> Outcome:
    """:func:`conclude` in this process."""
    from tta_bench.store import results

    try:
        tables = results.load(run)
    except UsageError as error:  # of what is on disk, not of what was asked for: trials were run
        raise Stopped(error.problems[0]) from error
    results.write_tables(tables)
    failed = tables.segments.loc[tables.segments["status"] == "failed", ["key", "reason"]].drop_duplicates("key")
    return Outcome(tables.counts, tables.stale, list(failed.itertuples(index=False, name=None)), list(tables.damaged))


def apart(run: pathlib.Path) -> Outcome:
    """:func:`conclude` in a process of its own.

    Raises:
        OSError: the tables cannot be written.
        Stopped: a trial's arrays are damaged.
        RuntimeError: it failed; what it said is on standard error.
    """
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(run)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that makes the tables of {run} ended with {done.returncode}")
    said = json.loads(done.stdout)
    if "errno" in said:
        raise OSError(said["errno"], said["strerror"])
    if "stopped" in said:
        raise Stopped(Problem(**said["stopped"]))
    return Outcome(**said | {"failed": [(key, reason) for key, reason in said["failed"]]})


# It imports what this process does. A terminal sends Ctrl-C to both, Slurm SIGTERM: the driver answers them.
_CHILD = """\
import json, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
import pathlib
from tta_bench.store import conclusion
from tta_bench.errors import Stopped
try:
    said = vars(conclusion.here(pathlib.Path(sys.argv[2])))
except Stopped as stopped:
    said = {"stopped": vars(stopped.problem)}
except OSError as error:
    said = {"errno": error.errno, "strerror": error.strerror}
print(json.dumps(said))
"""
