"""``tta-bench run``: load the suite, plan, build the image cache, run trials, write tables."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from tta_bench import suite
from tta_bench.commands import preparations
from tta_bench.commands.measuring import Measuring
from tta_bench.data.base import Found, absent_lines, digest
from tta_bench.data.cache import CacheEntry, ImageCache
from tta_bench.data.comparison import unlike_published
from tta_bench.data.digests import Digests
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.files import obstacle_to_writing
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule import preflight, scheduler
from tta_bench.schedule.estimates import Estimates, forecast
from tta_bench.schedule.interrupts import EXIT_CODE, Interrupts
from tta_bench.schedule.observer import title
from tta_bench.schedule.options import RunOptions, available_cpus
from tta_bench.schedule.progress import ImageProgress, ReadingProgress, TrialProgress, own_console
from tta_bench.schedule.status import StatusFile, Tally, row_of
from tta_bench.store import records, rundir, runlog
from tta_bench.suite import calibration
from tta_bench.suite import plan as planning
from tta_bench.suite.plan import Plan, Trial
from tta_bench.suite.select import Filter

Connect = Callable[[], Any]  # connects to Ray; see scheduler.ray_connection


class ResumeState(NamedTuple):
    """Where earlier sessions of a run stopped.

    Attributes:
        pending: trials to run.
        tally: of the finished trials.
        estimates: durations of trials.
        damaged: messages about damaged files, whose trials are pending again.
        stale: number of trials in the folder that the plan does not have.
    """

    pending: list[Trial]
    tally: Tally
    estimates: Estimates
    damaged: list[str]
    stale: int


def run(options: RunOptions, resume: str) -> int:
    """Run a suite; returns the exit code.

    Args:
        options: of the command line.
        resume: the command that resumes this run after an interruption, for messages.

    Raises:
        UsageError: nothing was run and no result was written.
    """
    console = own_console()
    _check(options)
    loaded = suite.load(options.suite, sets=options.sets, plugins=options.plugins)
    options = options.resolved(loaded.suite.cache)
    out = _output_folder(options, loaded.suite.name)
    planning.check_size(loaded, _most_trials(options))
    if obstacle := obstacle_to_writing(out):
        hint = "choose another folder with --out DIR"
        raise UsageError(Problem(f"the run's folder cannot be written: {obstacle}", str(out), hint=hint))
    records.check_version(out)
    rundir.check_kinds(out)
    try:
        with Interrupts() as interrupts, scheduler.ray_connection(options) as connect:
            if options.executor == "ray" and (options.address if options.dry_run else not out.exists()):
                connect()  # while the fork server imports what planning needs
            code = _run_suite(options, loaded, out, console, interrupts, connect)
    except KeyboardInterrupt:
        kept = "nothing was stored" if options.measure else f"finished trials are kept. To resume:\n  {resume}"
        _print(console, f"interrupted; {kept}")
        return EXIT_CODE
    except Stopped as stopped:
        _print(console, f"{stopped}\nstopped; finished trials are kept. To resume:\n  {resume}")
        return 3
    if not options.dry_run:
        print(out)
    return code


def _run_suite(
    options: RunOptions, loaded: suite.LoadedSuite, out: pathlib.Path, console: Console, interrupts: Interrupts,
    connect: Connect,
) -> int:  # fmt: skip
    only, digests = Filter(options.only), Digests(progress=ReadingProgress(console))
    say = functools.partial(_print, console)
    artefacts = preparations.pretrain(loaded, only, options, out, say)
    if artefacts is None:
        return 0
    accuracies = preparations.measure_accuracies(loaded, digests, options, out, say)
    if accuracies is None:
        return 0
    make_plan = functools.partial(planning.make, loaded, options.limit, only, digests, artefacts, accuracies=accuracies,
                                  most=_most_trials(options))  # fmt: skip
    plan = make_plan()
    if calibrations := calibration.calibrations(plan, loaded.suite.shifts()[0], digests):
        costs = preparations.measure_costs(calibrations, only.select(plan.trials), options, out, say)
        plan = make_plan(costs=costs)
    _print_reading_cost(console, digests)
    selected = only.select(plan.trials)
    if options.profile:
        return _profile(options, plan, selected, out, console, connect)
    cache = options.image_cache()
    state = _resume_state(out, plan, selected, options.retry_failed)
    measuring = Measuring(plan.materials, loaded.suite.shifts()[-1], digests, options, say)
    options = measuring.packed(state.pending, out)
    missing = _images_to_make(plan, state.pending, cache)
    for damage in state.damaged:
        _print(console, f"damaged, counted as not run: {damage}")
    for damage in rundir.damaged(out):
        _print(console, f"to be written anew: {damage}")
    if state.stale:
        _print(console, f"{state.stale} trials in {out} are of another plan: tables will leave them out; to keep theirs, "
                        "choose another folder with --out DIR")  # fmt: skip
    unlike = _unlike_published(loaded.suite, plan)
    _print(console, _summary(plan, selected, state.pending, cache, missing, unlike, options, out))
    if options.measure:
        return measuring.compare(selected)
    if options.dry_run:
        if state.pending:
            slots = scheduler.slots(options)
            _print(console, forecast(plan, state.pending, state.estimates, options.threads, slots))
        return 0
    _build_cache(cache, missing, console)
    if converted := cache.converted(plan.cache_entries(selected)):
        _print(console, f"images converted: {', '.join(f'{n:,} {kind}' for kind, n in sorted(converted.items()))}")
    with rundir.locked(out):
        _run_trials(options, loaded, plan, state, converted, out, console, interrupts, connect)
        return _conclude(plan, selected, out, console, interrupts)


def _profile(
    options: RunOptions, plan: Plan, selected: Sequence[Trial], out: pathlib.Path, console: Console, connect: Connect
) -> int:
    """Profile some of the selected trials in the place of running them."""
    from tta_bench.commands import profile as profiles  # with its renderer, which other runs do without

    trials, cache = profiles.chosen(plan, selected), options.image_cache()
    missing = _images_to_make(plan, trials, cache)
    say = functools.partial(_print, console)
    say("\n".join([f"{plan.name}: profiles of", *(f"  {title(trial)}" for trial in trials)]))
    if options.dry_run:
        return 0
    _build_cache(cache, missing, console)
    with rundir.locked(out):
        return profiles.run(plan, trials, options, connect, out, say)


def _images_to_make(plan: Plan, trials: Sequence[Trial], cache: ImageCache) -> list[CacheEntry]:
    """What the image cache lacks for trials.

    Raises:
        UsageError: the disk has no room for it.
    """
    missing = cache.to_build(plan.cache_entries(trials))
    if problem := preflight.cache_space_problem(cache, missing):
        raise UsageError(problem)
    return missing


def _print_reading_cost(console: Console, digests: Digests) -> None:
    """Print how long reading image files took; the next run reads only changed ones."""
    cost = digests.cost
    if cost.files:
        size = f"{cost.bytes / 2**30:.1f} GiB" if cost.bytes >= 2**30 else f"{cost.bytes / 2**20:.0f} MiB"
        cached = "digests cached" if not digests.trouble else f"digests not cached: {digests.trouble}"
        _print(console, f"read {cost.files:,} image files ({size}) in {cost.seconds:.1f} s; {cached}")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _check(options: RunOptions) -> None:
    """Refuse options that contradict each other and an unusable cluster address."""
    if options.measure and not options.dry_run:
        hint = "give both: the suite is measured instead of run"
        raise UsageError(Problem("--measure needs --dry-run", hint=hint))
    if options.executor == "local":
        for name in ("address", "workers"):
            if getattr(options, name) is not None:
                raise UsageError(Problem(f"--{name} needs --executor ray", hint="omit it, or use --executor ray"))
    if options.gpu_share > 1 and options.gpu_share % 1:
        hint = "give a fraction of one, or a whole number"
        raise UsageError(
            Problem(f"--gpus-per-trial {options.gpu_share:g}: no part of a second GPU can be had", hint=hint)
        )
    if options.profile and options.retry_failed:
        message = "--profile runs no trial anew: it stores no result"
        raise UsageError(Problem(message, hint="omit --retry-failed, or --profile"))
    if options.address is not None:
        from tta_bench.schedule.cluster import check_address

        check_address(options.address)


def _most_trials(options: RunOptions) -> int | None:
    return None if options.yes else planning.MOST_TRIALS


def _output_folder(options: RunOptions, name: str) -> pathlib.Path:
    """``results/<suite name>``; with ``--set`` or ``--plugin``, another for each set of these options.

    What they change then takes no trial out of the tables of the suite as it is.
    """
    if options.out:
        return pathlib.Path(options.out).absolute()
    suffix = f"-limit{options.limit}" if options.limit else ""
    return (pathlib.Path("results") / f"{name}{suffix}{_of_change(options)}").absolute()


_NO_ROWS = ("name=", "cache=")  # overrides that change no row: the first is in the folder's name as it is
_MAX_WORDS = 60  # characters


def _of_change(options: RunOptions) -> str:
    """``-my_method-methods-1a2b3c``: the plugin files and overridden keys, and a digest of both; or empty."""
    sets = [pair for pair in options.sets if not pair.startswith(_NO_ROWS)]
    files = [os.path.relpath(file) for file in options.plugins]
    if not sets and not files:
        return ""
    words = [*(pathlib.Path(file).stem for file in files), *(pair.partition("=")[0] for pair in sets)]
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(words))[:_MAX_WORDS]
    return f"-{plain}-{digest([files, sets])[:6]}"


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """One trial per key: rows of the suite with the same content share a trial."""
    return list({trial.key: trial for trial in reversed(trials)}.values())[::-1]


def _finished(record: dict[str, Any], retry_failed: bool) -> bool:
    """Whether a recorded trial is kept: infrastructure failures are always rerun, other failures on request."""
    if record["status"] != "failed":
        return True
    return record["facts"].get("failure") != "infrastructure" and not retry_failed


def _resume_state(out: pathlib.Path, plan: Plan, selected: Sequence[Trial], retry_failed: bool) -> ResumeState:
    """Read the records of earlier sessions, one at a time: thousands of them would take much memory.

    Raises:
        UsageError: the folder holds records of something else.
    """
    rows = [row_of(t.setting.protocol_text, (s.family for s in t.stream.shifts)) for t in plan.trials]
    tally = Tally(
        (t.label, row, t.model, [s.name for s in t.stream.shifts]) for t, row in zip(plan.trials, rows, strict=True)
    )
    estimates, finished, selected_keys = Estimates(plan.materials), set[str](), {trial.key for trial in selected}
    damaged: dict[str, None] = {}
    for trial, row in zip(plan.trials, rows, strict=True):
        stored = records.read_trial(out, trial.key)
        record = stored.record
        if stored.foreign:
            raise UsageError(stored.foreign)
        if stored.damage:
            damaged[stored.damage] = None
        if record is None or (trial.key in selected_keys and not _finished(record, retry_failed)):
            continue
        finished.add(trial.key)
        tally.add(trial.label, row, trial.model, record["status"], record["shifts"])
        if record["status"] == "ok":
            estimates.learn(trial, record["facts"]["trial_s"])
    pending = [trial for trial in _distinct(selected) if trial.key not in finished]
    stale = records.recorded(out).difference(trial.key for trial in plan.trials)
    return ResumeState(pending, tally, estimates, list(damaged), len(stale))


def _summary(
    plan: Plan, selected: Sequence[Trial], pending: Sequence[Trial], cache: ImageCache, missing: Sequence[CacheEntry],
    unlike: Iterable[str], options: RunOptions, out: pathlib.Path,
) -> str:  # fmt: skip
    distinct, own = len(_distinct(selected)), not options.out and _of_change(options)
    first = next(iter(plan.materials.datasets.values()))
    images = " or ".join(map(str, sorted({plan.materials.images_a_shift(trial) for trial in plan.trials})))
    methods, protocols = len({t.label for t in plan.trials}), len({t.setting.protocol_text for t in plan.trials})
    under = f" × {protocols} protocols" if protocols > 1 else ""
    lines = [
        f"{plan.name}: {first.title}, {images} images per shift",
        f"  {distinct} trials of {methods} methods × {len(plan.materials.models)} models{under}: "
        f"{distinct - len(pending)} finished, {len(pending)} to run",
        f"  {scheduler.describe(options, len(pending))}",
        f"  results in {out}" + (", the folder of these --set and --plugin" if own else ""),
        *(f"  {line}" for line in _found_lines(plan)),
        *(f"  {model.remark}" for model in plan.materials.models.values() if model.remark),
        *(f"  {line}" for line in unlike),
        *_missing_presets(selected),
    ]
    if cache.root is None:
        lines.append("  image cache: off")
    elif missing:
        needed, free = cache.space(missing)
        lines.append(
            f"  image cache {cache.root}: {len(missing)} shifts to build, "
            f"{needed / 2**20:,.0f} MiB ({free / 2**20:,.0f} MiB free)"
        )
    return "\n".join(lines)


def _found(plan: Plan) -> list[Found]:
    """What opening the data found in folders, for any source model."""
    found: list[Found] = []
    for dataset in plan.materials.datasets.values():
        found += [each for each in dataset.found() if each not in found]
    return found


def _found_lines(plan: Plan) -> Iterator[str]:
    """Each folder's classes, those that an earlier one has excepted, and what was left out in it."""
    known = list[Sequence[str]]()
    for each in _found(plan):
        yield from dataclasses.replace(each, classes=() if each.classes in known else each.classes).lines()
        known.append(each.classes)
    yield from absent_lines(_found(plan))


