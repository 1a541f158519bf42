"""Figure: average ranks with critical differences (Demšar 2006), for all source models together and for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes

from tta_bench.report.figures import sheet, text
from tta_bench.report.figures.section import Drawn, Section
from tta_bench.report.figures.style import INK, MUTED, Style
from tta_bench.report.statistics import Ranks

_TITLE = "Average ranks"
_ROW, _CLIQUE = 0.19, 0.09  # inches
_ABOVE = 0.42  # the critical difference and the axis' numbers, inches
_LONGEST = 2.4  # label, inches
_LEVEL = 0.05


def draw(section: Section) -> Iterator[Drawn]:
    """The figure of the most severe severity, where three methods or more have ranks."""
    table = section.worst
    if not table.ranks:
        return
    single = len(table.models) == 1
    titles = [
        _titled(name or (table.models[0] if single else "all source models"), r) for name, r in table.ranks.items()
    ]
    conditions = section.conditions()
    notes = list(_notes(table.ranks))
    words = section.words(_TITLE, [], [], conditions, notes)
    room = _room(list(table.ranks.values()))
    page = sheet.Sheet(words, titles, room)
    for axes, ranks in zip(page.axes, table.ranks.values(), strict=True):
        _panel(axes, ranks, room.height, section.styles)
    what = (
        "Average rank of each method over corruptions and source models, 1 is best (Nemenyi's critical difference, CD)."
    )
    yield Drawn(f"ranks{section.suffix}", _TITLE, section.caption(what, conditions, table.rows, notes), page.figure)


def _titled(name: str, ranks: Ranks) -> str:
    p = "p < 0.001" if ranks.p < 0.001 else f"p = {ranks.p:.3f}"
    return f"{name}, {ranks.blocks} cells, Friedman {p}"


def _notes(found: Mapping[str, Ranks]) -> Iterator[str]:
    yield "Thick lines join methods whose ranks differ by less than the critical difference at 5\u00a0%"
    alike = [name or "all source models" for name, ranks in found.items() if ranks.p >= _LEVEL]
    if alike:
        yield f"Friedman's test does not reject at 5\u00a0% that all methods are alike: {', '.join(alike)}"
    left: dict[str, list[str]] = {}
    for name, ranks in found.items():
        if ranks.left_out:
            left.setdefault(", ".join(ranks.left_out), []).append(name or "all source models")
    for labels, names in left.items():
        yield f"Left out, for they lack a result in some of the cells: {labels} ({', '.join(names)})"


def _half(ranks: Ranks) -> int:
    return (len(ranks.labels) + 1) // 2


def _room(found: Sequence[Ranks]) -> sheet.Room:
    left = [label for ranks in found for label in ranks.labels[: _half(ranks)]]
    right = [label for ranks in found for label in ranks.labels[_half(ranks) :]]
    sides = [min(_LONGEST, text.widest(labels, 8)) + 0.2 for labels in (left, right)]
    height = max(_ABOVE + _depth(ranks) + _ROW * _half(ranks) for ranks in found)
    return sheet.Room(2.6, height, left=sides[0], right=sides[1], bottom=0.1)


def _levels(ranks: Ranks) -> list[tuple[int, int, int]]:
    """(first, last, level) of each clique: those that overlap are drawn below one another."""
    ends: list[float] = []
    placed = []
    for first, last in ranks.cliques():
        level = next((i for i, end in enumerate(ends) if end < ranks.ranks[first] - 0.05), len(ends))
        ends[level : level + 1] = [float(ranks.ranks[last])]
        placed.append((first, last, level))
    return placed


def _depth(ranks: Ranks) -> float:
    """From the axis to below the cliques, inches."""
    return 0.14 + _CLIQUE * (1 + max((level for *_, level in _levels(ranks)), default=-1))


def _panel(axes: Axes, ranks: Ranks, height: float, styles: dict[str, Style]) -> None:
    """x is the rank; y is inches below the top."""
    count = len(ranks.labels)
    axes.set_xlim(1, count)
    axes.set_ylim(height, 0)
    axes.axis("off")
    axes.plot([1, count], [_ABOVE, _ABOVE], color=INK, linewidth=0.8, clip_on=False)
    axes.vlines(range(1, count + 1), _ABOVE - 0.04, _ABOVE, colors=INK, linewidth=0.8, clip_on=False)
    for rank in range(1, count + 1):
        axes.text(rank, _ABOVE - 0.07, str(rank), ha="center", va="bottom", fontsize=8)
    _difference(axes, ranks, count)
    for number, (label, rank) in enumerate(zip(ranks.labels, ranks.ranks, strict=True)):
        _method(axes, ranks, number, label, float(rank), styles[label])
    for first, last, level in _levels(ranks):
        y = _ABOVE + 0.09 + _CLIQUE * level
        ends = [ranks.ranks[first] - 0.012 * count, ranks.ranks[last] + 0.012 * count]
        axes.plot(ends, [y, y], color=INK, linewidth=3, solid_capstyle="butt", clip_on=False, zorder=4)


def _difference(axes: Axes, ranks: Ranks, count: int) -> None:
    said = f"CD = {ranks.critical:.2f}"
    if ranks.critical > count - 1:
        axes.text(1, 0.14, f"{said}, more than any two ranks can differ by", va="bottom", fontsize=7.5, color=MUTED)
        return
    ends = [1, 1 + ranks.critical]
    axes.plot(ends, [0.1, 0.1], color=INK, linewidth=1.2, clip_on=False)
    axes.vlines(ends, 0.06, 0.14, colors=INK, linewidth=1.2, clip_on=False)
    axes.text(ends[1] + 0.02 * count, 0.1, said, va="center", fontsize=7.5)


def _method(axes: Axes, ranks: Ranks, number: int, label: str, rank: float, style: Style) -> None:
    """A line from the method's rank down, and to its name at the side."""
    left = number < _half(ranks)
    row = number if left else len(ranks.labels) - 1 - number
    y = _ABOVE + _depth(ranks) + _ROW * (row + 0.4)
    side = 1 - 0.02 * len(ranks.labels) if left else len(ranks.labels) + 0.02 * len(ranks.labels)
    axes.plot([rank, rank, side], [_ABOVE, y, y], clip_on=False, **style.line)
    axes.plot([rank], [_ABOVE], clip_on=False, linestyle="none", **style.point())
    said = f"{text.shortened(label, _LONGEST, 8)}"
    axes.annotate(said, (side, y), (-3 if left else 3, 0), textcoords="offset points", va="center",
                  ha="right" if left else "left", fontsize=8, annotation_clip=False)  # fmt: skip
