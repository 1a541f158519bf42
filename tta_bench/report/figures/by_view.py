"""Figures: error by place, by visit, of probes, and by each axis that a suite varies; a line for each method."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report import views
from tta_bench.report.across import BY
from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import FEW
from tta_bench.report.table import ErrorTable

_FIGURES = {
    views.PLACES: (
        "Error along the sequence of severities",
        "severity",
        "Error in per cent at each place of the sequence",
    ),
    views.VISITS: ("Error by visit", "visit", "Error in per cent by visit"),
    views.PROBES: ("Error of the probe", "part of the stream", "Error in per cent of the probe after each part"),
}
_SUMMARIES = ("last − first", "average", "forgetting")  # columns that are no point of a line


def draw(section: Section) -> Iterator[Drawing]:
    """A figure for each view of a sequence, at the most severe severity."""
    for kind, (title, axis, summary) in _FIGURES.items():
        tables = [table for table in section.views if table.view == kind]
        if tables and len(_points(tables[-1])) > 1:
            yield from _figure(section, tables[-1], kind, title, axis, summary)
    for table in section.views:
        if table.view.startswith(BY):
            axis = table.view.removeprefix(BY)
            yield from _figure(section, table, f"by_{axis}", f"Error by {axis}", axis, f"Error in per cent by {axis}")


def _points(table: ErrorTable) -> list[str]:
    return [name for name in table.corruptions if name not in _SUMMARIES]


def _figure(section: Section, table: ErrorTable, kind: str, title: str, axis: str, summary: str) -> Iterator[Drawing]:
    models = [model for model in table.models if any(has_result(row) for row in table.of(model))]
    if not models:
        return
    names = _points(table)
    ticks = [layout.shorten(name.removeprefix("after ").removesuffix(" again")) for name in names]
    styles, left_out = section.drawn((row.label for row in table.rows if has_result(row)), FEW)
    ranges = Range.of_models({m: plot.errors_of(table, m, styles, names) for m in models}, section.content.baseline)
    cells = [row.cells[name] for row in table.rows for name in names]
    spread = plot.Spread.of(cells)
    summary = f"{summary}, mean over the {table.setting.noun}."
    text = section.text(kind, title, summary, rows=table.rows, setting=table.setting,
                        notes=[section.averaging, *plot.notes(spread, cells, shifted=len(styles) > 1), *left_out,
                               *limits.notes(ranges)])  # fmt: skip
    figure, grid = layout.square_panels(text, models, [layout.legend(styles)])
    for axes, model in zip(grid, models, strict=True):
        points = {row.label: [(i, row.cells[name]) for i, name in enumerate(names)] for row in table.of(model)}
        plot.lines(axes, points, styles, spread, ranges[model])
        axes.set_xticks(range(len(names)), ticks)
        axes.set_xlabel(axis)
        plot.error_axis(axes, "error, %")
    yield Drawing(text, figure)
