"""The tables of a report as grids, and its sentences: the same in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tta_bench.data.corrupt.corruptions import BENCHMARK, GROUPS
from tta_bench.report.calibration import CalibrationRow, CalibrationTable
from tta_bench.report.content import Content, Gap
from tta_bench.report.cost import CostRow, CostTable
from tta_bench.report.mce import MceTable
from tta_bench.report.reference import ComparedRow, Comparison
from tta_bench.report.render.grid import Column, Grid, GridCell, GridRow, RowGroup
from tta_bench.report.table import Cell, ErrorTable, MethodErrors, identifier
from tta_bench.report.words import bounded

_GROUP_OF = {name: group.capitalize() for group, names in GROUPS.items() for name in names}
_BOLD = "Bold: significantly lower than every other method of its source model."
_UNDERLINED = {
    frozenset({"best", "second"}): "Underlined: second lowest.",
    frozenset({"tied"}): "Underlined: the lowest, and those that do not differ significantly from it.",
    frozenset({"best", "second", "tied"}): "Underlined: second lowest; where nothing is bold, the lowest and those that "
    "do not differ significantly from it.",
}  # fmt: skip
STARRED = "*: mean over fewer trials than planned; not tested."
OF_MARKS = (_BOLD, *_UNDERLINED.values())  # of a legend: what a format without bold and underline leaves out
_INTERVAL = Column("95 % int.", "95 % int.", "interval")
R = TypeVar("R", MethodErrors, CalibrationRow, CostRow)
GAP_ORDER = ("failed", "missing", "skipped")  # the first two can be fixed
_NLL_DIGITS = 3
_NAMED_SHIFTS = 4  # a longer list of shifts is a number
_NAMED_GAPS = 20  # of the others the number is said


def grids(content: Content) -> list[Grid]:
    """The tables of every format, in order: errors, curves, calibration, costs, published numbers, mCE."""
    warnings = content.warnings
    return [
        *(error_grid(table) for table in (*content.overviews, *content.tables, *content.views, *content.curves)),
        *map(calibration_grid, content.calibration),
        *(cost_grid(table, f"cost-{number}", warnings) for number, table in enumerate(content.costs, 1)),
        *(comparison_grid(comparison, warnings) for comparison in content.comparisons),
        *(mce_grid(table, f"mce-{number}") for number, table in enumerate(content.mce, 1)),
    ]


def text_cell(value: str) -> GridCell:
    """A cell of text."""
    return GridCell(value)


def number_cell(value: float | None, digits: int = 1, *, sign: bool = False) -> GridCell:
    """``1,234.5``, ``+0.3``, ``−0.3``; a dash where there is none."""
    if value is None:
        return GridCell("–")
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")  # rounded to zero, it has no sign
    return GridCell(text.replace("-", "−"))


def by_model(
    rows: Sequence[R], to_cells: Callable[[R], list[GridCell]], models: Iterable[str] | None = None
) -> list[RowGroup]:
    """A group for each source model, a row for each of its methods."""
    models = models or dict.fromkeys(row.model for row in rows)
    return [
        RowGroup(model, [GridRow(r.label, to_cells(r), (r.label,), model) for r in rows if r.model == model])
        for model in models
    ]


# -- errors ------------------------------------------------------------------------------------------------------------


def error_grid(table: ErrorTable) -> Grid:
    """Errors of methods, with intervals of the mean where images are paired."""
    intervals = table.averaged and any(row.mean.low is not None for row in table.rows)
    columns = [Column.named(name, table.group_of(name).capitalize()) for name in table.columns]

    def cells(row: MethodErrors) -> list[GridCell]:
        errors = [error_cell(table.cell(row, name), row.reason) for name in table.columns]
        return [*errors, interval_cell(row.mean)] if intervals else errors

    explained = [*legend(table), *(["95 % int.: of the mean, over images."] if intervals else [])]
    models = _source_models(table.models)
    return Grid(
        f"errors-{table.name}",
        table.title,
        table.warnings,
        [table.caption, models, *why_unmarked(table)],
        explained,
        [*columns, _INTERVAL] if intervals else columns,
        by_model(table.rows, cells),
    )


def _source_models(models: Iterable[str]) -> str:
    names = list(models)
    return f"Source model{'s' if len(names) > 1 else ''}: {', '.join(names)}."


def error_cell(cell: Cell, reason: str, digits: int = 1, unit: str = "%") -> GridCell:
    """An error, or another number with its spread; where there is none, its state."""
    if cell.mean is None:
        value = {"skipped": "–", "missing": "n/a"}.get(cell.state, cell.state)
        return GridCell(value, state=cell.state, note=bounded(reason) or None)
    spread = None if cell.std is None else f"{cell.std:.{digits}f}"
    note = [f"{cell.mean:.{digits + 1}f} {unit}", f"{cell.seeds} seed{'s' if cell.seeds != 1 else ''}"]
    note += [f"95 % interval {cell.low:.1f}–{cell.high:.1f}"] if cell.low is not None else []
    note += [bounded(reason)] if cell.state != "ok" and reason else []
    return GridCell(f"{cell.mean:.{digits}f}", spread, cell.mark, cell.state != "ok", cell.state, ", ".join(note))


def interval_cell(mean: Cell) -> GridCell:
    """The interval of a mean over images."""
    return GridCell("" if mean.low is None else f"{mean.low:.1f}–{mean.high:.1f}")


def _all_cells(table: ErrorTable) -> list[Cell]:
    return [table.cell(row, name) for row in table.rows for name in table.columns]


def why_unmarked(table: ErrorTable) -> Iterator[str]:
    """Why no cell is marked; nothing where some are."""
    if not table.averaged or len(table.labels) < 2:
        return
    if table.untested:
        yield f"Nothing is marked: {table.untested}."
    elif _is_tested(table) and not any(cell.mark for cell in _all_cells(table)):
        yield "Nothing is marked: no two methods differ significantly."


def _is_tested(table: ErrorTable) -> bool:
    """Whether some column has two complete methods of one source model to compare."""
    if table.untested or not table.averaged:
        return False
    complete = [[table.cell(r, c).state == "ok" for r in table.of(m)] for m in table.models for c in table.columns]
    return any(sum(states) > 1 for states in complete)


def legend(table: ErrorTable) -> Iterator[str]:
    """What marks and states mean."""
    cells = _all_cells(table)
    marks = frozenset(cell.mark for cell in cells if cell.mark)
    if "best" in marks:
        yield _BOLD
    if marks in _UNDERLINED:
        yield _UNDERLINED[marks]
    if _is_tested(table):
        over = "images and seeds" if table.seeds > 1 else "images"
        yield f"Tests at 5 % are paired over {over}, with Holm's correction."
        if table.seeds == 1:
            yield "With one seed, the spread over seeds is unknown and not part of the tests."
    if any(cell.mean is not None and cell.state != "ok" for cell in cells):
        yield STARRED
    states = {cell.state for cell in cells if cell.mean is None}
    if "skipped" in states:
        yield "–: the method cannot run there."
    if "missing" in states:
        yield "n/a: not run yet."


# -- calibration -------------------------------------------------------------------------------------------------------


def calibration_grid(table: CalibrationTable) -> Grid:
    """Calibration error and negative log-likelihood, two columns for each severity."""
    columns = [column for severity in table.severities for column in _calibration_columns(severity, table)]

    def cells(row: CalibrationRow) -> list[GridCell]:
        pairs = [(row.ece[severity], row.nll[severity]) for severity in table.severities]
        return [
            cell
            for ece, nll in pairs
            for cell in (error_cell(ece, row.reason), error_cell(nll, row.reason, _NLL_DIGITS, "nats"))
        ]

    shown = [cell for row in table.rows for cell in (*row.ece.values(), *row.nll.values())]
    legend = [
        "ECE: in 15 bins of confidence. NLL: −log of the label's probability, which counts as 1e-12 where it is less. "
        f"Both over all images of a shift together, then the mean over the {table.setting.noun}; not tested."
    ]
    legend += [STARRED] if any(cell.mean is not None and cell.state != "ok" for cell in shown) else []
    legend += ["none: run by a version that did not measure it."] if any(c.state == "none" for c in shown) else []
    caption = [table.caption, _source_models(dict.fromkeys(row.model for row in table.rows))]
    return Grid(table.name, table.title, table.warnings, caption, legend, columns, by_model(table.rows, cells))


def _calibration_columns(severity: int, table: CalibrationTable) -> Iterator[Column]:
    several = len(table.severities) > 1
    for short, head in (("ECE", "ECE (%)"), ("NLL", "NLL (nats)")):
        yield Column(
            f"{short} {severity}" if several else short, head, "cell", f"Severity {severity}" if several else ""
        )


# -- costs -------------------------------------------------------------------------------------------------------------


def cost_grid(table: CostTable, name: str, warnings: tuple[str, ...] = ()) -> Grid:
    """Costs on one kind of hardware; columns without a number are left out.

    Args:
        table: the costs.
        name: of the grid.
        warnings: of the whole report.
    """
    columns = [pair for pair in _cost_columns(table) if any(pair[1](row) is not None for row in table.rows)]

    def cells(row: CostRow) -> list[GridCell]:
        values = [value(row) for _, value in columns]
        return [GridCell("–" if value is None else _rounded(value)) for value in values]

    heads = {column.short for column, _ in columns}
    legend = ["Forward, backward: images passed, and updates: optimizer steps, for each 1,000 images."]
    legend += ["Time of a batch's step: median over trials."] if "ms" in heads else []
    ratio = f"×{table.baseline}"
    legend += [f"{ratio}: ratio to {table.baseline}'s time, median over segments and seeds."] if ratio in heads else []
    shared = ("SHARED DEVICE: TIMES ARE NOT THE METHODS' OWN",) if table.shared else ()
    title = f"Cost: {table.title}" if table.title else "Counts"
    grid_columns = [column for column, _ in columns]
    return Grid(
        name,
        title,
        (*warnings, *shared),
        [table.caption, *table.disturbed],
        legend,
        grid_columns,
        by_model(table.rows, cells),
    )


def _cost_columns(table: CostTable) -> list[tuple[Column, Callable[[CostRow], float | None]]]:
    ratio = f"×{table.baseline}"
    return [
        (Column("img/s", "Images/s", "number", "Time"), lambda r: r.images_per_s),
        (Column("ms", "Step (ms)", "number", "Time"), lambda r: r.step_ms),
        (Column("p95 ms", "95th pct. (ms)", "number", "Time"), lambda r: r.step_ms_p95),
        (Column(ratio, ratio, "number", "Time"), lambda r: r.slowdown),
        (Column("forward", "Forward", "number", "Per 1,000 images"), lambda r: r.forwards),
        (Column("backward", "Backward", "number", "Per 1,000 images"), lambda r: r.backwards),
        (Column("updates", "Updates", "number", "Per 1,000 images"), lambda r: r.updates),
        (Column("peak MiB", "Peak (MiB)", "number", "Memory"), lambda r: r.peak_memory_mib),
        (Column("prepare s", "Prepare (s)", "number"), lambda r: r.prepare_s),
        (Column("trials", "Trials", "number"), lambda r: float(r.trials)),
    ]


def _rounded(number: float) -> str:
    """Three digits or more, thousands separated; a whole number stays whole."""
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


# -- mean corruption errors --------------------------------------------------------------------------------------------


def mce_grid(table: MceTable, name: str) -> Grid:
    """Corruption errors and their mean."""
    names = list(table.rows[0].ce) if table.rows else []
    columns = [*(Column.named(n, _GROUP_OF.get(n, "")) for n in names), Column("mCE", "mCE", "mean")]
    groups = [
        RowGroup(m, [GridRow(r.label, [number_cell(v) for v in (*r.ce.values(), r.mce)], (r.label,), m)
                     for r in table.rows if r.model == m])
        for m in dict.fromkeys(row.model for row in table.rows)
    ]  # fmt: skip
    left_out = [f"Left out: {'; '.join(table.left_out)}."] if table.left_out else []
    return Grid(name, "Mean corruption error", table.warnings, [table.caption], left_out, columns, groups)


# -- published numbers -------------------------------------------------------------------------------------------------


def comparison_grid(comparison: Comparison, warnings: tuple[str, ...] = ()) -> Grid:
    """A paper's numbers, three rows a method: published, measured, difference; no groups where nothing matches.

    Args:
        comparison: the paper's.
        warnings: of the whole report.
    """
    own = dict.fromkeys(row.corruption for row in comparison.rows)
    names = [*(n for n in own if n not in (*BENCHMARK, "mean")), *(n for n in (*BENCHMARK, "mean") if n in own)]
    reasons = list(dict.fromkeys(text for row in comparison.rows if (text := _remark(row))))
    columns = [Column("", "", "text"), *(Column.named(n, _GROUP_OF.get(n, "")) for n in names)]
    columns += [Column("why", "Why", "text")] if reasons else []
    groups: dict[str, list[GridRow]] = {}
    several = len({row.table for row in comparison.rows}) > 1
    for rows in _methods(comparison.rows):
        first = next(iter(rows.values()))
        title = f"{first.published_model}, here {first.model}{f', {first.table}' if several else ''}"
        groups.setdefault(title, []).extend(_compared(rows, names, reasons))
    source = f"arXiv {comparison.arxiv}, {comparison.source}" if comparison.arxiv else comparison.source
    explained = " Error in per cent; difference: measured minus published." if groups else ""
    return Grid(
        f"published-{identifier(comparison.paper)}",
        f"Published numbers: {comparison.paper}",
        warnings if groups else (),
        [
            f"Measured beside published: {comparison.paper} ({source}).{explained}",
            *filter(None, [comparison.unmatched]),
        ],
        [f"{_letter(i)}: {text}." for i, text in enumerate(reasons)],
        columns,
        [RowGroup(title, rows) for title, rows in groups.items()],
    )


def _methods(rows: Sequence[ComparedRow]) -> Iterator[dict[str, ComparedRow]]:
    """Rows of one method by corruption; a corruption that is there twice (a rerun, another table) begins anew."""
    by_method: dict[tuple[str, ...], list[dict[str, ComparedRow]]] = {}
    for row in rows:
        stacks = by_method.setdefault((row.published_model, row.model, row.table, row.method, row.label), [])
        stack = next((s for s in stacks if row.corruption not in s), None)
        if stack is None:
            stacks.append(stack := {})
        stack[row.corruption] = row
    yield from (stack for stacks in by_method.values() for stack in stacks)


def _compared(rows: Mapping[str, ComparedRow], names: Sequence[str], reasons: Sequence[str]) -> Iterator[GridRow]:
    first = next(iter(rows.values()))
    name = first.method if first.method.lower() == first.label else f"{first.method} ({first.label})"
    ordered = [rows.get(n) for n in names]
    letters = dict.fromkeys(_letter(reasons.index(text)) for row in rows.values() if (text := _remark(row)))
    differences = [r.difference if r else None for r in ordered]
    lines = {
        "published": [text_cell(f"{r.published:.{r.decimals}f}" if r else "") for r in ordered],
        "measured": [_measured(r) if r else text_cell("") for r in ordered],
        "difference": [text_cell("") if d is None else number_cell(d, sign=True) for d in differences],
    }  # fmt: skip
    for kind, cells in lines.items():
        heading = kind == "published"
        why = [text_cell(", ".join(letters) if heading else "")] if reasons else []
        yield GridRow(name if heading else "", [text_cell(kind), *cells, *why], (first.label,), first.model)


def _measured(row: ComparedRow) -> GridCell:
    return error_cell(Cell(row.measured, None, row.state), row.reason)


def _remark(row: ComparedRow) -> str:
    return "; ".join(text for text in (row.reason, row.note) if text)


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] * (1 + number // 26)


# -- what is missing ---------------------------------------------------------------------------------------------------


def gap_sentences(content: Content) -> list[tuple[str, str]]:
    """(status, sentence) of the first gaps, failures first, and one that counts the others."""
    ordered = sorted(content.gaps, key=lambda gap: GAP_ORDER.index(gap.status))
    sentences = [(gap.status, _gap(gap)) for gap in ordered[:_NAMED_GAPS]]
    if others := ordered[_NAMED_GAPS:]:
        cells = sum(gap.cells for gap in others)
        text = f"{cells:,} more cell{'s' if cells > 1 else ''} without a result, for {len(others):,} other reasons: see"
        sentences.append((others[0].status, f"{text} the page, or data/gaps.csv."))
    return sentences


def _gap(gap: Gap) -> str:
    shifts = ", ".join(gap.shifts) if len(gap.shifts) <= _NAMED_SHIFTS else f"{len(gap.shifts)} shifts"
    seeds = f"seed{'s' if len(gap.seeds) > 1 else ''} {', '.join(map(str, gap.seeds))}"
    log = f" (log: {gap.log})" if gap.log and gap.status == "failed" else ""
    cells = f"{gap.cells} cell{'s' if gap.cells > 1 else ''}"
    reason = bounded(gap.reason).rstrip(".")
    return f"{gap.label} on {gap.model}: {cells} {gap.status} ({shifts}; {seeds}): {reason}{log}."
