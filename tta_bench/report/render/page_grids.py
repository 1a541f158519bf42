"""Grids of the page alone: the summary, all pairs of methods, cells without a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tta_bench.report.content import Content, Gap
from tta_bench.report.cost import CostTable
from tta_bench.report.render import grids
from tta_bench.report.render.grid import Column, Grid, GridCell, GridRow, RowGroup
from tta_bench.report.render.grids import number_cell, text_cell
from tta_bench.report.table import ErrorTable, MethodErrors, Pair, identifier
from tta_bench.report.words import bounded


def summary_grid(content: Content, table: ErrorTable) -> Grid:
    """Methods by their mean error, with differences from the baseline, ranks and step times."""
    over, against = f"Mean over the {table.setting.noun}", f"Difference from {content.baseline}"
    columns = [
        Column("place", "Place", "number", over), Column("error", "Error, %", "mean", over),
        Column("95 % int.", "95 % interval", "interval", over), Column("points", "Points", "number", against),
        Column("95 % int.", "95 % interval", "interval", against), Column("p", "p, corrected", "number", against),
        Column("rank", "Average rank", "number"), Column("ms", "Step, ms", "number"),
    ]  # fmt: skip
    cost, places = _main_cost(content.costs, table), _places(table)
    steps = {(row.model, row.label): row.step_ms for row in cost.rows} if cost else {}

    def cells(row: MethodErrors) -> list[GridCell]:
        error = [grids.error_cell(row.mean, row.reason), grids.interval_cell(row.mean)]
        difference = _pair_cells(table.pair(row, content.baseline), 1)
        if row.label == content.baseline:
            difference[0] = text_cell("baseline")
        cost = [number_cell(table.rank(row), 2), number_cell(steps.get((row.model, row.label)))]
        return [number_cell(places.get((row.model, row.label)), 0), *error, *difference, *cost]

    legend = [*grids.legend(table), *rank_sentences(table)]
    legend += [f"Step time of a batch of {table.setting.batch_size} on {cost.hardware}."] if cost else []
    return Grid(
        f"summary-{identifier(table.name)}",
        table.setting.text,
        table.warnings,
        [table.caption, *grids.why_unmarked(table)],
        legend,
        columns,
        grids.by_model(sorted(table.rows, key=_order), cells, table.models),
    )


def _order(row: MethodErrors) -> tuple[bool, bool, float]:
    return row.mean.mean is None, row.mean.state != "ok", row.mean.mean or 0.0


def _places(table: ErrorTable) -> dict[tuple[str, str], int]:
    """The places, from 1, of methods whose mean is complete, by source model and label."""
    complete = [sorted((r for r in table.of(m) if r.mean.state == "ok"), key=_order) for m in table.models]
    return {(row.model, row.label): place for rows in complete for place, row in enumerate(rows, 1)}


def _main_cost(costs: Sequence[CostTable], table: ErrorTable) -> CostTable | None:
    """The hardware that timed most trials: step times of several never share a column."""
    own = [c for c in costs if c.hardware and not c.shared and c.section == table.setting.base]
    return max(own, key=lambda cost: sum(row.trials for row in cost.rows), default=None)


def _pair_cells(pair: Pair | None, digits: int) -> list[GridCell]:
    """Difference, its interval, p."""
    if pair is None:
        return [GridCell("–")] * 3
    difference, low, high = (number_cell(value, digits, sign=True) for value in (pair.difference, pair.low, pair.high))
    return [difference, text_cell(f"{low.value} to {high.value}"), text_cell(p_value(pair.p))]


def p_value(p: float) -> str:
    """Three decimals, or that it is less."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def pairs_grid(table: ErrorTable) -> Grid:
    """All pairs of methods of a source model."""
    columns = [
        Column("against", "Against", "text"), Column("difference", "Difference", "number"),
        Column("95 % int.", "95 % interval", "interval"), Column("p", "p, corrected", "number"),
    ]  # fmt: skip
    by_model: dict[str, list[GridRow]] = {}
    for pair in table.pairs:
        row = GridRow(pair.label, [text_cell(pair.other), *_pair_cells(pair, 2)], (pair.label, pair.other), pair.model)
        by_model.setdefault(pair.model, []).append(row)
    over = "images and seeds" if table.seeds > 1 else "images"
    caption = (
        "Error of the first method minus that of the second, points: below zero the first is better. p: paired test "
    )
    return Grid(
        f"pairs-{identifier(table.name)}",
        f"All pairs of methods: {len(table.pairs)} comparisons of means over corruptions",
        table.warnings,
        [f"{caption}over {over}, corrected for all pairs of the source model (Holm)."],
        [],
        columns,
        [RowGroup(model, rows) for model, rows in by_model.items()],
    )


def rank_sentences(table: ErrorTable) -> Iterator[str]:
    """Average ranks, over all source models and for each."""
    for model, ranks in table.ranks.items():
        order = ", ".join(f"{label} {rank:.2f}" for label, rank in zip(ranks.labels, ranks.ranks, strict=True))
        tests = f"critical difference {ranks.critical:.2f} (Nemenyi, 5 %), p {p_value(ranks.p)} (Friedman)"
        alike = [f" No significant difference: {', '.join(ranks.labels[a : b + 1])}." for a, b in ranks.cliques()]
        left_out = f" Left out, as some cells have no result: {', '.join(ranks.left_out)}." if ranks.left_out else ""
        over = model or "all source models"
        yield f"Average ranks, {over}: {order}; {ranks.blocks} cells, {tests}.{''.join(alike)}{left_out}"


def gaps_grid(content: Content) -> Grid:
    """Cells without a result, by status."""
    heads = ("Source model", "Reason", "Cells", "Shifts", "Seeds", "Log")
    groups = []
    for status in grids.GAP_ORDER:
        if gaps := [gap for gap in content.gaps if gap.status == status]:
            count = sum(gap.cells for gap in gaps)
            title = f"{status}: {count} cell{'s' if count != 1 else ''}"
            groups.append(RowGroup(title, [*map(_gap_row, gaps)], status))
    return Grid(
        "gaps",
        "Failed, skipped and missing",
        (),
        ["A cell is one shift, seed and number of images adapted on. Logs are in the run's folder."],
        [],
        [Column(head.lower(), head, "number" if head == "Cells" else "text") for head in heads],
        groups,
    )


def _gap_row(gap: Gap) -> GridRow:
    texts = (gap.model, bounded(gap.reason) or "no reason is recorded", str(gap.cells), ", ".join(gap.shifts),
             ", ".join(map(str, gap.seeds)), gap.log or "–")  # fmt: skip
    return GridRow(gap.label, [*map(text_cell, texts)], (gap.label,), gap.model)