def _unlike_published(asked: suite.Suite, plan: Plan) -> dict[str, None]:
    """Where the data have other numbers of images or other classes than the published ones: lines, each once."""
    datasets = dict.fromkeys(plan.materials.datasets.values())
    return dict.fromkeys(line for each in datasets for line in unlike_published(asked.data, each, asked.shifts()))


def _missing_presets(trials: Sequence[Trial]) -> list[str]:
    """One line per method and model without published hyperparameters."""
    missing = dict.fromkeys((t.method, t.preset_missing, t.model) for t in trials if t.preset_missing)
    return [
        f"  {method} has no preset {preset!r} for model {model!r}: its defaults are used"
        for method, preset, model in missing
    ]


def _build_cache(cache: ImageCache, missing: Sequence[CacheEntry], console: Console) -> None:
    if missing:
        with ImageProgress(console, sum(len(e.rows) for e in missing)) as progress:
            cache.build(missing, available_cpus(), progress)


def _run_trials(
    options: RunOptions, loaded: suite.LoadedSuite, plan: Plan, state: ResumeState, converted: Mapping[str, int],
    out: pathlib.Path, console: Console, interrupts: Interrupts, connect: Connect,
) -> None:  # fmt: skip
    with rundir.writing(out):
        records.write_plan(out, plan)
        data = {"found": [dataclasses.asdict(each) for each in _found(plan)], "converted": converted}
        session = rundir.begin_session(out, loaded.suite.model_dump(mode="json"), data)
    if not state.pending:
        return
    with TrialProgress(console, state.tally, len(state.pending)) as progress:
        recorder = _Recorder(out, session, progress, interrupts)
        try:
            for trial in (trial for trial in state.pending if trial.obstacle):
                recorder.finished(trial, _without_ratio(trial))
            runnable = [trial for trial in state.pending if not trial.obstacle]
            scheduler.run(plan.materials, runnable, options, connect, state.estimates, recorder)
            recorder.status.update(state="finished", now=True)
        except KeyboardInterrupt:
            recorder.status.update(state="interrupted", now=True)
            raise
        except Stopped as stopped:
            with contextlib.suppress(OSError):  # the disk may be why it stopped
                recorder.status.update(state=f"stopped: {stopped.problem.message}", now=True)
            raise


