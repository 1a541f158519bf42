"""Figure: error by optimizer steps, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.places import ZERO, Places
from tta_bench.report.figures.section import Drawing, Section


def draw(section: Section) -> Iterator[Drawing]:
    """The figure at the most severe severity, where methods differ in their updates."""
    counts = section.per_thousand("updates")
    rows = [row for row in section.worst.rows if row.mean.mean is not None and (row.model, row.label) in counts]
    if len({counts[row.model, row.label] for row in rows}) < 2:
        return
    styles, left_out = section.drawn(row.label for row in rows)
    rows = [row for row in rows if row.label in styles]
    models = list(dict.fromkeys(row.model for row in rows))
    cells = [row.mean for row in rows]
    spread = plot.Spread.of(cells)
    errors = {model: {row.label: plot.means([row.mean]) for row in rows if row.model == model} for model in models}
    ranges = Range.of_models(errors, section.content.baseline)
    span = max(own.high - own.low for own in ranges.values())
    points = {m: [(counts[m, row.label], row) for row in rows if row.model == m] for m in models}
    places = {model: Places.of(own, span) for model, own in points.items()}
    noun = section.worst.setting.noun
    summary = f"Error in per cent, mean over the {noun}, by optimizer steps per 1,000 images of the same trials."
    notes = [*plot.notes(spread, cells, shifted=any(own.shifted for own in places.values())), *limits.notes(ranges)]
    notes += [*([ZERO] if any(own.zero for own in places.values()) else []), *left_out]
    text = section.text("updates", "Error by number of updates", summary, rows=section.worst.rows,
                        notes=[section.averaging, *notes])  # fmt: skip
    figure, grid = layout.square_panels(text, models, [layout.legend(styles, linestyle="none")])
    for axes, model in zip(grid, models, strict=True):
        places[model].set_axis(axes, "optimizer steps per 1,000 images")
        looks = {row.label: styles[row.label].point() | {"linestyle": "none"} for _, row in points[model]}
        drawn = list(zip(places[model].x, (row for _, row in points[model]), strict=True))
        for x, row in drawn:
            plot.errors(axes, [(x, row.mean)], spread, looks[row.label])
        ranges[model].apply(axes)
        for x, row in drawn:
            ranges[model].mark(axes, [x], plot.means([row.mean]), looks[row.label])
    yield Drawing(text, figure)
