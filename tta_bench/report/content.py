"""All that a report says, as data: made once, then written as page, LaTeX, Markdown, tables and figures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tta_bench.report.cost import CostTable, costs
from tta_bench.report.errors import curves, tables
from tta_bench.report.evidence import Evidence
from tta_bench.report.mce import MceTable, mce_tables
from tta_bench.report.reference import Comparison, compare
from tta_bench.report.table import ErrorTable, warnings


@dataclass(frozen=True)
class Method:
    """A row of the suite with one source model.

    Attributes:
        config: resolved hyperparameters.
        preset: published hyperparameters that it started from; empty: the Config's defaults.
    """

    label: str
    model: str
    method: str
    variant: str
    preset: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Gap:
    """Cells of one method and source model that have no result, for one reason.

    Attributes:
        status: "failed", "skipped" or "missing".
        shifts, seeds: of the cells.
        cells: how many.
        log: a log that says more, or empty.
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
class Options:
    """What a report is asked for.

    Attributes:
        baseline: label that errors and step times are shown relative to.
        reference: file of published numbers to compare with, or None.
        shared_timings: show times taken on a shared device, too, in tables of their own.
    """

    baseline: str = "source"
    reference: pathlib.Path | None = None
    shared_timings: bool = False


@dataclass(frozen=True)
class Content:
    """A report.

    Attributes:
        title: names of the suites.
        evidence: the rows it is made from.
        baseline: label that errors and step times are shown relative to; it may have no rows.
        tables: of errors, one for each data set, protocol, batch size and severity; a data set's last is the most severe.
        curves: of errors by number of images adapted on.
        costs: by hardware.
        comparisons: with published numbers, one for each paper; empty where none were asked for.
        mce: mean corruption errors, where the run has ImageNet-C's whole grid.
        methods: with hyperparameters.
        gaps: cells without a result.
        notes: what a reader must know, in sentences; how runs differ that were put together comes first.
    """

    title: str
    evidence: Evidence
    baseline: str
    tables: list[ErrorTable]
    curves: list[ErrorTable]
    costs: list[CostTable]
    comparisons: list[Comparison]
    mce: list[MceTable]
    methods: list[Method]
    gaps: list[Gap]
    notes: list[str]

    @property
    def labels(self) -> list[str]:
        """All methods, in the order of the suites: a method's colour goes by its place here."""
        return self.evidence.labels

    @property
    def partial(self) -> bool:
        """Whether some rows used only a part of the images."""
        return any(table.partial for table in self.tables)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the report is no result, for every table and figure."""
        return warnings(self.partial, self.evidence.mixed)

    @property
    def warning(self) -> str:
        """All warnings in a line."""
        return "; ".join(self.warnings)


def make(evidence: Evidence, options: Options) -> Content:
    """Everything that a report says of ``evidence``.

    Raises:
        UsageError: the file of published numbers, or a trial's arrays, cannot be read.
    """
    made = tables(evidence)
    mixed = [f"These runs differ and were put together on request: {text}." for text in evidence.mixed]
    return Content(
        title=evidence.title,
        evidence=evidence,
        baseline=options.baseline,
        tables=made,
        curves=curves(evidence),
        costs=costs(evidence, options.baseline, shared=options.shared_timings),
        comparisons=compare(evidence, made, options.reference) if options.reference else [],
        mce=mce_tables(evidence, made),
        methods=list(_methods(evidence)),
        gaps=list(_gaps(evidence)),
        notes=[*mixed, *evidence.notes, *_without(evidence, options.baseline), *_cautions(made)],
    )


def _methods(evidence: Evidence) -> Iterator[Method]:
    seen = set()
    for _, t in evidence.trials():
        place = (t["label"], t["model"], json.dumps(t["config"], sort_keys=True))
        if place not in seen:
            seen.add(place)
            yield Method(t["label"], t["model"], t["method"], t["variant"], t["preset"], t["config"])


def _gaps(evidence: Evidence) -> Iterator[Gap]:
    frame = evidence.shifts[evidence.shifts["status"] != "ok"]
    known = evidence.segments.drop_duplicates("key").set_index("key")["log"]
    for (label, model, status, reason), part in frame.groupby(["label", "model", "status", "reason"], sort=False):
        logs = part["key"].map(known).dropna()
        shifts, seeds = tuple(dict.fromkeys(part["shift"])), tuple(sorted({int(s) for s in part["seed"]}))
        log = str(logs.iloc[0]) if len(logs) else ""
        yield Gap(str(label), str(model), str(status), str(reason), shifts, seeds, len(part), log)


def _without(evidence: Evidence, baseline: str) -> Iterator[str]:
    if baseline not in evidence.labels:
        yield f"No row has the label {baseline}: what would be relative to it is left out."


def _cautions(made: list[ErrorTable]) -> Iterator[str]:
    if any(table.seeds == 1 for table in made):
        yield "One seed: how much another order of the images would change an error is not known, and tests leave it out."
    for table in made:
        if table.untested:
            yield f"{table.setting.text}: nothing was tested, for {table.untested}."
