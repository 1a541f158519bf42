"""``tta-bench run --profile``: traces of a few steps, beside the results of a run; none is written or read."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_atomically, write_text
from tta_bench.report import profile as pages
from tta_bench.run.faults import Fault
from tta_bench.run.profiling import warmup
from tta_bench.run.runner import TrialResult
from tta_bench.schedule import scheduler
from tta_bench.schedule.estimates import Estimates
from tta_bench.schedule.observer import title
from tta_bench.schedule.options import RunOptions
from tta_bench.store import rundir
from tta_bench.suite.plan import Plan, Trial

FOLDER = "profiles"
MOST = 8  # profiles in one command: they are read one by one


def chosen(plan: Plan, selected: Sequence[Trial]) -> list[Trial]:
    """The trials to profile: of the selected ones the first of each label, source model, mode and batch size.

    Raises:
        UsageError: they are too many, none can run, or a stream is too short.
    """
    first: dict[tuple[Any, ...], Trial] = {}
    for trial in selected:
        if not trial.obstacle:
            first.setdefault((trial.label, trial.model, trial.mode, trial.step_size), trial)
    if not first:
        raise UsageError(Problem("--profile: no selected trial can run: their cost ratios could not be measured"))
    if len(first) > MOST:
        message = f"--profile: {len(first)} methods × source models are selected; at most {MOST} are profiled at a time"
        raise UsageError(Problem(message, hint="select some: --only method=tent,model=NAME"))
    streams = plan.materials.streams()
    for trial in first.values():
        batches, before = len(streams.build(trial.model, trial.stream).adapt), warmup(trial.mode)
        if batches <= before:
            message = (
                f"--profile: {title(trial)} has {batches} batches; the first {before} warm up and are not profiled"
            )
            raise UsageError(Problem(message, hint="use more images, or a smaller batch_size"))
    return [dataclasses.replace(trial, profiles=True) for trial in first.values()]


def run(
    plan: Plan, trials: Sequence[Trial], options: RunOptions, connect: Callable[[], Any], out: pathlib.Path,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """Profile trials one after another, write ``<out>/profiles/`` and print the summaries; returns the exit code."""
    observer = _Profiles(out, say)
    alone = dataclasses.replace(options, workers=1)  # trials beside each other would take each other's time
    scheduler.run(plan.materials, trials, alone, connect, Estimates(plan.materials), observer)
    console = Console()
    for page in observer.pages:
        console.print(Markdown(page))
    return 3 if observer.failed else 0


class _Profiles:
    """The scheduler's :class:`tta_bench.schedule.observer.Observer`: writes traces and their pages."""

    def __init__(self, out: pathlib.Path, say: Callable[[str], None]):
        self._folder, self._say = out / FOLDER, say
        self.pages = list[str]()
        self.failed = False

    def finished(self, trial: Trial, result: TrialResult) -> None:
        if result.status != "profiled":
            self.failed |= result.status == "failed"
            details = (result.traceback or result.log) if result.status == "failed" else ""
            self._say("\n".join(filter(None, [f"{result.status} {title(trial)}: {result.reason}", details])))
            return
        file = self._folder / f"{_name(trial)}.json.gz"
        profile = pages.read(result.trace)
        trace = f"The trace, for <https://ui.perfetto.dev>: `{file.name}`."
        page = pages.page(profile, title(trial), [_about(trial, result, profile), trace])
        with rundir.writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            write_atomically(file, lambda stream: stream.write(result.trace))
            write_text(self._folder / f"{_name(trial)}.md", page)
        self.pages.append(page)
        self._say(f"profiled {title(trial)}: {file}")

    def retried(self, trial: Trial, fault: Fault) -> None:
        self._say(f"retry {title(trial)}: {fault.message}")

    def note(self, text: str) -> None:
        self._say(text)

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        pass


def _name(trial: Trial) -> str:
    """The name of a profile's files: a row's label has brackets and commas where a suite varies it."""
    label = re.sub(r"[^\w.+=-]+", "-", trial.label).strip("-")
    return f"{label}-{trial.model}-{trial.key[:8]}"


def _about(trial: Trial, result: TrialResult, profile: pages.Profile) -> str:
    """How a profiled trial ran."""
    where = result.environment
    threads = f"{where['threads']} CPU thread{'s' if where['threads'] > 1 else ''}"
    not_compiled = f" Not compiled: {reason}." if (reason := result.facts.get("not_compiled")) else ""
    unseen = " The profiler recorded nothing of the GPU." if where["device"] == "cuda" and profile.gpu is None else ""
    several = "s" if profile.steps > 1 else ""
    steps = f"{profile.steps} step{several} with batches of {trial.step_size}, after {warmup(trial.mode)} for warm-up"
    machine = f"{where['device_name']} on {where['host']}, {threads}, torch {where['torch']}."
    return f"{steps}; {trial.mode.text}. {machine}{not_compiled}{unseen}"
