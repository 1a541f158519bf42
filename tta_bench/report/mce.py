"""Mean corruption error (Hendrycks and Dietterich 2019, section 4.2): errors over AlexNet's, on ImageNet-C's grid."""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tta_bench.data.corrupt.corruptions import BENCHMARK
from tta_bench.report.table import CORRUPTIONS, ErrorTable, warnings
from tta_bench.setting import Setting

_SEVERITIES = (1, 2, 3, 4, 5)
_DATASETS = ("ImageNet-C", "ImageNet-C (generated)", "ImageNet")  # the last: stored corruptions beside other shifts


@dataclass(frozen=True)
class MceRow:
    """Attributes: mce: mean of ``ce``, per cent; ce: corruption error by corruption, per cent."""

    label: str
    model: str
    mce: float
    ce: dict[str, float]


@dataclass(frozen=True)
class MceTable:
    """Mean corruption errors.

    Attributes:
        caption: conditions in a sentence.
        rows: of methods with all 15 × 5 cells.
        left_out: methods without all of them, and why.
        warnings: why it is no result.
    """

    caption: str
    rows: list[MceRow]
    left_out: list[str]
    warnings: tuple[str, ...] = ()


def mce_tables(tables: Sequence[ErrorTable]) -> list[MceTable]:
    """One for each protocol and batch size in which some method has all 15 corruptions × 5 severities of ImageNet-C."""
    alexnet = alexnet_errors()
    mce = (_table(severities, alexnet) for severities in _grids(tables))
    return [table for table in mce if table.rows]


def alexnet_errors() -> dict[str, float]:
    """AlexNet's error on ImageNet-C by corruption, per cent, its mean over the five severities."""
    text = importlib.resources.files("tta_bench.reference").joinpath("alexnet_errors.csv").read_text(encoding="utf-8")
    return {row["corruption"]: 100.0 * float(row["alexnet_error"]) for row in csv.DictReader(text.splitlines())}


def _grids(tables: Sequence[ErrorTable]) -> Iterator[dict[int, ErrorTable]]:
    """Tables of ImageNet-C that differ in severity alone, by severity, where there are all five."""
    by_setting: dict[tuple[Setting, int], dict[int, ErrorTable]] = {}
    for table in tables:
        s = table.setting
        if s.dataset in _DATASETS and s.family == CORRUPTIONS:
            by_setting.setdefault((s.base, s.adapt_images), {})[s.severity] = table
    yield from (grid for grid in by_setting.values() if set(_SEVERITIES) <= set(grid))


def _table(grid: dict[int, ErrorTable], alexnet: dict[str, float]) -> MceTable:
    rows, left_out, cells = [], [], len(BENCHMARK) * len(_SEVERITIES)
    for label, model in dict.fromkeys((row.label, row.model) for table in grid.values() for row in table.rows):
        errors, without = _errors(grid, label, model)
        if without:
            left_out.append(f"{label} on {model} ({without} of {cells} cells without a result)")
            continue
        # AlexNet's sum over severities is five times its mean
        ce = {name: 100.0 * sum(errors[name]) / (len(_SEVERITIES) * alexnet[name]) for name in BENCHMARK}
        rows.append(MceRow(label, model, sum(ce.values()) / len(ce), ce))
    first = grid[1]
    mixed = tuple(dict.fromkeys(text for table in grid.values() for text in table.mixed))
    return MceTable(_caption(first), rows, left_out, warnings(any(t.partial for t in grid.values()), mixed))


def _errors(grid: dict[int, ErrorTable], label: str, model: str) -> tuple[dict[str, list[float]], int]:
    """(errors by corruption, per cent, one for each severity; number of cells without one)."""
    errors: dict[str, list[float]] = {name: [] for name in BENCHMARK}
    without = 0
    for severity in _SEVERITIES:
        row = next((r for r in grid[severity].rows if (r.label, r.model) == (label, model)), None)
        for name in BENCHMARK:
            cell = row.cells.get(name) if row else None
            if cell is None or cell.mean is None or cell.state != "ok":
                without += 1
            else:
                errors[name].append(cell.mean)
    return errors, without


def _caption(table: ErrorTable) -> str:
    s = table.setting
    seeds = "one seed" if table.seeds == 1 else f"mean over {table.seeds} seeds"
    generated = (
        " Corruptions were generated: they are not ImageNet-C's own images, and published mCE is of those."
        if "generated" in s.dataset
        else ""
    )
    return (
        f"Corruption error: sum of the errors at severities 1 to 5 over AlexNet's, in per cent, and its mean over 15 "
        f"corruptions (mCE), on {s.dataset}, {s.conditions}, "
        f"{seeds}.{generated}"
    )
