"""What a run prints, on a terminal and elsewhere."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable

import pytest
from rich.console import Console

from tta_bench import suite
from tta_bench.run.faults import Fault
from tta_bench.run.runner import TrialResult
from tta_bench.schedule.progress import TrialProgress
from tta_bench.schedule.status import Tally
from tta_bench.suite import plan
from tta_bench.suite.plan import Trial

SuiteFile = Callable[..., pathlib.Path]


@pytest.fixture
def trials(suite_file: SuiteFile) -> tuple[Trial, ...]:
    row = "[{name: tent, grid: {lr: [0.1, 0.01]}}]"
    return plan.make(suite.load(str(suite_file(("[source, tent]", row), ("[clean, contrast]", "[contrast]"))))).trials


def shown(trials: tuple[Trial, ...], *, terminal: bool) -> str:
    """All that a session of every kind of event prints."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system="standard" if terminal else None)
    tally = Tally((t.label, "reset", t.model, ["contrast"]) for t in trials)
    good = [{"corruption": "contrast", "images": 10, "error_pct": 50.0}]
    with TrialProgress(console, tally, len(trials)) as progress:
        progress.tick(1, ["worker 0: …"], 12.0)
        assert "1 running" in progress.summary()
        progress.retried(trials[0], Fault("infrastructure", "worker 0 died [9]"))
        progress.note("all is [well]")
        progress.finished(trials[0], TrialResult(trials[0].key, "ok", facts={"trial_s": 0.1}, shifts=good))
        progress.finished(trials[1], TrialResult(trials[1].key, "failed", "for [a] reason\nmore"))
        assert "1 running, 1 retried, 1 failed" in progress.summary()
        progress.tick(0, [], None)
    return stream.getvalue()


def test_without_a_terminal_each_trial_is_a_plain_line(trials: tuple[Trial, ...]) -> None:
    one, two = (f"{t.label} · resnet_bn · contrast-5 · seed 0" for t in trials)
    assert "[" in one
    assert shown(trials, terminal=False).splitlines() == [
        f"retry {one}: worker 0 died [9]",
        "note all is [well]",
        f"[1/2] ok {one}: error 50.0 %, 0.1 s",
        f"[2/2] failed {two}: for [a] reason",
    ]


def test_on_a_terminal_there_is_a_bar_and_lines_for_what_went_wrong(trials: tuple[Trial, ...]) -> None:
    text = shown(trials, terminal=True)
    assert "\x1b[33mretry\x1b[0m" in text
    assert "\x1b[31mfailed\x1b[0m" in text
    assert "for [a] reason" in text
    assert "[1/2]" not in text, "trials with status ok only advance the bar"
    assert "2/2\x1b[0m trials" in text
    assert "mean error, %" in text


def test_the_mean_excludes_clean_images_and_shows_how_many_trials_it_covers() -> None:
    tally = Tally(
        [("tent", "reset", "net", ["clean"]), ("tent", "reset", "net", ["fog"]), ("tent", "reset", "net", ["snow"])]
    )
    tally.add("tent", "reset", "net", "ok", [{"corruption": "clean", "images": 10, "error_pct": 0.0}])
    tally.add("tent", "reset", "net", "ok", [{"corruption": "fog", "images": 10, "error_pct": 40.0}])
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tally.table())
    assert "40.0 (1 of 2)" in console.export_text()
    assert tally.counts() == "2 of 3 trials: 2 ok"
    tally.add("tent", "reset", "net", "failed", [])
    assert tally.counts() == "3 of 3 trials: 2 ok, 1 failed"
