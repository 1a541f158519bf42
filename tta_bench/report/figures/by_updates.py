"""Figure: error by optimizer steps, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import layout, plot
from tta_bench.report.figures.section import Drawing, Section


def draw(section: Section) -> Iterator[Drawing]:
    """The figure at the most severe severity, where methods differ in their updates."""
    counts = section.per_thousand("updates")
    rows = [row for row in section.worst.rows if row.mean.mean is not None and (row.model, row.label) in counts]
    if len({counts[row.model, row.label] for row in rows}) < 2:
        return
    styles = section.styles_of(row.label for row in rows)
    models = list(dict.fromkeys(row.model for row in rows))
    cells = [row.mean for row in rows]
    spread = plot.Spread.of(cells)
    noun = section.worst.setting.noun
    summary = f"Error in per cent, mean over the {noun}, by optimizer steps per 1,000 images of the same trials."
    text = section.text("updates", "Error by number of updates", summary, rows=section.worst.rows,
                        notes=plot.notes(spread, cells, shifted=True))  # fmt: skip
    figure, grid = layout.square_panels(text, models, [layout.legend(styles, linestyle="none")])
    most = max(counts[row.model, row.label] for row in rows)
    for axes, model in zip(grid, models, strict=True):
        shown = [row for row in rows if row.model == model]
        x = plot.spread_ties([counts[model, row.label] for row in shown], 0.025 * most, 0.2 * most)
        for row, steps in zip(shown, x, strict=True):
            plot.errors(axes, [(steps, row.mean)], spread, styles[row.label].point() | {"linestyle": "none"})
        axes.set_xlim(-0.1 * most, 1.1 * most)
        axes.set_xlabel("optimizer steps per 1,000 images")
        plot.error_axis(axes)
    yield Drawing(text, figure)
