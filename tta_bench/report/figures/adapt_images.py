"""Figure: error against the number of images adapted on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from tta_bench.report.figures import plot, sheet
from tta_bench.report.figures.section import Drawn, Section, is_known
from tta_bench.report.figures.style import MUTED
from tta_bench.report.table import ErrorTable, Row

_TITLE = "Error by number of images adapted on"
_STEP = 0.12  # of the axis, between the largest number and "all"


def draw(section: Section) -> Iterator[Drawn]:
    """The figure at the most severe severity: over all images, and over those that no point was adapted on."""
    curves = [c for c in section.curves if c.setting.severity == section.worst.setting.severity]
    panels = [(curve, model) for model in section.worst.models for curve in curves]
    panels = [(curve, model) for curve, model in panels if any(is_known(row) for row in curve.of(model))]
    if not panels:
        return
    rows = [row for curve, model in panels for row in curve.of(model)]
    styles = section.styles_of(row.label for row in rows if is_known(row))
    cells = [cell for row in rows for cell in row.cells.values()]
    spread = plot.Spread.of(cells)
    notes, conditions = spread.notes(cells, apart=len(styles) > 1), section.conditions()
    words = section.words(_TITLE, sheet.lines(styles, points=True), _said(rows), conditions, notes)
    page = sheet.Sheet(words, [model for _, model in panels], sheet.Room(2.6, 1.8), columns=2 if len(panels) > 1 else 1)
    for axes, (curve, model) in zip(page.axes, panels, strict=True):
        places = positions(curve.corruptions)
        step = min(0.015, 0.1 / len(styles)) * (max(places.values()) - min(places.values()))
        for row in curve.of(model):
            if is_known(row):
                aside = (list(styles).index(row.label) - (len(styles) - 1) / 2) * step
                points = [(places[name] + aside, cell) for name, cell in row.cells.items()]
                plot.series(axes, points, styles[row.label], spread)
        _axis(axes, places, f"error {_graded(curve)}, %")
    graded = " and ".join(dict.fromkeys(_graded(curve) for curve, _ in panels))
    what = f"Error in per cent by images of each segment adapted on, mean over the corruptions, {graded}."
    caption = section.caption(what, conditions, _said(rows), notes)
    yield Drawn(f"adapt_images{section.suffix}", _TITLE, caption, page.figure)


def positions(columns: Sequence[str]) -> dict[str, float]:
    """Where numbers of images stand on the axis: by their logarithm, "all" further right than the largest."""
    numbers = {name: math.log10(max(int(name), 1)) for name in columns if name != "all"}
    if "all" not in columns:
        return numbers
    span = max(numbers.values()) - min(numbers.values())
    return numbers | {"all": max(numbers.values()) + max(_STEP, 0.25 * span)}


def _said(rows: Sequence[Row]) -> list[Row]:
    """Each method and source model once."""
    return list({(row.label, row.model): row for row in rows}.values())


def _graded(curve: ErrorTable) -> str:
    """Which images an error is over."""
    after = max(int(name) for name in curve.corruptions if name != "all")
    return f"after the first {after:,}" if "curve-after" in curve.name else "on all images"


def _axis(axes: Axes, places: dict[str, float], label: str) -> None:
    axes.set_xticks(list(places.values()), list(places))
    if "all" in places:
        before = sorted(places.values())[-2]
        axes.axvline((before + places["all"]) / 2, color=MUTED, linewidth=0.5, linestyle=(0, (1, 2)))
    axes.set_xlabel("images of each segment adapted on")
    sheet.error_axis(axes, label)
