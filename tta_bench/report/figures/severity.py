"""Figure: error against severity, a line a method, a panel a source model."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import plot, sheet
from tta_bench.report.figures.section import Drawn, Section, is_known
from tta_bench.report.table import Cell

_TITLE = "Error by severity"


def draw(section: Section) -> Iterator[Drawn]:
    """The figure, where there are two severities or more."""
    rows = [row for table in section.tables for row in table.rows]
    known = [row for row in rows if is_known(row)]
    severities = [table.setting.severity for table in section.tables if any(is_known(row) for row in table.rows)]
    if len(severities) < 2:
        return
    styles = section.styles_of(row.label for row in known)
    models = [model for model in section.worst.models if any(row.model == model for row in known)]
    lines = {(model, label): errors(section, model, label) for model in models for label in styles}
    step = min(0.06, 0.4 / len(styles))
    clean = any(x == 0 for places in lines.values() for x, _ in places)
    cells = [cell for places in lines.values() for _, cell in places]
    spread = plot.Spread.of(cells)
    notes = spread.notes(cells, apart=len(styles) > 1)
    conditions = section.conditions(severity="severities " + _listed(severities))
    words = section.words(_TITLE, sheet.lines(styles, points=True), section.worst.rows, conditions, notes)
    page = sheet.Sheet(words, models, sheet.Room(2.5, 1.8))
    for axes, model in zip(page.axes, models, strict=True):
        for number, (label, style) in enumerate(styles.items()):
            aside = (number - (len(styles) - 1) / 2) * step
            plot.series(axes, [(x + aside, cell) for x, cell in lines[model, label]], style, spread)
        axes.set_xticks([0] * clean + severities, ["clean"] * clean + [str(severity) for severity in severities])
        axes.set_xlabel("severity")
        sheet.error_axis(axes)
    plot.same_height(page.axes)
    what = f"Error in per cent by severity, mean over the corruptions{'; clean images at the left' if clean else ''}."
    yield Drawn(f"severity{section.suffix}", _TITLE, section.caption(what, conditions, rows, notes), page.figure)


def errors(section: Section, model: str, label: str) -> list[tuple[int, Cell]]:
    """(severity, mean over the corruptions), and at 0 the error on clean images where it is known."""
    found = [(t.setting.severity, row) for t in section.tables for row in t.of(model) if row.label == label]
    clean = [(0, row.cells["clean"]) for _, row in found[-1:] if "clean" in row.cells]
    return [place for place in clean if place[1].mean is not None] + [(severity, row.mean) for severity, row in found]


def _listed(severities: list[int]) -> str:
    return ", ".join(map(str, severities[:-1])) + f" and {severities[-1]}"
