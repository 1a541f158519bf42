"""Measured beside published numbers of the same data set, source model, protocol, severity and method, by paper."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tta_bench.report import published
from tta_bench.report.evidence import CLEAN, Evidence
from tta_bench.report.matching import Chosen, Ours, cell_of, column_of, differences, nearest
from tta_bench.report.published import Published
from tta_bench.report.table import ErrorTable


@dataclass(frozen=True)
class ComparedRow:
    """One published number.

    Attributes:
        label, model: of the run.
        method, published_model: as the paper names them.
        corruption: or "mean".
        published, measured: error, per cent; ``measured`` is None where the run has no result there.
        difference: measured minus published, points.
        reason: why the two may differ (other weights, preprocessing, number of images, generated corruptions, …), or why
            there is no measured number; empty where the settings are the same as far as is known.
        table: the name of the error table of ``measured``.
        state: of the run's cell: "ok", "failed", "skipped", "missing".
        same: whether the settings are the same as far as is known.
        decimals: of the published number.
        note: a remark that is no reason to differ.
    """

    label: str
    model: str
    method: str
    published_model: str
    corruption: str
    published: float
    measured: float | None
    difference: float | None
    reason: str
    table: str = ""
    state: str = "ok"
    same: bool = True
    decimals: int = 1
    note: str = ""

    @property
    def gap(self) -> float | None:
        """Points between ``measured`` and the nearest number that rounds to ``published``."""
        if self.difference is None:
            return None
        return max(0.0, round(abs(self.difference) - 0.5 * 10.0**-self.decimals, 9))  # 9: no rounding errors


@dataclass(frozen=True)
class Comparison:
    """A paper's numbers.

    Attributes:
        paper, arxiv, source: as in the file.
        rows: one for each published number with a counterpart in the run.
        unmatched: how many of the paper's numbers have none, and why, a sentence; empty where all have one.
    """

    paper: str
    arxiv: str
    source: str
    rows: list[ComparedRow]
    unmatched: str


def compare(evidence: Evidence, tables: Sequence[ErrorTable], file: pathlib.Path) -> list[Comparison]:
    """Every paper of the file of published numbers.

    Raises:
        UsageError: the file cannot be read or lacks a column.
    """
    numbers = published.load(file)
    ours = list(_ours(evidence, tables))
    return [
        _comparison([n for n in numbers if n.paper == paper], ours) for paper in dict.fromkeys(n.paper for n in numbers)
    ]


def _ours(evidence: Evidence, tables: Sequence[ErrorTable]) -> Iterator[Ours]:
    sessions = dict(zip((run.path for run in evidence.runs), evidence.sessions(), strict=True))
    known: dict[tuple[str, str, str], tuple[str, Mapping[str, Any], Chosen, dict[str, int]]] = {}
    for run, t in evidence.trials():
        row_key = (t["label"], t["model"], t["dataset"])
        if row_key not in known:
            chosen = hyperparameters_set(sessions[run.path], t["label"], t["model"])
            known[row_key] = (t["method"], run.plan["models"].get(t["model"], {}), chosen, {})
        for name, *_ in t["shifts"]:
            known[row_key][-1].setdefault(name, int(t["images"]))
    for table in tables:
        for row in table.rows:
            yield Ours(table, row, *known[row.label, row.model, table.setting.dataset])


def hyperparameters_set(sessions: Sequence[Mapping[str, Any]], label: str, model: str) -> Chosen:
    """Hyperparameters of a row that the suite sets instead of the published ones."""
    for entry in sessions[-1].get("suite", {}).get("methods", []) if sessions else []:
        own = entry.get("label") or entry["name"]
        if label == own or label.startswith(f"{own}["):
            return Chosen.of(entry, model)
    return Chosen()


# -- counterparts -------------------------------------------------------------------------------------------------------


def _comparison(numbers: Sequence[Published], ours: Sequence[Ours]) -> Comparison:
    rows: list[ComparedRow] = []
    without: list[tuple[str, str]] = []
    for number in numbers:
        matches = [_matched(number, o) for o in ours] if number.error is not None and number.comparable else []
        compared = [
            *_once((o, match) for o, match in zip(ours, matches, strict=False) if isinstance(match, ComparedRow))
        ]
        rows += compared
        if not compared:
            without.append(nearest(number, [match for match in matches if not isinstance(match, ComparedRow)]))
    sources = "; ".join(dict.fromkeys(n.source for n in numbers))
    return Comparison(numbers[0].paper, numbers[0].arxiv, sources, rows, _unmatched(without, len(numbers)))


def _once(found: Iterable[tuple[Ours, ComparedRow]]) -> Iterator[ComparedRow]:
    """The comparisons, those of clean images once: they are part of several tables of one setting."""
    seen = set()
    for ours, match in found:
        place = (ours.table.setting.base, match.label, match.model)
        if match.corruption != CLEAN or place not in seen:
            yield match
        if match.corruption == CLEAN:
            seen.add(place)


def _matched(number: Published, ours: Ours) -> ComparedRow | int:
    """The comparison, or the position of the first of ``CONDITIONS`` that does not hold."""
    reasons = differences(number, ours)
    if isinstance(reasons, int):
        return reasons
    cell = cell_of(number, ours)
    assert cell is not None
    assert number.error is not None
    state = {"ok": []}.get(cell.state, ["mean over fewer trials" if cell.mean is not None else cell.state])
    return ComparedRow(
        label=ours.row.label,
        model=ours.row.model,
        method=number.method,
        published_model=number.model,
        corruption=column_of(number, ours) or number.corruption,
        published=number.error,
        measured=cell.mean,
        difference=None if cell.mean is None else cell.mean - number.error,
        reason="; ".join(reasons + state),
        table=ours.table.name,
        state=cell.state,
        same=not reasons,
        decimals=number.decimals,
        note=f"measured: mean of {cell.seeds} seeds" if cell.seeds > 1 else "",
    )


def _unmatched(without: Sequence[tuple[str, str]], numbers: int) -> str:
    if not without:
        return ""
    parts = []
    for reason in dict.fromkeys(reason for reason, _ in without):
        values = [value for other, value in without if other == reason]
        named = ", ".join(dict.fromkeys(value for value in values if value))
        parts.append(f"{len(values)} {reason}{f' ({named})' if named else ''}")
    counted = f"{len(without)} of {numbers}" if len(without) < numbers else f"All {numbers}"
    return f"{counted} published numbers have no counterpart here: {'; '.join(parts)}."
