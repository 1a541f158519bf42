"""One ``tta-bench run``: suite, plan, images, trials, tables; the straight line that the other modules are stages of."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console

from tta_bench import preparation, suite
from tta_bench.data.cache import CacheEntry, ImageCache
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule import preflight, scheduler
from tta_bench.schedule.forecast import forecast
from tta_bench.schedule.interrupts import EXIT_CODE, Interrupts
from tta_bench.schedule.options import Options, available_cpus
from tta_bench.schedule.progress import ImageProgress, ReadingProgress, TrialProgress, own_console
from tta_bench.schedule.queue import Estimates
from tta_bench.schedule.status_file import StatusFile
from tta_bench.schedule.tally import Tally
from tta_bench.store import conclusion, records, rundir, runlog
from tta_bench.suite import plan as planning
from tta_bench.suite.plan import Plan, Trial
from tta_bench.suite.prepare import pretrainings
from tta_bench.suite.select import Filter

Connect = Callable[[], Any]  # to Ray; see scheduler.ray_connection


class _Past(NamedTuple):
    """What earlier sessions have left: trials that wait, what the others came to, and what trials are expected to take.

    ``damaged`` says what is wrong with the files of trials that are run again for it.
    """

    waiting: list[Trial]
    tally: Tally
    estimates: Estimates
    damaged: list[str]


def run(options: Options, resume: str) -> int:
    """Run a suite to its end; returns the exit code.

    Args:
        options: see :class:`Options`.
        resume: the command that goes on where this one is interrupted.

    Raises:
        UsageError: nothing was run, and no result was written.
    """
    console = own_console()
    _check(options)
    loaded = suite.load(options.suite, sets=options.sets, plugins=options.plugins)
    options = options.resolved(loaded.suite.cache)
    out = _out(options, loaded.suite.name)
    records.check_version(out)
    try:
        with Interrupts() as interrupts, scheduler.ray_connection(options) as connect:
            if options.executor == "ray" and not options.dry_run and not out.exists():
                connect()  # meanwhile the fork server imports what planning needs
            code = _from_suite_to_tables(options, loaded, out, console, interrupts, connect)
    except KeyboardInterrupt:
        _say(console, f"interrupted; what had finished is kept. To go on:\n  {resume}")
        return EXIT_CODE
    except Stopped as stopped:
        _say(console, f"{stopped}\nstopped; what had finished is kept. To go on:\n  {resume}")
        return 3
    if not options.dry_run:
        print(out)
    return code


def _from_suite_to_tables(
    options: Options, loaded: suite.LoadedSuite, out: pathlib.Path, console: Console, interrupts: Interrupts,
    connect: Connect,
) -> int:  # fmt: skip
    only, digests = Filter(options.only), Digests(progress=ReadingProgress(console))
    prepared = _prepared(loaded, only, options, out, console)
    if prepared is None:
        return 0
    plan = planning.make(loaded, options.limit, only, digests, prepared)
    _say_cost(console, digests)
    selected = only.select(plan.trials)
    cache = options.image_cache()
    past = _recall(out, plan, selected, options.retry_failed)
    missing = cache.to_build(plan.cache_entries(past.waiting))
    if problem := preflight.no_room(cache, missing):
        raise UsageError(problem)
    for damage in past.damaged:
        _say(console, f"damaged, and counted as not run: {damage}")
    _say(console, _summary(plan, selected, past.waiting, cache, missing, options, out))
    if options.dry_run:
        if past.waiting:
            _say(console, _forecast(plan, past, options))
        return 0
    _fill(cache, missing, console)
    with rundir.locked(out):
        _run(options, loaded, plan, past, out, console, interrupts, connect)
        return _conclude(plan, selected, out, console, interrupts)


def _prepared(
    loaded: suite.LoadedSuite, only: Filter, options: Options, out: pathlib.Path, console: Console
) -> dict[Any, pathlib.Path] | None:
    """The files of all preparations that the trials need, made where they are not there; None if ``--dry-run`` forbids."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = pretrainings(loaded, only.allows)
    preparations = {place: job.preparation(options.image_cache(), device) for place, job in jobs.items()}
    if waiting := preparation.waiting(list(preparations.values()), out):
        if options.dry_run:
            names = ", ".join(p.name for p in waiting)
            _say(console, f"{loaded.suite.name}: to be prepared before trials can be planned: {names}")
            return None
        with rundir.locked(out):
            preparation.finish(waiting, out, functools.partial(_say, console))
    return preparation.results(preparations, out)


