"""Progress of a run on stderr: a live bar on a terminal, a plain line for each finished trial otherwise."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tta_bench.data.cache import Entry
from tta_bench.plan import Trial
from tta_bench.runner import TrialResult

_STYLE = {"ok": "green", "failed": "red", "skipped": "yellow"}


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

    def __call__(self, entry: Entry, images: int) -> None:
        """So many more images of ``entry`` are done."""
        self._done += images
        if self._bar:
            self._bar.update(self._task, completed=self._done, detail=entry.shift.id)
        elif entry.shift.id != self._shift:
            self._console.print(f"preparing images: {entry.shift.id} ({self._done} of {self._total} done)")
        self._shift = entry.shift.id


class TrialProgress:
    """Progress of a run: trials done, running and failed, images per second, time left."""

    def __init__(self, console: Console, total: int):
        self._console, self._total = console, total
        self._done = self._running = self._failed = self._images = 0
        self._start = time.perf_counter()
        self._bar = _bar(console, "trials") if console.is_terminal else None

    def __enter__(self) -> TrialProgress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("running", total=self._total, detail="starting workers")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def started(self, trial: Trial) -> None:
        """A trial was given to a worker."""
        self._running += 1
        self._refresh()

    def finished(self, trial: Trial, result: TrialResult) -> None:
        """A trial ended."""
        self._done, self._running = self._done + 1, max(0, self._running - 1)
        self._failed += result.status == "failed"
        self._images += sum(row["images"] for row in result.segments)
        if not self._bar or result.status == "failed":
            self._console.print(self._line(trial, result), highlight=False, soft_wrap=True)
        self._refresh()

    def _refresh(self) -> None:
        if self._bar:
            rate = self._images / max(time.perf_counter() - self._start, 1e-9)
            detail = f"{self._running} running, {self._failed} failed, {rate:,.0f} images/s"
            self._bar.update(self._task, completed=self._done, detail=detail)

    def _line(self, trial: Trial, result: TrialResult) -> str:
        name = f"{trial.label} · {trial.model} · {_shifts(trial)} · seed {trial.seed}"
        style = _STYLE[result.status]
        if result.status == "ok":
            images = sum(row["images"] for row in result.segments)
            error = 100.0 * (images - sum(row["correct"] for row in result.segments)) / images
            text = f"error {error:.1f} %, {result.facts['trial_s']:.1f} s"
        else:
            text = result.reason.splitlines()[0] if result.reason else ""
        return f"[{self._done}/{self._total}] [{style}]{result.status}[/{style}] {_plain(name)}: {_plain(text)}"


def _plain(text: str) -> str:
    """Text that rich prints as it is, square brackets included."""
    return text.replace("[", r"\[")


def _shifts(trial: Trial) -> str:
    shifts = trial.stream.shifts
    return shifts[0].id if len(shifts) == 1 else f"{len(shifts)} shifts, {trial.stream.protocol}"


def _bar(console: Console, noun: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{noun} · {{task.fields[detail]}} ·"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
