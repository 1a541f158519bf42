"""``tta-bench report --check``: whether a run reproduces published numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tta_bench.report.reference import ComparedRow, Comparison

_UNFINISHED = ("failed", "missing")  # a cell that should have a number; one that is skipped cannot have one


@dataclass(frozen=True)
class Check:
    """Published numbers to check against.

    Attributes:
        file: of published numbers.
        tolerance: largest difference that passes, points of error, beyond what the published number's rounding hides.
    """

    file: pathlib.Path
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """Attributes: passed: whether the run agrees; lines: to print."""

    passed: bool
    lines: list[str]


def judge(comparisons: Sequence[Comparison], check: Check) -> Verdict:
    """Compare the rows whose settings are the same; a check without such rows does not pass."""
    rows = [(comparison.paper, row) for comparison in comparisons for row in comparison.rows]
    counted = [(paper, row) for paper, row in rows if row.same and row.state != "skipped"]
    wrong = [(paper, row) for paper, row in counted if _differs(row, check.tolerance)]
    uncounted = [(paper, row) for paper, row in rows if not row.same and _differs(row, check.tolerance)]
    lines = [f"  {_described(paper, row)}" for paper, row in wrong]
    lines += [f"  {_described(paper, row)} (not counted: {row.reason})" for paper, row in uncounted]
    if not counted:
        lines = [*_why_nothing(comparisons), *lines]
    summary = (
        f"{len(wrong)} of {len(counted)} published numbers differ by more than {check.tolerance:g} points"
        if counted
        else "nothing was checked: no published number has the run's settings"
    )
    return Verdict(bool(counted) and not wrong, [f"check {check.file}: {summary}", *lines])


def _differs(row: ComparedRow, tolerance: float) -> bool:
    if row.state in _UNFINISHED:
        return True
    return row.gap is not None and not row.gap <= tolerance  # nothing is within a tolerance that is not a number


def _described(paper: str, row: ComparedRow) -> str:
    cell = f"{paper}: {row.method} ({row.label} on {row.model}), {row.corruption}"
    published = f"published {row.published:.{row.decimals}f}"
    if row.measured is None or row.difference is None:
        return f"{cell}: {published}, {row.state}"
    over = "" if row.state == "ok" else f", mean over fewer trials than planned ({row.state})"
    return f"{cell}: {published}, measured {row.measured:.2f}, difference {row.difference:+.2f}{over}"


def _why_nothing(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for comparison in comparisons:
        if comparison.unmatched:
            yield f"  {comparison.paper}: {comparison.unmatched}"
        for reason in dict.fromkeys(row.reason for row in comparison.rows if not row.same):
            count = sum(row.reason == reason for row in comparison.rows)
            yield f"  {comparison.paper}: {count} with other settings: {reason}"
