"""``tta-bench merge``: runs of one suite, made on several machines, joined into one run's folder by trial key.

Everything is read and judged before the first byte is written. ``plan.json`` is written after the trials, so that a merge
that was killed leaves no folder that passes for a run.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console

from tta_bench.store import results, rundir
from tta_bench.store.merge import words
from tta_bench.store.merge.cells import unite
from tta_bench.store.merge.inputs import Run, check_alike, check_out, opened, planned, winning
from tta_bench.store.merge.records import Record, choose, of_one_kind
from tta_bench.store.merge.writing import write


def merge(runs: Sequence[str], out: str, keep: str | None = None, suite_name: str | None = None) -> int:
    """Join runs; returns the exit code: 3 where a trial is missing or failed.

    Args:
        runs: two or more runs' folders.
        out: the folder of the joined run.
        keep: the run whose results win where runs differ.
        suite_name: the suite whose trials are to be there; None: those that any of the runs planned.

    Raises:
        UsageError: the runs cannot be joined, or they differ and ``keep`` does not decide; nothing was written.
    """
    target = pathlib.Path(out).absolute()
    inputs = opened(runs)
    check_out(target, inputs)
    winner = winning(keep, inputs)
    whole = planned(suite_name, inputs[0]) if suite_name else None
    check_alike([*inputs, *([whole] if whole else [])])
    trials, notes = unite(inputs, winner, whole)
    chosen, further = choose(inputs, trials, winner)
    chosen, others = of_one_kind(chosen, trials, winner)
    with rundir.locked(target):
        check_out(target, inputs)  # another process may have been faster
        write(target, inputs, trials, chosen)
        tables = results.load(target)
        results.write_tables(tables)
    code = _conclude(tables, inputs, chosen, [*notes, *further, *others], target)
    print(target)
    return code


def _conclude(
    tables: results.Results, inputs: Sequence[Run], chosen: Mapping[str, Record], notes: Sequence[str],
    target: pathlib.Path,
) -> int:  # fmt: skip
    """Say what came from where and what is missing; the exit code is 3 where a trial is missing or failed."""
    name, trials = tables.plan["suite"], tables.plan["trials"]
    came = Counter(record.run.given for record in chosen.values())
    lines = [f"{name}: {len(inputs)} runs merged into {target}"]
    lines += [f"  {run.given}: {words.count(came[run.given], 'trial', 'trials')}" for run in inputs]
    lines += [*notes, f"{name}: " + ", ".join(f"{count} {status}" for status, count in tables.counts.items())]
    lacking = {
        "missing": [t for t in trials if t["key"] not in chosen],
        "failed": [t for t in trials if t["key"] in chosen and chosen[t["key"]].content["status"] == "failed"],
    }
    for status, those in lacking.items():
        lines += words.grouped(status, those, len(trials))
    console = Console(stderr=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 3 if any(lacking.values()) else 0
