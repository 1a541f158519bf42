"""What a report says, as tables to print and sentences: the same on the terminal, in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tta_bench.data.corrupt.corruptions import BENCHMARK, GROUPS
from tta_bench.report.content import Content, Gap
from tta_bench.report.cost import CostRow, CostTable
from tta_bench.report.mce import MceTable
from tta_bench.report.reference import ComparedRow, Comparison
from tta_bench.report.render.grid import Column, Entry, Grid, Line, Section, heads, plain
from tta_bench.report.table import Cell, ErrorTable

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_BOLD = "Bold: lower than every other method of its source model."
_UNDERLINED = {
    frozenset({"best", "second"}): "Underlined: the second lowest.",
    frozenset({"tied"}): "Underlined: the lowest, and those that are not told apart from it.",
    frozenset(
        {"best", "second", "tied"}
    ): "Underlined: the second lowest; or, where nothing is bold, the lowest and those "
    "that are not told apart from it.",
}
STARRED = "*: over fewer cells than were planned; compared with nothing, so that bold and underlined leave it out."
_GAPS = ("failed", "missing", "skipped")  # in this order: the first two can be mended
_FEW = 4  # shifts that are listed by name


def grids(content: Content) -> list[Grid]:
    """All tables, in order: errors, curves, costs, published numbers, mean corruption errors."""
    warned = _warning(content.partial, content.evidence.mixed)
    return [
        *(error_grid(table) for table in (*content.tables, *content.curves)),
        *(cost_grid(table, f"cost-{number}", warned) for number, table in enumerate(content.costs, 1)),
        *(comparison_grid(comparison, warned) for comparison in content.comparisons),
        *(mce_grid(table, f"mce-{number}") for number, table in enumerate(content.mce, 1)),
    ]


# -- errors ------------------------------------------------------------------------------------------------------------


def error_grid(table: ErrorTable) -> Grid:
    """Errors of methods, with intervals of the mean where images are paired."""
    columns = [Column(*heads(name), "mean" if name == "mean" else "cell", _group(name)) for name in table.columns]
    intervals = table.averaged and any(row.mean.interval for row in table.rows)
    if intervals:
        columns.append(Column("95 % int.", "95 % int.", "interval"))

    def line(row_cells: Sequence[Cell], mean: Cell) -> list[Entry]:
        return [_entry(cell) for cell in row_cells] + ([_interval(mean)] if intervals else [])

    sections = [
        Section(m, [Line(r.label, line([table.cell(r, c) for c in table.columns], r.mean)) for r in table.of(m)])
        for m in table.models
    ]
    legend, caption = list(_legend(table)), [table.caption, _models(table.models), *_unmarked(table)]
    if intervals:
        legend.append("95 % int.: of the mean, over images.")
    return Grid(f"errors-{table.name}", table.title, warning(table), caption, legend, columns, sections)


def _models(names: Sequence[str]) -> str:
    return f"Source model{'s' if len(names) > 1 else ''}: {', '.join(names)}."


def warning(table: ErrorTable) -> str:
    """That a table is no result, or of runs that differ; empty where it is neither."""
    return _warning(table.partial, table.mixed)


def _warning(partial: bool, mixed: Sequence[str]) -> str:
    parts = ["SUBSET OF THE IMAGES, NOT A RESULT"] if partial else []
    return "; ".join(parts + ([f"MIXED: {'; '.join(mixed)}"] if mixed else []))


def _group(name: str) -> str:
    return _GROUP_OF.get(name, "").capitalize()


def _entry(cell: Cell) -> Entry:
    if cell.mean is None:
        return Entry({"skipped": "–", "missing": "n/a"}.get(cell.state, cell.state), state=cell.state)
    spread = "" if cell.std is None else f"{cell.std:.1f}"
    return Entry(f"{cell.mean:.1f}", spread, cell.mark, cell.state != "ok", cell.state)


def _interval(mean: Cell) -> Entry:
    return Entry("" if mean.low is None or mean.high is None else f"{mean.low:.1f}–{mean.high:.1f}")


def _cells(table: ErrorTable) -> list[Cell]:
    return [table.cell(row, name) for row in table.rows for name in table.columns]


def _unmarked(table: ErrorTable) -> Iterator[str]:
    """Why nothing is marked."""
    if table.averaged and len(table.labels) > 1 and (table.untested or _compares(table)):
        if table.untested:
            yield f"Nothing is marked, as {table.untested}."
        elif not any(cell.mark for cell in _cells(table)):
            yield "Nothing is marked: no method is told apart from another."


def _compares(table: ErrorTable) -> bool:
    """Whether a source model has two methods to compare, in some column."""
    whole = [
        [row for row in table.of(m) if table.cell(row, c).state == "ok"] for m in table.models for c in table.columns
    ]
    return any(len(rows) > 1 for rows in whole)


def _legend(table: ErrorTable) -> Iterator[str]:
    cells = _cells(table)
    marks = frozenset(cell.mark for cell in cells if cell.mark)
    if "best" in marks:
        yield _BOLD
    if marks in _UNDERLINED:
        yield _UNDERLINED[marks]
    if table.averaged and not table.untested and _compares(table):
        over = "images and seeds" if table.seeds > 1 else "images"
        yield f"Tests at 5 % are paired over {over}, with Holm's correction."
        if table.seeds == 1:
            yield "With one seed, the spread over seeds is not known, and tests leave it out."
    if any(cell.mean is not None and cell.state != "ok" for cell in cells):
        yield STARRED
    states = {cell.state for cell in cells if cell.mean is None}
    if "skipped" in states:
        yield "–: the method cannot run there."
    if "missing" in states:
        yield "n/a: not run yet."


# -- costs -------------------------------------------------------------------------------------------------------------


def cost_grid(table: CostTable, name: str, warned: str = "") -> Grid:
    """Costs on one kind of hardware; columns without a number are left out.

    Args:
        table: the costs.
        name: of the grid.
        warned: what every table of the report must say.
    """
    found = [(column, value) for column, value in _cost_columns(table) if any(value(r) is not None for r in table.rows)]

    def entry(number: float | None) -> Entry:
        return Entry("–" if number is None else _rounded(number))

    sections = [
        Section(model, [Line(row.label, [entry(value(row)) for _, value in found]) for row in table.of(model)])
        for model in table.models
    ]
    heads_of = {column.short for column, _ in found}
    legend = ["Forward, backward: images passed, and updates: optimizer steps, for each 1,000 images."]
    if "ms" in heads_of:
        legend.append("Time of a batch's step: median over trials.")
    if f"×{table.baseline}" in heads_of:
        legend.append(f"×{table.baseline}: its ratio to {table.baseline}'s, median over segments and seeds.")
    title = f"Cost: {table.title}" if table.title else "Counts"
    shared = ["SHARED DEVICE: TIMES ARE NOT THE METHODS' OWN"] if table.shared else []
    return Grid(
        name,
        title,
        "; ".join([*([warned] if warned else []), *shared]),
        [table.caption],
        legend,
        [column for column, _ in found],
        sections,
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
    """At least three digits, thousands apart; a whole number stays whole."""
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


# -- mean corruption errors --------------------------------------------------------------------------------------------


def mce_grid(table: MceTable, name: str) -> Grid:
    """Corruption errors and their mean."""
    names = list(table.rows[0].ce) if table.rows else []
    columns = [*(Column(*heads(n), "cell", _group(n)) for n in names), Column("mCE", "mCE", "mean")]
    sections = [
        Section(
            model,
            [
                Line(row.label, [Entry(f"{value:.1f}") for value in (*row.ce.values(), row.mce)])
                for row in table.rows
                if row.model == model
            ],
        )
        for model in dict.fromkeys(row.model for row in table.rows)
    ]
    left_out = [f"Left out: {'; '.join(table.left_out)}."] if table.left_out else []
    return Grid(name, "Mean corruption error", table.warning, [table.caption], left_out, columns, sections)


# -- published numbers -------------------------------------------------------------------------------------------------


def comparison_grid(comparison: Comparison, warned: str = "") -> Grid:
    """A paper's numbers, three lines a method: published, measured, difference; no sections where nothing matches.

    Args:
        comparison: the paper's.
        warned: what every table of the report must say.
    """
    names = [n for n in (*BENCHMARK, "mean") if any(row.corruption == n for row in comparison.rows)]
    names = [*dict.fromkeys(r.corruption for r in comparison.rows if r.corruption not in names), *names]
    reasons = list(dict.fromkeys(text for row in comparison.rows if (text := _why(row))))
    columns = [Column("", "", "text"), *(Column(*heads(n), "cell", _group(n)) for n in names)]
    if reasons:
        columns.append(Column("why", "Why", "text"))
    sections: dict[str, list[Line]] = {}
    several = len({row.table for row in comparison.rows}) > 1
    for rows in _methods(comparison.rows):
        first = next(iter(rows.values()))
        title = f"{first.published_model}, here {first.model}{f', {first.table}' if several else ''}"
        sections.setdefault(title, []).extend(_compared(rows, names, reasons))
    found = [Section(title, lines) for title, lines in sections.items()]
    source = f"arXiv {comparison.arxiv}, {comparison.source}" if comparison.arxiv else comparison.source
    what = " Error in per cent; difference: measured minus published." if found else ""
    caption = f"Measured beside published: {comparison.paper} ({source}).{what}"
    legend = [f"{_letter(i)}: {text}." for i, text in enumerate(reasons)]
    unmatched = [comparison.unmatched] if comparison.unmatched else []
    name, title = f"published-{plain(comparison.paper)}", f"Published numbers: {comparison.paper}"
    return Grid(name, title, warned if found else "", [caption, *unmatched], legend, columns, found)


def _methods(rows: Sequence[ComparedRow]) -> Iterator[dict[str, ComparedRow]]:
    """Rows of one method by corruption; a corruption that is there twice (a rerun, another table) begins anew."""
    found: dict[tuple[str, ...], list[dict[str, ComparedRow]]] = {}
    for row in rows:
        stacks = found.setdefault((row.published_model, row.model, row.table, row.method, row.label), [])
        stack = next((s for s in stacks if row.corruption not in s), None)
        if stack is None:
            stacks.append(stack := {})
        stack[row.corruption] = row
    yield from (stack for stacks in found.values() for stack in stacks)


def _compared(rows: Mapping[str, ComparedRow], names: Sequence[str], reasons: Sequence[str]) -> Iterator[Line]:
    first = next(iter(rows.values()))
    name = first.method if first.method.lower() == first.label else f"{first.method} ({first.label})"
    found = [rows.get(n) for n in names]
    published = [Entry(f"{r.published:.{r.decimals}f}" if r else "") for r in found]
    measured = [_measured(r) if r else Entry("") for r in found]
    difference = [Entry("" if r is None or r.difference is None else _signed(r.difference)) for r in found]
    letters = dict.fromkeys(_letter(reasons.index(text)) for r in found if r and (text := _why(r)))
    why = [[Entry(", ".join(letters))], [Entry("")], [Entry("")]] if reasons else [[], [], []]
    for title, what, entries, end in zip(
        (name, "", ""), ("published", "measured", "difference"), (published, measured, difference), why, strict=True
    ):
        yield Line(title, [Entry(what), *entries, *end])


def _measured(row: ComparedRow) -> Entry:
    if row.measured is None:
        return Entry({"skipped": "–", "missing": "n/a"}.get(row.state, row.state), state=row.state)
    return Entry(f"{row.measured:.1f}", starred=row.state != "ok", state=row.state)


def _signed(difference: float) -> str:
    text = f"{difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _why(row: ComparedRow) -> str:
    return "; ".join(text for text in (row.reason, row.note) if text)


def _letter(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] * (1 + number // 26)


# -- what is missing ---------------------------------------------------------------------------------------------------


def gaps(content: Content) -> list[tuple[str, str]]:
    """(status, sentence) of each gap, what failed first."""
    ordered = sorted(content.gaps, key=lambda gap: _GAPS.index(gap.status) if gap.status in _GAPS else 0)
    return [(gap.status, _gap(gap)) for gap in ordered]


def _gap(gap: Gap) -> str:
    shifts = ", ".join(gap.shifts) if len(gap.shifts) <= _FEW else f"{len(gap.shifts)} shifts"
    seeds = f"seed{'s' if len(gap.seeds) > 1 else ''} {', '.join(map(str, gap.seeds))}"
    log = f" (log: {gap.log})" if gap.log and gap.status == "failed" else ""
    cells = f"{gap.cells} cell{'s' if gap.cells > 1 else ''}"
    reason = " ".join(gap.reason.split()).rstrip(".")
    return f"{gap.label} on {gap.model}: {cells} {gap.status} ({shifts}; {seeds}): {reason}{log}."
