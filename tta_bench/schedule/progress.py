"""Progress of a run on stderr: a live view on a terminal, a plain line for each finished trial otherwise."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from tta_bench.data.cache import CacheEntry
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.observer import title
from tta_bench.schedule.tally import Tally, duration
from tta_bench.suite.plan import Trial

_STYLE = {"ok": "green", "failed": "red", "skipped": "yellow", "again": "yellow", "note": "yellow"}
_WORKERS_SHOWN = 16


def own_console() -> Console:
    """A console on this process's standard error that stays there while trials' output goes into their logs."""
    return Console(file=os.fdopen(os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2), "w", encoding="utf-8"))


class ImageProgress:
    """Progress of making cache entries: images done."""

    def __init__(self, console: Console, total: int):
        self._console, self._done, self._total = console, 0, total
        self._bar = _bar(console, "images") if console.is_terminal else None
        self._shift = ""

    def __enter__(self) -> ImageProgress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("preparing images", total=self._total, detail="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, entry: CacheEntry, images: int) -> None:
        """So many more images of ``entry`` are done."""
        self._done += images
        if self._bar:
            self._bar.update(self._task, completed=self._done, detail=entry.shift.id)
        elif entry.shift.id != self._shift:
            self._console.print(f"preparing images: {entry.shift.id} ({self._done} of {self._total} done)")
        self._shift = entry.shift.id


class ReadingProgress:
    """Progress of reading image files for their digests; shown once that takes longer than ``EVERY_S`` seconds."""

    EVERY_S = 5.0

    def __init__(self, console: Console):
        self._console, self._shown = console, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` files are read."""
        if time.monotonic() - self._shown > self.EVERY_S:
            self._console.print(f"reading image files: {done:,} of {total:,}", highlight=False)
            self._shown = time.monotonic()


class TrialProgress:
    """Progress of a run: trials done, running, retried and failed, images per second, time left, what each worker does.

    Args:
        console: where to show it.
        tally: of the whole run; trials that finish are added to it here.
        total: trials to run in this session.
    """

    def __init__(self, console: Console, tally: Tally, total: int):
        self._console, self._tally, self._total = console, tally, total
        self.done = self.running = self.again = self.failed = self.images = 0
        self.workers: Sequence[str] = ()
        self.seconds_left: float | None = None
        self._start = time.perf_counter()
        self._bar = _bar(console, "trials") if console.is_terminal else None
        if self._bar:
            self._task = self._bar.add_task("running", total=total, detail="")
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._view) if self._bar else None

    def __enter__(self) -> TrialProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self.workers = ()
            self._live.stop()

    @property
    def images_per_s(self) -> float:
        """Images graded in this session, a second of wall time."""
        return self.images / max(time.perf_counter() - self._start, 1e-9)

    def finished(self, trial: Trial, result: TrialResult) -> None:
        """A trial ended."""
        self.done += 1
        self.failed += result.status == "failed"
        self.images += sum(row["images"] for row in result.shifts)
        self._tally.add(trial.label, trial.model, result.status, result.shifts)
        if not self._bar or result.status == "failed":
            self._say(*self._line(trial, result))

    def retried(self, trials: Sequence[Trial], fault: Fault) -> None:
        """Trials, which one worker had, gave no result and wait again."""
        self.again += len(trials)
        more = f" and {len(trials) - 1} more, each by itself now" if len(trials) > 1 else ""
        self._say("", "again", f" {title(trials[0])}{more}: {fault.what}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self._say("", "note", f" {text}")

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        """How many trials run now, and what each worker does."""
        self.running, self.workers, self.seconds_left = running, workers, seconds_left

    def summary(self) -> str:
        """Counts and rates of this session, in a line."""
        left = f", about {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        counts = f"{self.running} running, {self.again} retried, {self.failed} failed"
        return f"{counts}, {self.images_per_s:,.0f} images/s{left}"

    def _say(self, before: str, word: str, after: str) -> None:
        """Print a line with a coloured word; without rich, which takes ten times as long, where nothing is coloured."""
        if self._console.is_terminal:
            self._console.print(Text.assemble(before, (word, _STYLE[word]), after), soft_wrap=True)
        else:
            self._console.file.write(f"{before}{word}{after}\n")
            self._console.file.flush()

    def _view(self) -> Group:
        """What a terminal shows; asked for four times a second."""
        assert self._bar is not None
        detail = self.summary() if self.workers or self.done else "starting workers"
        self._bar.update(self._task, completed=self.done, detail=detail)
        shown = [Text(f"  {line}", overflow="ellipsis", no_wrap=True) for line in self.workers[:_WORKERS_SHOWN]]
        if len(self.workers) > _WORKERS_SHOWN:
            shown.append(Text(f"  … and {len(self.workers) - _WORKERS_SHOWN} more workers"))
        return Group(self._bar, *shown, *([self._tally.table()] if self._tally.done else []))

    def _line(self, trial: Trial, result: TrialResult) -> tuple[str, str, str]:
        if result.status == "ok":
            images = sum(row["images"] for row in result.shifts)
            error = 100.0 * (images - sum(row["correct"] for row in result.shifts)) / images
            text = f"error {error:.1f} %, {result.facts['trial_s']:.1f} s"
        else:
            text = result.reason.splitlines()[0] if result.reason else ""
        return f"[{self.done}/{self._total}] ", result.status, f" {title(trial)}: {text}"


def _bar(console: Console, noun: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(f"{noun} · {{task.fields[detail]}}"),
        console=console,
    )
