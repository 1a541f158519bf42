"""The one model of a printed table, which the terminal, Markdown, LaTeX and the page render."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tta_bench.report.table import Mark

# Column heads: short ones for a terminal, where 15 and more must fit in 120 characters, and those of print.
_HEADS = {
    "gaussian_noise": ("gauss", "Gauss."), "shot_noise": ("shot", "Shot"), "impulse_noise": ("imp", "Impul."),
    "defocus_blur": ("defoc", "Defoc."), "glass_blur": ("glass", "Glass"), "motion_blur": ("motn", "Motion"),
    "zoom_blur": ("zoom", "Zoom"), "snow": ("snow", "Snow"), "frost": ("frost", "Frost"), "fog": ("fog", "Fog"),
    "brightness": ("brit", "Brit."), "contrast": ("cont", "Contr."), "elastic_transform": ("elas", "Elast."),
    "pixelate": ("pix", "Pixel"), "jpeg_compression": ("jpeg", "JPEG"), "speckle_noise": ("speck", "Speckle"),
    "gaussian_blur": ("gblur", "G.\N{NO-BREAK SPACE}blur"), "spatter": ("spatt", "Spatter"),
    "saturate": ("satur", "Saturate"), "clean": ("clean", "Clean"), "mean": ("mean", "Mean"),
    "imagenet_r": ("R", "ImageNet-R"), "imagenet_a": ("A", "ImageNet-A"), "imagenet_sketch": ("sketch", "Sketch"),
    "imagenet_v2_matched_frequency": ("V2 freq", "V2 (matched freq.)"), "imagenet_v2_top_images": ("V2 top", "V2 (top)"),
    "imagenet_v2_threshold_0.7": ("V2 0.7", "V2 (thr. 0.7)"),
}  # fmt: skip

Kind = Literal["cell", "mean", "interval", "number", "text"]


@dataclass(frozen=True)
class GridCell:
    """A printed cell.

    Attributes:
        value: a number with its decimals, "–", a state, or text.
        spread: standard deviation over seeds.
        mark: as in :class:`tta_bench.report.table.Cell`.
        starred: a mean over fewer trials than planned.
        state: "ok", "failed", "skipped" or "missing".
        note: shown on the page when the pointer is over the cell.
    """

    value: str
    spread: str | None = None
    mark: Mark = ""
    starred: bool = False
    state: str = "ok"
    note: str | None = None

    @property
    def text(self) -> str:
        """``12.3±0.4*``."""
        return f"{self.value}{f'±{self.spread}' if self.spread else ''}{'*' if self.starred else ''}"


@dataclass(frozen=True)
class Column:
    """Attributes: short, head: its head on a terminal, in print; kind: of its cells; group: head above several columns."""

    short: str
    head: str
    kind: Kind
    group: str = ""

    @classmethod
    def named(cls, name: str, group: str = "") -> Column:
        """The column of a corruption, of a mean, or of another axis' value."""
        return cls(*_HEADS.get(name, (name, name)), "mean" if name == "mean" else "cell", group)


@dataclass(frozen=True)
class GridRow:
    """Attributes: name: head of the row; cells: one for each column; labels, model: what the page's filter goes by."""

    name: str
    cells: list[GridCell]
    labels: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True)
class RowGroup:
    """Attributes: title: usually a source model; rows: usually its methods; state: colours the title."""

    title: str
    rows: list[GridRow]
    state: str = "ok"


@dataclass(frozen=True)
class Grid:
    """A printed table.

    Attributes:
        name: unique in the report, for files and links.
        title: a few words.
        warnings: why the table is no result.
        caption: sentences that state the conditions.
        legend: sentences that explain marks and columns.
        columns: all but the first, which holds the names of rows.
        groups: of rows.
        head: of the first column.
    """

    name: str
    title: str
    warnings: tuple[str, ...]
    caption: list[str]
    legend: list[str]
    columns: list[Column]
    groups: list[RowGroup]
    head: str = "method"

    @property
    def warning(self) -> str:
        """All warnings in a line."""
        return "; ".join(self.warnings)

    @property
    def column_groups(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns of one group."""
        return [(name, list(columns)) for name, columns in itertools.groupby(self.columns, lambda c: c.group)]

    @property
    def rows(self) -> list[GridRow]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    def taking(self, positions: Sequence[int]) -> Grid:
        """The grid with some of its columns."""
        taken = self._with_rows(lambda row: replace(row, cells=[row.cells[i] for i in positions]))
        return replace(taken, columns=[self.columns[i] for i in positions])

    def without_spread(self) -> Grid:
        """The grid without the spread over seeds, but for that of means."""

        def bare(row: GridRow) -> GridRow:
            pairs = zip(self.columns, row.cells, strict=True)
            return replace(row, cells=[replace(c, spread=None) if column.kind == "cell" else c for column, c in pairs])

        return self._with_rows(bare)

    def _with_rows(self, change: Callable[[GridRow], GridRow]) -> Grid:
        return replace(self, groups=[replace(group, rows=[*map(change, group.rows)]) for group in self.groups])

    def pages(self, height: int) -> Iterator[Grid]:
        """The grid in parts of at most ``height`` rows, split between groups where possible."""
        parts: list[list[RowGroup]] = [[]]
        for group in self.groups:
            for first in range(0, len(group.rows), height):
                rows = group.rows[first : first + height]
                if parts[-1] and sum(len(g.rows) for g in parts[-1]) + len(rows) > height:
                    parts.append([])
                parts[-1].append(replace(group, rows=rows))
        for part in parts:
            yield replace(self, groups=part)
