"""One ``tta-bench run``: suite, plan, images, trials, tables; the straight line that the other modules are stages of."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tta_bench import plan as planning
from tta_bench import results, rundir, scheduler, selection, suite
from tta_bench.data.cache import Entry, ImageCache, default_root
from tta_bench.errors import Problem, UsageError
from tta_bench.plan import Plan, Trial
from tta_bench.progress import ImageProgress, TrialProgress
from tta_bench.runner import TrialResult


@dataclass(frozen=True)
class Options:
    """What the command line says; each field is the option of that name."""

    suite: str
    only: Sequence[str] = ()
    sets: Sequence[str] = ()
    executor: str = "ray"
    address: str | None = None
    workers: int | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float = 1.0
    out: str | None = None
    cache: str | None = None
    retry_failed: bool = False
    limit: int | None = None
    dry_run: bool = False
    plugins: Sequence[str] = ()


def run(options: Options, resume: str) -> int:
    """Run a suite to its end; returns the exit code.

    Args:
        options: see :class:`Options`.
        resume: the command that goes on where this one is interrupted.

    Raises:
        UsageError: nothing was run, and no result was written.
    """
    console = Console(stderr=True)
    _check(options)
    loaded = suite.load(options.suite, sets=options.sets, plugins=options.plugins)
    plan = planning.make(loaded, options.limit, functools.partial(selection.wants, options.only))
    selected = selection.select(plan.trials, options.only)
    cache = _cache(options, loaded.suite)
    out = _out(options, plan)
    done = results.statuses(out, (t.key for t in selected))
    waiting = [t for t in _distinct(selected) if not _finished(done.get(t.key), options.retry_failed)]
    missing = cache.to_build(plan.cache_entries(waiting))
    _check_space(cache, missing)
    resources = scheduler.Resources(
        options.executor, options.address, options.workers, options.cpus_per_trial, options.gpus_per_trial
    )
    said = _summary(plan, selected, waiting, cache, missing, resources, out)
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    if options.dry_run:
        return 0
    try:
        _prepare(cache, missing, console)
        with rundir.locked(out):
            _run(resources, loaded, plan, waiting, cache, out, console)
            code = _conclude(plan, selected, out, console)
    except KeyboardInterrupt:
        console.print(
            f"\ninterrupted; what had finished is kept. To go on:\n  {resume}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 130
    print(out)
    return code


def _check(options: Options) -> None:
    if options.executor == "local":
        for name in ("address", "workers"):
            if getattr(options, name) is not None:
                raise UsageError(
                    Problem(f"--{name} needs --executor ray", hint="leave it out, or choose --executor ray")
                )
    if options.address is not None:
        scheduler.check_address(options.address)


def _cache(options: Options, loaded: suite.Suite) -> ImageCache:
    if options.cache == "off" or (options.cache is None and loaded.cache == "off"):
        return ImageCache(None)
    return ImageCache(pathlib.Path(options.cache).absolute() if options.cache else default_root())


def _out(options: Options, plan: Plan) -> pathlib.Path:
    if options.out:
        return pathlib.Path(options.out).absolute()
    suffix = f"-limit{options.limit}" if options.limit else ""
    return (pathlib.Path("results") / f"{plan.name}{suffix}").absolute()


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Each key once: two rows that ask for the same thing share one trial."""
    return list({trial.key: trial for trial in reversed(trials)}.values())[::-1]


def _finished(record: dict[str, Any] | None, retry_failed: bool) -> bool:
    """Whether a trial on disk is not to be run again: infrastructure failures always are, others on request."""
    if record is None:
        return False
    if record["status"] != "failed":
        return True
    return record["facts"].get("failure") != "infrastructure" and not retry_failed


def _check_space(cache: ImageCache, missing: Sequence[Entry]) -> None:
    if not missing:
        return
    needed, free = cache.space(missing)
    if needed > free:
        what = f"the image cache needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
        hint = "choose another disk with --cache DIR, or --cache off to decode images whenever they are used"
        raise UsageError(Problem(what, where=str(cache.root), hint=hint))


def _summary(
    plan: Plan, selected: Sequence[Trial], waiting: Sequence[Trial], cache: ImageCache, missing: Sequence[Entry],
    resources: scheduler.Resources, out: pathlib.Path,
) -> str:  # fmt: skip
    distinct = len(_distinct(selected))
    first = next(iter(plan.setting.datasets.values()))
    images = plan.trials[0].stream.subset
    methods = len({t.label for t in plan.trials})
    lines = [
        f"{plan.name}: {first.name}, {images} images a shift",
        f"  {distinct} trials of {methods} methods × {len(plan.setting.models)} models: "
        f"{distinct - len(waiting)} finished, {len(waiting)} to run",
        f"  {scheduler.describe(resources, len(waiting))}",
        f"  results in {out}",
    ]
    if cache.root is None:
        lines.append("  image cache: off")
    elif missing:
        needed, free = cache.space(missing)
        lines.append(
            f"  image cache {cache.root}: {len(missing)} shifts to make, "
            f"{needed / 2**20:,.0f} MiB ({free / 2**20:,.0f} MiB free)"
        )
    return "\n".join(lines)


def _prepare(cache: ImageCache, missing: Sequence[Entry], console: Console) -> None:
    if missing:
        with ImageProgress(console, sum(len(e.rows) for e in missing)) as progress:
            cache.build(missing, scheduler.available_cpus(), progress)


def _run(
    resources: scheduler.Resources, loaded: suite.LoadedSuite, plan: Plan, waiting: Sequence[Trial], cache: ImageCache,
    out: pathlib.Path, console: Console,
) -> None:  # fmt: skip
    results.write_plan(out, plan)
    session = rundir.begin_session(out, loaded.suite.model_dump(mode="json"))
    if not waiting:
        return
    with TrialProgress(console, len(waiting)) as progress:

        def keep(trial: Trial, result: TrialResult) -> None:
            results.write(out, result, trial.asked, session)
            progress.finished(trial, result)

        scheduler.run(plan.setting, waiting, resources, cache.root, out, progress.started, keep)


def _conclude(plan: Plan, selected: Sequence[Trial], out: pathlib.Path, console: Console) -> int:
    """Rebuild the tables, say what came out; the exit code is 3 where a selected trial failed."""
    tables = results.load(out)
    results.write_tables(tables)
    counts = ", ".join(f"{count} {status}" for status, count in tables.counts.items())
    stale = f"; {tables.stale} stale trial files are left out" if tables.stale else ""
    console.print(f"{plan.name}: {counts}{stale}", markup=False, highlight=False)
    failed = [r for r in results.statuses(out, (t.key for t in selected)).values() if r["status"] == "failed"]
    for line in _failures(failed, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 3 if failed else 0


def _failures(failed: Sequence[dict[str, Any]], out: pathlib.Path) -> list[str]:
    """One line for each different reason, with where one of its tracebacks is."""
    by_reason: dict[str, list[str]] = {}
    for record in failed:
        by_reason.setdefault(record["reason"], []).append(record["key"])
    lines = [
        f"  failed {len(keys)} times: {reason}\n    traceback in {out / 'trials' / f'{keys[0]}.json'}"
        for reason, keys in by_reason.items()
    ]
    return [*lines, "  run again with --retry-failed once the cause is mended"] if lines else []
