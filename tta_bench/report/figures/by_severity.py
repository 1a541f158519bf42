"""Figure: error by severity, a line for each method, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import FEW
from tta_bench.report.table import Cell


def draw(section: Section) -> Iterator[Drawing]:
    """The figure, where there are two severities or more."""
    rows = [row for table in section.tables for row in table.rows]
    known = [row for row in rows if has_result(row)]
    severities = [table.setting.severity for table in section.tables if any(has_result(row) for row in table.rows)]
    if len(severities) < 2:
        return
    styles, left_out = section.drawn((row.label for row in known), FEW)
    models = [model for model in section.worst.models if any(row.model == model for row in known)]
    lines = {model: {label: errors(section, model, label) for label in styles} for model in models}
    drawn = [point for by_label in lines.values() for line in by_label.values() for point in line]
    ticks = {0: "clean"} if any(x == 0 for x, _ in drawn) else {}
    ticks |= {severity: str(severity) for severity in severities}
    cells = [cell for _, cell in drawn]
    spread = plot.Spread.of(cells)
    by_label = {label: plot.means(c for own in lines.values() for _, c in own[label]) for label in styles}
    shared = Range.of(by_label, section.content.baseline, start=0.0)
    clean = "; clean images at the left" if 0 in ticks else ""
    summary = f"Error in per cent by severity, mean over the {section.worst.setting.noun}{clean}."
    listed = ", ".join(map(str, severities[:-1])) + f" and {severities[-1]}"
    text = section.text("severity", "Error by severity", summary, rows=rows, severity=f"severities {listed}",
                        notes=[section.averaging, *plot.notes(spread, cells, shifted=len(styles) > 1), *left_out,
                               *limits.notes({"": shared})])  # fmt: skip
    figure, grid = layout.square_panels(text, models, [layout.legend(styles)], sharey=True)
    for axes, points in zip(grid, lines.values(), strict=True):
        plot.lines(axes, points, styles, spread, shared)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel("severity")
        plot.error_axis(axes)
    yield Drawing(text, figure)


def errors(section: Section, model: str, label: str) -> list[tuple[int, Cell]]:
    """(severity, mean over the corruptions), and at 0 the error on clean images where it is known."""
    rows = [(t.setting.severity, row) for t in section.tables for row in t.of(model) if row.label == label]
    clean = [(0, row.cells["clean"]) for _, row in rows[-1:] if "clean" in row.cells]
    return [point for point in clean if point[1].mean is not None] + [(severity, row.mean) for severity, row in rows]
