"""Errors so far: without clean images, as in the report; incomplete means say so."""

from __future__ import annotations

from rich.console import Console

from tta_bench.schedule.status import Tally


def test_the_mean_excludes_clean_images_and_shows_how_many_trials_it_covers() -> None:
    tally = Tally([("tent", "net", ["clean"]), ("tent", "net", ["fog"]), ("tent", "net", ["snow"])])
    tally.add("tent", "net", "ok", [{"corruption": "clean", "images": 10, "correct": 10}])
    tally.add("tent", "net", "ok", [{"corruption": "fog", "images": 10, "correct": 6}])
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tally.table())
    assert "40.0 (1 of 2)" in console.export_text()
    assert tally.counts() == "2 of 3 trials: 2 ok"
    tally.add("tent", "net", "failed", [])
    assert tally.counts() == "3 of 3 trials: 2 ok, 1 failed"