def _without_ratio(trial: Trial) -> TrialResult:
    """The result of a trial whose cost ratio could not be measured."""
    obstacle = trial.obstacle
    assert obstacle is not None
    facts = {"failure": obstacle.failure} if obstacle.status == "failed" else {}
    reason = f"its cost ratio could not be measured: {obstacle.reason}"
    return TrialResult(trial.key, obstacle.status, reason, obstacle.traceback, facts, log=obstacle.log)


class _Recorder:
    """The scheduler's :class:`tta_bench.schedule.observer.Observer`: stores results, updates progress and status."""

    def __init__(self, out: pathlib.Path, session: int, progress: TrialProgress, interrupts: Interrupts):
        self._out, self._session, self._progress, self._interrupts = out, session, progress, interrupts
        self.status = StatusFile(out, progress)

    def finished(self, trial: Trial, result: TrialResult) -> None:
        result = dataclasses.replace(result, facts={**result.facts, "log": runlog.name(trial.key)})
        with self._interrupts.deferred(), rundir.writing(self._out):
            runlog.write(self._out, trial, result)
            written = records.write(self._out, result, trial.asked, self._session)
        self._progress.finished(trial, written)
        self._update_status()

    def retried(self, trial: Trial, fault: Fault) -> None:
        self._progress.retried(trial, fault)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        self._progress.tick(running, workers, seconds_left)
        self._update_status()

    def _update_status(self) -> None:
        with rundir.writing(self._out):
            self.status.update()


