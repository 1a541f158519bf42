"""Progress of a run on stderr: a live view on a terminal, a plain line for each finished trial otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from tta_bench.console import own_stderr
from tta_bench.data.cache import CacheEntry
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.observer import title
from tta_bench.schedule.status import Tally, duration, row_of
from tta_bench.suite.plan import Trial

_STYLE = {"ok": "green", "failed": "red", "skipped": "yellow", "retry": "yellow", "note": "yellow"}
_MAX_WORKERS_SHOWN = 16


def own_console() -> Console:
    """A console on a duplicate of standard error, which stays usable while a trial's output is redirected to its log."""
    return Console(file=own_stderr())


class ImageProgress:
    """Progress of building the image cache, in images."""

    def __init__(self, console: Console, total: int):
        self._console, self._done, self._total = console, 0, total
        self._bar = _bar(console, "images") if console.is_terminal else None
        self._shift, self._start = "", time.monotonic()

    def __enter__(self) -> ImageProgress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("preparing images", total=self._total, detail="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()
        seconds = time.monotonic() - self._start
        rate = f"{self._done / seconds:,.0f} images a second"
        self._console.print(f"prepared {self._done:,} images in {seconds:.1f} s: {rate}", highlight=False)

    def __call__(self, entry: CacheEntry, images: int) -> None:
        """Add ``images`` finished images of ``entry``."""
        self._done += images
        if self._bar:
            self._bar.update(self._task, completed=self._done, detail=entry.shift.id)
        elif entry.shift.id != self._shift:
            self._console.print(f"preparing images: {entry.shift.id} ({self._done} of {self._total} done)")
        self._shift = entry.shift.id


class ReadingProgress:
    """Progress of reading image files for their digests; a line every ``EVERY_S`` seconds."""

    EVERY_S = 5.0

    def __init__(self, console: Console):
        self._console, self._shown = console, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` files have been read."""
        if time.monotonic() - self._shown > self.EVERY_S:
            self._console.print(f"reading image files: {done:,} of {total:,}", highlight=False)
            self._shown = time.monotonic()


class TrialProgress:
    """Progress of a run: trials done, running, retried and failed, images per second, time left, state of each worker.

    Args:
        console: for output.
        tally: of the whole run; finished trials are added to it.
        total: trials to run in this session.
    """

    def __init__(self, console: Console, tally: Tally, total: int):
        self._console, self._tally, self._total = console, tally, total
        self.done = self.running = self.retries = self.failed = self.images = 0
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
        """Images graded in this session, per second of wall time."""
        return self.images / max(time.perf_counter() - self._start, 1e-9)

    def finished(self, trial: Trial, result: TrialResult) -> None:
        """Count a finished trial; print a line unless a live view shows it."""
        self.done += 1
        self.failed += result.status == "failed"
        self.images += sum(row["images"] for row in result.shifts)
        row = row_of(trial.setting.protocol_text, (shift.family for shift in trial.stream.shifts))
        self._tally.add(trial.label, row, trial.model, result.status, result.shifts)
        if not self._bar or result.status == "failed":
            self._print(*self._line(trial, result))

    def retried(self, trial: Trial, fault: Fault) -> None:
        """Print that a trial will be run again."""
        self.retries += 1
        self._print("", "retry", f" {title(trial)}: {fault.message}")

    def note(self, text: str) -> None:
        """Print a message."""
        self._print("", "note", f" {text}")

    def tick(self, running: int, workers: Sequence[str], seconds_left: float | None) -> None:
        """Set what the next view shows."""
        self.running, self.workers, self.seconds_left = running, workers, seconds_left

    def summary(self) -> str:
        """Counts and rates of this session, in one line."""
        left = f", about {duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        counts = f"{self.running} running, {self.retries} retried, {self.failed} failed"
        return f"{counts}, {self.images_per_s:,.0f} images/s{left}"

    def _print(self, before: str, keyword: str, after: str) -> None:
        self._console.print(Text.assemble(before, (keyword, _STYLE[keyword]), after), soft_wrap=True)

    def _view(self) -> Group:
        """The live view; rich calls this four times a second."""
        assert self._bar is not None
        detail = self.summary() if self.workers or self.done else "starting workers"
        self._bar.update(self._task, completed=self.done, detail=detail)
        shown = [Text(f"  {line}", overflow="ellipsis", no_wrap=True) for line in self.workers[:_MAX_WORKERS_SHOWN]]
        if len(self.workers) > _MAX_WORKERS_SHOWN:
            shown.append(Text(f"  … and {len(self.workers) - _MAX_WORKERS_SHOWN} more workers"))
        return Group(self._bar, *shown, *([self._tally.table()] if self._tally.done else []))

    def _line(self, trial: Trial, result: TrialResult) -> tuple[str, str, str]:
        if result.status == "ok":
            images = sum(row["images"] for row in result.shifts)
            error = sum(row["images"] * row["error_pct"] for row in result.shifts) / images
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
