"""Tables across settings: methods × protocols with ranks, and methods × values of what a suite varies.

They collect the means of the error tables at the highest severity of each setting, and are not tested for significance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from tta_bench.report.error_tables import told_apart
from tta_bench.report.table import Cell, ErrorTable, MethodErrors, TableSetting, identifier
from tta_bench.setting import Setting, words

OVERVIEW, BY = "overview", "by "


def overview(title: str, tables: Sequence[ErrorTable], mixed: tuple[str, ...]) -> list[ErrorTable]:
    """Methods × protocols for each data set and family of shifts: mean error over the family, average rank."""
    groups: dict[tuple[str, str], list[ErrorTable]] = {}
    for table in _most_severe(tables):
        groups.setdefault((table.setting.dataset, table.setting.family), []).append(table)
    return [_overview(title, name, own, mixed) for (name, _), own in groups.items() if len(own) > 1]


def by_axis(title: str, tables: Sequence[ErrorTable], mixed: tuple[str, ...]) -> list[ErrorTable]:
    """Methods × values, for each axis that a suite varies and the settings that differ in nothing else."""
    groups: dict[tuple[str, Setting, str], dict[str, ErrorTable]] = {}
    for table in _most_severe(tables):
        for axis, value in table.setting.base.varied:
            group = groups.setdefault((axis, table.setting.base.without(axis), table.setting.family), {})
            group[words(axis, json.loads(value))] = table
    return [_by_axis(title, axis, group, mixed) for (axis, *_), group in groups.items() if len(group) > 1]


def _most_severe(tables: Sequence[ErrorTable]) -> list[ErrorTable]:
    """The last table of each setting and family: they are ordered by severity."""
    return list({(table.setting.base, table.setting.family): table for table in tables}.values())


def _overview(title: str, dataset: str, tables: Sequence[ErrorTable], mixed: tuple[str, ...]) -> ErrorTable:
    names = _protocol_names(tables)
    table = _joined({names[table.setting.base]: table for table in tables}, mixed)
    ranks = _ranks(table)
    protocols = {each.setting.base.protocol_text for each in tables}
    what = "protocol" if len(protocols) == len(tables) else "setting"
    text = (
        f"Mean error over the {table.setting.noun} in per cent on {dataset}, by {what}{_severities(tables)}; rank: mean "
        f"over {what}s of a method's rank among the methods of its source model that have a result under every {what}."
    )
    rows = []
    for row in table.rows:
        rank = ranks.get((row.model, row.label))
        cell = Cell(rank, None, "ok") if rank is not None else Cell(None, None, "none")
        rows.append(replace(row, cells={**row.cells, "rank": cell}, mean=cell))
    return replace(
        table,
        name="-".join([OVERVIEW, identifier(dataset), *_family_part(table)]),
        title=f"{title}: error in per cent by {what}" + "".join(f", {table.setting.noun}" for _ in _family_part(table)),
        caption=text,
        corruptions=[*table.corruptions, "rank"],
        rows=rows,
        untested=f"{what}s are not tested against each other",
        view=OVERVIEW,
    )


def _by_axis(title: str, axis: str, group: dict[str, ErrorTable], mixed: tuple[str, ...]) -> ErrorTable:
    first = next(iter(group.values())).setting
    shared = TableSetting(first.base.without(axis), first.severity, family=first.family)
    fixed = ", ".join(part for part in (shared.base.protocol_text, _batch_size(shared.base)) if part)
    return replace(
        _joined(group, mixed),
        name=f"by-{identifier(axis)}-{identifier(shared.text)}",  # which has the family
        title=f"{title}: error in per cent by {axis}, {fixed}",
        setting=shared,
        caption=f"Mean error over the {shared.noun} in per cent on {shared.dataset} by {axis}, protocol {fixed}"
        f"{_severities(group.values())}.",
        untested="values are not tested against each other",
        view=BY + axis,
    )


def _batch_size(base: Setting) -> str:
    return f"batch size {base.batch_size}" if base.batch_size else ""


def _family_part(table: ErrorTable) -> list[str]:
    """What tells a family's name apart from that of the corruptions'."""
    setting = replace(table.setting, severity=0)
    return [setting.name] if setting.name != "all" else []


def _severities(tables: Iterable[ErrorTable]) -> str:
    severities = sorted({str(table.setting.severity) for table in tables})
    return f", at the highest severity of each ({', '.join(severities)})" if severities != ["0"] else ""


def _joined(tables: Mapping[str, ErrorTable], mixed: tuple[str, ...]) -> ErrorTable:
    """A table of the means of ``tables``, in a column each."""
    errors = {(r.model, r.label, column): replace(r.mean, mark="") for column, t in tables.items() for r in t.rows}
    places = dict.fromkeys((row.model, row.label) for table in tables.values() for row in table.rows)
    rows = []
    for model in dict.fromkeys(model for model, _ in places):
        for label in (label for m, label in places if m == model):
            cells = {c: errors.get((model, label, c), Cell(None, None, "missing")) for c in tables}
            own = [row for t in tables.values() for row in t.of(model) if row.label == label]
            reasons = dict.fromkeys(row.reason for row in own if row.reason)
            state = next((cell.state for cell in cells.values() if cell.state != "ok"), "ok")
            rows.append(MethodErrors(label, model, cells, Cell(None, None, state), "; ".join(reasons)))
    first = next(iter(tables.values()))
    return replace(
        first,
        corruptions=list(tables),
        rows=rows,
        partial=any(table.partial for table in tables.values()),
        averaged=False,
        classes={},
        seeds=max(table.seeds for table in tables.values()),
        pairs=[],
        ranks={},
        mixed=mixed,
    )


def _protocol_names(tables: Sequence[ErrorTable]) -> dict[Setting, str]:
    """Short unique column names: the kind, with parameters, batch size, precision and class mask where needed."""
    return told_apart({table.setting.base: table.setting.base.protocol for table in tables})


def _ranks(table: ErrorTable) -> dict[tuple[str, str], float]:
    """Average rank over the columns, 1 is best, of methods that have a complete result in each."""
    ranks: dict[tuple[str, str], float] = {}
    for model in table.models:
        complete = {r.label: r for r in table.of(model) if all(cell.state == "ok" for cell in r.cells.values())}
        if len(complete) > 1:
            means = pd.DataFrame({c: [row.cells[c].mean for row in complete.values()] for c in table.corruptions})
            average = means.astype(float).rank().mean(axis=1)
            ranks |= {(model, label): float(rank) for label, rank in zip(complete, average, strict=True)}
    return ranks
