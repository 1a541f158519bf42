"""Figure: average ranks with critical differences (Demšar 2006), for all source models together and for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from matplotlib.axes import Axes

from tta_bench.report.figures import layout
from tta_bench.report.figures.section import Drawing, Section
from tta_bench.report.figures.style import GRID, MethodStyle
from tta_bench.report.statistics import Ranks

_LEVEL = 0.05
_EACH = 12  # ranks that each have a tick; of more, 1 and the multiples of 5 have one
_SUMMARY = (
    "Average rank of each method over corruptions and source models, 1 is best (Nemenyi's critical difference, CD)."
)


def draw(section: Section) -> Iterator[Drawing]:
    """The figure of the most severe severity, where three methods or more have ranks."""
    table = section.worst
    if not table.ranks:
        return
    whole = table.models[0] if len(table.models) == 1 else "all source models"
    by_model = {name or whole: ranks for name, ranks in table.ranks.items()}
    text = section.text("ranks", "Average ranks", _SUMMARY, rows=table.rows, notes=_notes(by_model))
    labels = layout.widest(label for ranks in by_model.values() for label in ranks.labels)
    methods = max(len(ranks.labels) for ranks in by_model.values())
    width = max(layout.COLUMN_WIDTH, labels + max(2.9, 0.5 + 1.15 * layout.widest(by_model)))
    columns = 2 if len(by_model) > 1 and 2 * width <= layout.TEXT_WIDTH else 1
    figure, grid = layout.panels(text, list(by_model), [], width=columns * width, height=0.8 + 0.16 * methods,
                                 columns=columns)  # fmt: skip
    for axes, ranks in zip(grid, by_model.values(), strict=True):
        _panel(axes, ranks, section.styles)
    yield Drawing(text, figure)


def _notes(by_model: Mapping[str, Ranks]) -> Iterator[str]:
    yield (
        "Bars: ± half the critical difference (CD) at 5\u00a0%; methods whose bars overlap do not differ significantly; "
        "grey: the bar of the best"
    )
    if equal := [name for name, ranks in by_model.items() if ranks.p >= _LEVEL]:
        yield f"Friedman's test does not reject at 5\u00a0% that all methods are equal: {', '.join(equal)}"
    left_out: dict[str, list[str]] = {}
    for name, ranks in by_model.items():
        if ranks.left_out:
            left_out.setdefault(", ".join(ranks.left_out), []).append(name)
    for labels, names in left_out.items():
        yield f"Left out, as they lack a result in some of the cells: {labels} ({', '.join(names)})"


def _panel(axes: Axes, ranks: Ranks, styles: Mapping[str, MethodStyle]) -> None:
    """Methods from top to bottom, the best first."""
    half, count = ranks.critical / 2, len(ranks.labels)
    axes.axvspan(ranks.ranks[0] - half, ranks.ranks[0] + half, color=GRID, alpha=0.6, linewidth=0)
    for number, (label, rank) in enumerate(zip(ranks.labels, ranks.ranks, strict=True)):
        axes.errorbar([rank], [number], xerr=half, linestyle="none", elinewidth=1.2, **styles[label].point())
    axes.set_yticks(range(count), [layout.shorten(label) for label in ranks.labels])
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0.5, count + 0.5)
    step = 1 if count <= _EACH else 5 if count <= 8 * _EACH else 10
    axes.set_xticks([1, *range(step, count + 1, step)] if step > 1 else range(1, count + 1))
    p = "p < 0.001" if ranks.p < 0.001 else f"p = {ranks.p:.3f}"
    axes.set_xlabel(f"average rank\n{ranks.blocks} cells, Friedman {p}, CD = {ranks.critical:.2f}", size=7)
