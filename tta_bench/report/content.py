"""The content of a report, as data; every format renders it."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tta_bench.report import across, citing, views, wording
from tta_bench.report.calibration import CalibrationTable, calibration_tables
from tta_bench.report.cautions import cautions
from tta_bench.report.cost import CostTable, costs
from tta_bench.report.error_tables import curves, tables
from tta_bench.report.evidence import Evidence
from tta_bench.report.mce import MceTable, mce_tables
from tta_bench.report.reference import Comparison, compare
from tta_bench.report.table import ErrorTable, warnings
from tta_bench.report.words import Passage


@dataclass(frozen=True)
class Method:
    """A row of the suite on one source model.

    Attributes:
        config: resolved hyperparameters.
        preset: of published hyperparameters; empty: the Config's defaults.
    """

    label: str
    model: str
    method: str
    variant: str
    preset: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Gap:
    """Cells of one method and source model without a result, for one reason.

    Attributes:
        status: "failed", "skipped" or "missing".
        shifts, seeds: of the cells.
        cells: how many.
        log: of the first, or empty.
    """

    label: str
    model: str
    status: str
    reason: str
    shifts: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: int
    log: str


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        baseline: label of the method that errors and step times are relative to.
        reference: file of published numbers to compare with, or None.
        shared_timings: also show times taken on a shared device, in separate tables.
        joined: all families of shifts in one table, with one mean.
    """

    baseline: str = "source"
    reference: pathlib.Path | None = None
    shared_timings: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Content:
    """A report.

    Attributes:
        title: names of the suites.
        evidence: the tables of the runs.
        baseline: label of the method that errors and step times are relative to; it need not have rows.
        tables: of errors, one for each setting, family of shifts and severity, by severity.
        curves: errors by number of images adapted on.
        views: errors along the stream (by place, visit, adaptation, of probes), and by what a suite varies.
        overviews: methods × protocols, where there are several.
        calibration: one for each setting in which it was measured.
        costs: by hardware.
        comparisons: with published numbers, one for each paper; empty unless asked for.
        mce: mean corruption errors, where the run has ImageNet-C's whole grid.
        methods: with hyperparameters.
        gaps: cells without a result.
        notes: sentences for the reader; those on mixed runs come first.
    """

    title: str
    evidence: Evidence
    baseline: str
    tables: list[ErrorTable]
    curves: list[ErrorTable]
    views: list[ErrorTable]
    overviews: list[ErrorTable]
    calibration: list[CalibrationTable]
    costs: list[CostTable]
    comparisons: list[Comparison]
    mce: list[MceTable]
    methods: list[Method]
    gaps: list[Gap]
    notes: list[str]

    @property
    def labels(self) -> list[str]:
        """All methods, in the order of the suites; the position here decides a method's colour."""
        return self.evidence.labels

    @functools.cached_property
    def cited(self) -> citing.Cited:
        """The BibTeX entries of what the tables hold."""
        return citing.cited(self.evidence)

    @functools.cached_property
    def setting(self) -> Passage:
        """The setting in words, for a paper."""
        return wording.setting(self.evidence, self.cited)

    @property
    def partial(self) -> bool:
        """Whether only a part of the images was used."""
        return any(table.partial for table in self.tables)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the report is no result, for every table and figure."""
        return warnings(self.partial, self.evidence.mixed)

    @property
    def warning(self) -> str:
        """All warnings in a line."""
        return "; ".join(self.warnings)


def make(evidence: Evidence, options: ReportOptions) -> Content:
    """The report on ``evidence``.

    Raises:
        UsageError: the file of published numbers, or a trial's arrays, cannot be read.
    """
    error_tables = tables(evidence, joined=options.joined)
    mixed = [f"The runs differ (--mix): {text}." for text in evidence.mixed]
    return Content(
        title=evidence.title,
        evidence=evidence,
        baseline=options.baseline,
        tables=error_tables,
        curves=curves(evidence, joined=options.joined),
        views=[
            *views.views(evidence, options.baseline, joined=options.joined),
            *across.by_axis(evidence.title, error_tables, evidence.mixed),
        ],
        overviews=across.overview(evidence.title, error_tables, evidence.mixed),
        calibration=calibration_tables(evidence, joined=options.joined),
        costs=costs(evidence, options.baseline, shared=options.shared_timings),
        comparisons=compare(evidence, error_tables, options.reference) if options.reference else [],
        mce=mce_tables(error_tables),
        methods=list(_methods(evidence)),
        gaps=list(_gaps(evidence)),
        notes=[*mixed, *evidence.notes, *cautions(evidence, error_tables, options.baseline)],
    )


def _methods(evidence: Evidence) -> Iterator[Method]:
    seen = set()
    for _, t in evidence.trials():
        method = (t["label"], t["model"], json.dumps(t["config"], sort_keys=True))
        if method not in seen:
            seen.add(method)
            yield Method(t["label"], t["model"], t["method"], t["variant"], t["preset"], t["config"])


def _gaps(evidence: Evidence) -> Iterator[Gap]:
    frame = evidence.shifts[evidence.shifts["status"] != "ok"]
    log_of = evidence.segments.drop_duplicates("key").set_index("key")["log"]
    for (label, model, status, reason), part in frame.groupby(["label", "model", "status", "reason"], sort=False):
        logs = part["key"].map(log_of).dropna()
        shifts, seeds = tuple(dict.fromkeys(part["shift"])), tuple(sorted({int(s) for s in part["seed"]}))
        log = str(logs.iloc[0]) if len(logs) else ""
        yield Gap(str(label), str(model), str(status), str(reason), shifts, seeds, len(part), log)
