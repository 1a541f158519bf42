"""Calibration: expected calibration error and negative log-likelihood of each method, by severity.

A shift's numbers are over all its graded images, in all segments and visits. Its ECE is pooled, bin by bin: it is no mean
of the ECEs of parts. From there on, means over corruptions and seeds are made as in the error tables.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tta_bench.errors import Problem, UsageError
from tta_bench.report.error_tables import (
    caption,
    corruptions_of,
    families,
    names_of,
    rows_of,
    sections,
    severities,
)
from tta_bench.report.evidence import ALL_IMAGES, Evidence, adapting_most
from tta_bench.report.table import CORRUPTIONS, Cell, TableSetting, identifier, warnings
from tta_bench.run import metrics
from tta_bench.store import records

Place = tuple[int, str, int]  # of a row in its trial: position of the segment, shift, visit


@dataclass(frozen=True)
class CalibrationRow:
    """A method on one source model.

    Attributes:
        ece, nll: by severity, the means over corruptions of the expected calibration error (per cent) and of the negative
            log-likelihood (nats).
        reason: why they are not ok, or empty.
    """

    label: str
    model: str
    ece: dict[int, Cell]
    nll: dict[int, Cell]
    reason: str


@dataclass(frozen=True)
class CalibrationTable:
    """Methods in one setting.

    Attributes:
        name: unique in the report.
        title: a few words.
        caption: all conditions in a sentence.
        setting: that all rows share; its severity is 0 where there are several.
        severities: 0 where there is none.
        rows: grouped by source model.
        warnings: why it is no result.
    """

    name: str
    title: str
    caption: str
    setting: TableSetting
    severities: list[int]
    rows: list[CalibrationRow]
    warnings: tuple[str, ...] = ()


def calibration_tables(evidence: Evidence, *, joined: bool = False) -> list[CalibrationTable]:
    """A table for each setting and family of shifts in which calibration was measured; earlier versions' runs lack it.

    Args:
        evidence: the rows.
        joined: all families in one table, with one mean.

    Raises:
        UsageError: a trial's record that pooling needs is damaged.
    """
    names = names_of([base for base, _ in sections(evidence)])
    tables = []
    for base, frame in sections(evidence):
        most, frame = adapting_most(frame)
        for family, part in families(frame, joined):
            if part["nll"].notna().any():
                levels = severities(part)
                setting = TableSetting(base, levels[0] if len(levels) == 1 else 0, most, family=family)
                tables.append(_table(evidence, part, setting, levels, *names[base]))
    return tables


def _table(
    evidence: Evidence, frame: pd.DataFrame, setting: TableSetting, levels: list[int], name: str, protocol: str
) -> CalibrationTable:
    other = setting.family != CORRUPTIONS
    return CalibrationTable(
        name="-".join(filter(None, [name, identifier(setting.family or "joined") if other else "", "calibration"])),
        title=", ".join(filter(None, [f"{evidence.title}: calibration", setting.noun if other else "", protocol])),
        caption=caption(frame, setting, what="Expected calibration error in per cent, negative log-likelihood"),
        setting=setting,
        severities=levels,
        rows=_rows(evidence, frame, levels),
        warnings=warnings(bool(frame["partial"].any()), evidence.mixed),
    )


def _rows(evidence: Evidence, frame: pd.DataFrame, levels: list[int]) -> list[CalibrationRow]:
    cells: dict[tuple[str, str], dict[int, tuple[Cell, Cell]]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for severity in levels:
        part = frame[frame["of_severity"].isin([severity, 0])]
        corruptions = corruptions_of(part)
        ece = rows_of(part.assign(error_pct=pooled_ece(evidence, part)), "corruption", corruptions)
        nll = rows_of(part.assign(error_pct=part["nll"]), "corruption", corruptions)
        for one, other in zip(ece, nll, strict=True):
            cells.setdefault((one.model, one.label), {})[severity] = one.mean, other.mean
            reasons.setdefault((one.model, one.label), []).append(one.reason)
    return [_row(*name, reasons[name], own, levels) for name, own in cells.items()]


def _row(
    model: str, label: str, reasons: list[str], cells: dict[int, tuple[Cell, Cell]], levels: list[int]
) -> CalibrationRow:
    missing = Cell(None, None, "missing")  # another run has the severity
    ece, nll = ({level: cells.get(level, (missing, missing))[i] for level in levels} for i in (0, 1))
    return CalibrationRow(label, model, ece, nll, "; ".join(dict.fromkeys(filter(None, reasons))))


def pooled_ece(evidence: Evidence, frame: pd.DataFrame) -> pd.Series:
    """For each row the ECE over the images of all rows of its method, seed and shift together.

    Args:
        evidence: its records have what is pooled.
        frame: rows of table ``shifts`` of one setting and severity.
    """
    ece = frame["ece_pct"].copy()
    gaps_of = functools.cache(lambda run, key: _gaps(evidence, run, key))
    measured = frame[frame["nll"].notna()]
    for (*_, shift), rows in measured.groupby(["model", "label", "seed", "shift"], sort=False):
        if len(rows) > 1 or shift == ALL_IMAGES:
            places = rows[["run", "key", "position", "shift", "visit"]].itertuples(index=False)
            gaps = sum((gaps_of(run, key)[tuple(place)] for run, key, *place in places), np.zeros(metrics.BINS))
            ece[rows.index] = metrics.ece_pct(gaps, int(rows["images"].sum()))
    return ece


def _gaps(evidence: Evidence, run: int, key: str) -> dict[Place, np.ndarray]:
    """The gaps by bin of a trial's rows, and of each segment as a whole, as which compounds are joined."""
    folder = evidence.runs[run].path
    stored = records.read_trial(folder, key)
    if stored.record is None:
        hint = "run the suite again: it runs this trial anew"
        raise UsageError(Problem(stored.damage or "no such trial", f"{folder}/trials/{key}.json", hint=hint))
    gaps: dict[Place, np.ndarray] = {}
    for row in stored.record["shifts"]:
        own, whole = np.array(row["calibration_gaps"]), (row["position"], ALL_IMAGES, 0)
        gaps[row["position"], row["shift"], row["visit"]] = own
        gaps[whole] = gaps.get(whole, np.zeros(metrics.BINS)) + own
    return gaps
