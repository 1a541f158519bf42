"""Figure: error against optimizer steps, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import plot, sheet
from tta_bench.report.figures.section import Drawn, Section

_TITLE = "Error by number of updates"


def draw(section: Section) -> Iterator[Drawn]:
    """The figure at the most severe severity, where methods differ in their updates."""
    counts = section.per_thousand("updates")
    rows = [row for row in section.worst.rows if row.mean.mean is not None and (row.model, row.label) in counts]
    if len({counts[row.model, row.label] for row in rows}) < 2:
        return
    styles = section.styles_of(row.label for row in rows)
    models = [model for model in section.worst.models if any(row.model == model for row in rows)]
    cells = [row.mean for row in rows]
    spread = plot.Spread.of(cells)
    notes, conditions = spread.notes(cells, apart=True), section.conditions()
    words = section.words(_TITLE, sheet.points(styles), section.worst.rows, conditions, notes)
    page = sheet.Sheet(words, models, sheet.Room(2.5, 1.8))
    most = max(counts[row.model, row.label] for row in rows)
    for axes, model in zip(page.axes, models, strict=True):
        mine = [row for row in rows if row.model == model]
        places = plot.apart([counts[model, row.label] for row in mine], 0.025 * most, 0.2 * most)
        for row, x in zip(mine, places, strict=True):
            plot.dot(axes, (x, row.mean), styles[row.label], spread)
        axes.set_xlim(-0.1 * most, 1.1 * most)
        axes.set_xlabel("optimizer steps for each 1,000 images")
        sheet.error_axis(axes)
    what = "Error in per cent, mean over the corruptions, by optimizer steps for each 1,000 images of the same trials."
    caption = section.caption(what, conditions, section.worst.rows, notes)
    yield Drawn(f"updates{section.suffix}", _TITLE, caption, page.figure)
