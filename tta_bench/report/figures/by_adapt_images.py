"""Figure: error by number of images adapted on."""

from __future__ import annotations

from collections.abc import Iterator

from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section, has_result
from tta_bench.report.figures.style import FEW
from tta_bench.report.table import ErrorTable


def draw(section: Section) -> Iterator[Drawing]:
    """The figure at the most severe severity: error on all images, and on those that no trial adapted on."""
    curves = [curve for curve in section.curves if curve.setting.severity == section.worst.setting.severity]
    pairs = [(curve, model) for model in section.worst.models for curve in curves]
    pairs = [(curve, model) for curve, model in pairs if any(has_result(row) for row in curve.of(model))]
    if not pairs:
        return
    rows = [row for curve, model in pairs for row in curve.of(model)]
    styles, left_out = section.drawn((row.label for row in rows if has_result(row)), FEW)
    cells = [cell for row in rows for cell in row.cells.values()]
    spread = plot.Spread.of(cells)
    panels = {f"{model}, {_graded(curve)}": plot.errors_of(curve, model, styles) for curve, model in pairs}
    ranges = Range.of_models(panels, section.content.baseline)
    graded = " and ".join(dict.fromkeys(_graded(curve) for curve, _ in pairs))
    summary = (
        f"Error in per cent by images of each segment adapted on, mean over the {section.worst.setting.noun}, {graded}."
    )
    text = section.text("adapt_images", "Error by number of images adapted on", summary,
                        rows=list({(row.label, row.model): row for row in rows}.values()),
                        notes=[section.averaging, *plot.notes(spread, cells, shifted=len(styles) > 1), *left_out,
                               *limits.notes(ranges)])  # fmt: skip
    figure, grid = layout.square_panels(text, [model for _, model in pairs], [layout.legend(styles)])
    for axes, (curve, model), own in zip(grid, pairs, ranges.values(), strict=True):
        points = {row.label: list(enumerate(row.cells.values())) for row in curve.of(model)}
        plot.lines(axes, points, styles, spread, own)
        axes.set_xticks(range(len(curve.corruptions)), curve.corruptions)
        if "all" in curve.corruptions:
            axes.axvline(len(curve.corruptions) - 1.5, **plot.DOTTED)
        axes.set_xlabel("images of each segment adapted on")
        plot.error_axis(axes, f"error {_graded(curve)}, %")
    yield Drawing(text, figure)


def _graded(curve: ErrorTable) -> str:
    """Which images an error is over."""
    after = max(int(name) for name in curve.corruptions if name != "all")
    return f"after the first {after:,}" if "curve-after" in curve.name else "on all images"