def _say_cost(console: Console, digests: Digests) -> None:
    """What reading image files took; next time only those that changed are read."""
    cost = digests.cost
    if cost.files:
        size = f"{cost.bytes / 2**30:.1f} GiB" if cost.bytes >= 2**30 else f"{cost.bytes / 2**20:.0f} MiB"
        remembered = "their digests are remembered" if not digests.trouble else f"not remembered: {digests.trouble}"
        _say(console, f"read {cost.files:,} image files ({size}) in {cost.seconds:.1f} s; {remembered}")


def _forecast(plan: Plan, past: _Past, options: Options) -> str:
    return forecast(plan, past.waiting, past.estimates, options.threads, scheduler.slots(options))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _check(options: Options) -> None:
    if options.executor == "local":
        for name in ("address", "workers"):
            if getattr(options, name) is not None:
                raise UsageError(
                    Problem(f"--{name} needs --executor ray", hint="leave it out, or choose --executor ray")
                )
    if options.address is not None:
        from tta_bench.schedule.cluster import check_address

        check_address(options.address)


def _out(options: Options, name: str) -> pathlib.Path:
    if options.out:
        return pathlib.Path(options.out).absolute()
    suffix = f"-limit{options.limit}" if options.limit else ""
    return (pathlib.Path("results") / f"{name}{suffix}").absolute()


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Each key once: two rows that ask for the same thing share one trial."""
    return list({trial.key: trial for trial in reversed(trials)}.values())[::-1]


def _finished(record: dict[str, Any], retry_failed: bool) -> bool:
    """Whether a trial on disk is not to be run again: infrastructure failures always are, others on request."""
    if record["status"] != "failed":
        return True
    return record["facts"].get("failure") != "infrastructure" and not retry_failed


def _recall(out: pathlib.Path, plan: Plan, selected: Sequence[Trial], retry_failed: bool) -> _Past:
    """Take in the trials of earlier sessions, one after another: thousands of records take much memory."""
    tally = Tally((t.label, t.model, [s.name for s in t.stream.shifts]) for t in plan.trials)
    estimates, finished, chosen = Estimates(plan.materials), set[str](), {trial.key for trial in selected}
    damaged: dict[str, None] = {}
    for trial in plan.trials:
        stored = records.look(out, trial.key)
        record = stored.record
        if stored.foreign:
            raise UsageError(stored.foreign)
        if stored.damage:
            damaged[stored.damage] = None
        if record is None or (trial.key in chosen and not _finished(record, retry_failed)):
            continue
        finished.add(trial.key)
        tally.add(trial.label, trial.model, record["status"], record["shifts"])
        if record["status"] == "ok":
            estimates.learn(trial, record["facts"]["trial_s"])
    waiting = [trial for trial in _distinct(selected) if trial.key not in finished]
    return _Past(waiting, tally, estimates, list(damaged))


def _summary(
    plan: Plan, selected: Sequence[Trial], waiting: Sequence[Trial], cache: ImageCache, missing: Sequence[CacheEntry],
    options: Options, out: pathlib.Path,
) -> str:  # fmt: skip
    distinct = len(_distinct(selected))
    first = next(iter(plan.materials.datasets.values()))
    images = " or ".join(map(str, sorted({plan.materials.images_a_shift(trial) for trial in plan.trials})))
    methods = len({t.label for t in plan.trials})
    lines = [
        f"{plan.name}: {first.title}, {images} images a shift",
        f"  {distinct} trials of {methods} methods × {len(plan.materials.models)} models: "
        f"{distinct - len(waiting)} finished, {len(waiting)} to run",
        f"  {scheduler.describe(options, len(waiting))}",
        f"  results in {out}",
        *_missing_presets(selected),
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


def _missing_presets(trials: Sequence[Trial]) -> list[str]:
    """One line for each method and model whose published hyperparameters are not known."""
    lacking = dict.fromkeys((t.method, t.preset_missing, t.model) for t in trials if t.preset_missing)
    return [
        f"  {method} has no preset {preset!r} for model {model!r}: its defaults are used"
        for method, preset, model in lacking
    ]


def _fill(cache: ImageCache, missing: Sequence[CacheEntry], console: Console) -> None:
    if missing:
        with ImageProgress(console, sum(len(e.rows) for e in missing)) as progress:
            cache.build(missing, available_cpus(), progress)


def _run(
    options: Options, loaded: suite.LoadedSuite, plan: Plan, past: _Past,
    out: pathlib.Path, console: Console, interrupts: Interrupts, connect: Connect,
) -> None:  # fmt: skip
    with _writing(out):
        records.write_plan(out, plan)
        session = rundir.begin_session(out, loaded.suite.model_dump(mode="json"))
    if not past.waiting:
        return
    with TrialProgress(console, past.tally, len(past.waiting)) as progress:
        keeper = _Keeper(out, session, progress, interrupts)
        try:
            scheduler.run(plan.materials, past.waiting, options, connect, past.estimates, keeper)
            keeper.status.update(state="finished", now=True)
        except KeyboardInterrupt:
            keeper.status.update(state="interrupted", now=True)
            raise
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # the disk may be what stopped it
                keeper.status.update(state=f"stopped: {stopped.problem.message}", now=True)
            raise


@contextlib.contextmanager
def _writing(out: pathlib.Path) -> Iterator[None]:
    """A disk that takes no more ends the run; nothing on it is torn, for files are renamed into place."""
    try:
        yield
    except OSError as error:
        hint = "free some space or mend the disk"
        raise Stopped(Problem(f"a result cannot be written: {error.strerror}", str(out), hint=hint)) from error


class _Keeper:
    """Keeps what the scheduler reports, and shows it; see :class:`tta_bench.schedule.observer.Observer`."""

    def __init__(self, out: pathlib.Path, session: int, progress: TrialProgress, interrupts: Interrupts):
        self._out, self._session, self._progress, self._interrupts = out, session, progress, interrupts
        self.status = StatusFile(out, progress)

    def finished(self, ended: Sequence[tuple[Trial, TrialResult]]) -> None:
        named = [(t, dataclasses.replace(r, facts={**r.facts, "log": runlog.name(t.key)})) for t, r in ended]
        with self._interrupts.held(), _writing(self._out):
            for trial, result in named:
                runlog.write(self._out, trial, result)
            pairs = [(result, trial.asked) for trial, result in named]
            written = records.write_all(self._out, pairs, self._session)
        for (trial, _), result in zip(named, written, strict=True):
            self._progress.finished(trial, result)
        self._update()

    def retried(self, trials: Sequence[Trial], fault: Fault) -> None:
        self._progress.retried(trials, fault)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        self._progress.tick(running, workers, seconds_left)
        self._update()

    def _update(self) -> None:
        with _writing(self._out):
            self.status.update()


def _conclude(
    plan: Plan, selected: Sequence[Trial], out: pathlib.Path, console: Console, interrupts: Interrupts
) -> int:
    """Rebuild the tables, say what came out; the exit code is 3 where a selected trial failed or one is damaged."""
    with interrupts.held(), _writing(out):
        came = conclusion.conclude(out, len(plan.trials))
    counts = ", ".join(f"{count} {status}" for status, count in came.counts.items())
    stale = f"; {came.stale} stale trial files are left out" if came.stale else ""
    console.print(f"{plan.name}: {counts}{stale}", markup=False, highlight=False)
    for damage in came.damaged:
        _say(console, f"damaged, and counted as not run: {damage}")
    chosen = {trial.key for trial in selected}
    failed = [(key, reason) for key, reason in came.failed if key in chosen]
    for line in _failures(failed, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 3 if failed or came.damaged else 0


def _failures(failed: Sequence[tuple[str, str]], out: pathlib.Path) -> list[str]:
    """One line for each different reason, with where one of its tracebacks is."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in failed:
        by_reason.setdefault(reason, []).append(key)
    lines = [
        f"  failed {len(keys)} times: {reason}\n    traceback in {out / 'trials' / f'{keys[0]}.json'}"
        for reason, keys in by_reason.items()
    ]
    return [*lines, "  run again with --retry-failed once the cause is mended"] if lines else []
