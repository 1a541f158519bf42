"""``tta-bench merge``: join runs of one suite that were made on several machines."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console

from tta_bench import preparation
from tta_bench import suite as suites
from tta_bench.commands import preparations
from tta_bench.data.cache import ImageCache
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, UsageError
from tta_bench.schedule.options import RunOptions
from tta_bench.store import merge as merging
from tta_bench.store import records, results, rundir
from tta_bench.store.merge import SHOWN, InputRun, Source
from tta_bench.suite import calibration
from tta_bench.suite import plan as planning
from tta_bench.suite.prepare import accuracy_jobs, pretrainings


def merge(names: Sequence[str], out: str, keep: str | None = None, suite: str | None = None) -> int:
    """Merge runs; returns the exit code: 3 where a trial is missing or failed.

    Args:
        names: two or more runs' folders.
        out: the folder of the merged run.
        keep: the run whose results win where predictions differ.
        suite: the suite whose trials the merged run has; None for those of all runs.

    Raises:
        UsageError: the runs cannot be merged, or differ and ``keep`` does not decide; nothing was written.
    """
    target = pathlib.Path(out).absolute()
    if len({pathlib.Path(name).resolve() for name in names}) < max(2, len(names)):
        raise UsageError(Problem("merge joins two or more different runs", hint="tta-bench merge A B --out C"))
    runs = [merging.open_run(name) for name in names]
    kept = _kept(keep, runs) if keep is not None else None
    _check_target(target)
    planned = [_planned(suite, runs)] if suite else []
    merging.check_comparable([*planned, *runs])
    plan = planned[0].plan if planned else merging.merge_plans(runs)
    sources, damaged = merging.choose_sources(runs, plan["trials"], kept)
    with rundir.locked(target):
        _check_target(target)  # another process may have been faster
        merging.write(target, runs, plan, sources)
        tables = results.write_tables(target)
    copied = Counter(source.run.name for source in sources.values())
    incomplete = [line for status in ("missing", "failed") for line in _incomplete(status, plan["trials"], sources)]
    name, counts = plan["suite"], ", ".join(f"{count} {status}" for status, count in tables.counts.items())
    lines = [f"{name}: {len(runs)} runs merged into {target}", *(f"  {run}: {copied[run]} trials" for run in names)]
    keys = {trial["key"] for trial in plan["trials"]}
    if left_out := {trial["key"] for run in runs for trial in run.plan["trials"]} - keys:
        lines.append(f"  {len(left_out)} trials that the suite does not ask for are left out")
    lines += [f"damaged, and counted as not run: {damage}" for damage in damaged]
    console = Console(stderr=True)
    for line in [*lines, f"{name}: {counts}", *incomplete]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print(target)
    return 3 if incomplete else 0


def _planned(name: str, runs: Sequence[InputRun]) -> InputRun:
    """The suite as a run without results, planned here over as many images as the first run's.

    Raises:
        UsageError: the suite cannot be planned, or needs a checkpoint that no run has pre-trained.
    """
    loaded, first = suites.load(name), runs[0].plan
    jobs = pretrainings(loaded, lambda *_: True)
    wanted = {place: job.preparation(ImageCache(None), torch.device("cpu")) for place, job in jobs.items()}
    prepared = {p: file for run in runs[::-1] for p, file in preparation.results(wanted, run.path.resolve()).items()}
    if lacking := [job.name for place, job in wanted.items() if place not in prepared]:
        hint = "leave --suite out, or prepare it in one of the runs with 'tta-bench run'"
        raise UsageError(Problem(f"no run has prepared {', '.join(lacking)}", f"--suite {name}", hint=hint))
    limit = None if first["all_images"] else max(trial["images"] for trial in first["trials"])
    folders = [run.path for run in runs]
    accuracies = preparations.recorded_accuracies(accuracy_jobs(loaded, limit, Digests()), folders)
    plan = planning.make(loaded, limit, prepared=prepared, accuracies=accuracies, most=None)
    if calibrations := calibration.calibrations(plan, loaded.suite.shifts()[0], Digests()):
        costs = preparations.recorded_costs(calibrations, RunOptions(name), folders)
        plan = planning.make(loaded, limit, prepared=prepared, costs=costs, accuracies=accuracies, most=None)
    content = records.plan_content(plan)
    return InputRun(f"--suite {name}", pathlib.Path(name), json.loads(json.dumps(content)), {})


def _kept(keep: str, runs: Sequence[InputRun]) -> InputRun:
    for run in runs:
        if run.path.resolve() == pathlib.Path(keep).resolve():
            return run
    raise UsageError(Problem(f"--keep {keep} is none of the runs", hint="one of: " + ", ".join(r.name for r in runs)))


def _check_target(target: pathlib.Path) -> None:
    """Refuse to write over a run."""
    if any((target / name).exists() for name in ("plan.json", "run.json", "trials")):
        hint = "choose a new folder with --out DIR"
        raise UsageError(Problem("--out holds a run, or a part of one", str(target), hint=hint))


def _incomplete(status: str, trials: Sequence[Mapping[str, Any]], sources: Mapping[str, Source]) -> list[str]:
    """``missing 3 of 12:``, and a line for each method and source model; nothing where no trial has this status."""
    rows: dict[str, list[str]] = {}
    for trial in trials:
        source = sources.get(trial["key"])
        if (source.record["status"] if source else "missing") == status:
            rows.setdefault(f"{trial['label']} · {trial['model']}", []).append(merging.trial_name(trial))
    lines = [f"{status} {sum(map(len, rows.values()))} of {len(trials)}:"] if rows else []
    for row, names in rows.items():
        more = ", …" if len(names) > SHOWN else ""
        lines.append(f"  {row}: {len(names)} ({', '.join(names[:SHOWN])}{more})")
    return lines