def _conclude(
    plan: Plan, selected: Sequence[Trial], out: pathlib.Path, console: Console, interrupts: Interrupts
) -> int:
    """Write the tables and print a summary; returns exit code 3 if a selected trial failed or a file is damaged."""
    from tta_bench.store import results  # pandas, which the driver needs for nothing else

    with interrupts.deferred(), rundir.writing(out):
        try:
            tables = results.write_tables(out)
        except UsageError as error:  # in a trial's files, not in the command: trials were run
            _print(console, str(error))
            return 3
    counts = ", ".join(f"{count} {status}" for status, count in tables.counts.items())
    stale = f"; {tables.stale} stale trial files ignored" if tables.stale else ""
    _print(console, f"{plan.name}: {counts}{stale}")
    for damage in tables.damaged:
        _print(console, f"damaged, counted as not run: {damage}")
    selected_keys = {trial.key for trial in selected}
    failed = [(key, reason) for key, reason in tables.failed.items() if key in selected_keys]
    for line in _failures(failed, out):
        _print(console, line)
    return 3 if failed or tables.damaged else 0


def _failures(failed: Sequence[tuple[str, str]], out: pathlib.Path) -> list[str]:
    """One line per reason, with the record of one trial that has its traceback."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in failed:
        by_reason.setdefault(reason, []).append(key)
    lines = [
        f"  failed {len(keys)} times: {reason}\n    traceback in {out / 'trials' / f'{keys[0]}.json'}"
        for reason, keys in by_reason.items()
    ]
    return [*lines, "  run again with --retry-failed once the cause is fixed"] if lines else []
