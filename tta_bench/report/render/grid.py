"""A table as it is printed, whatever on: what stands in each place, how it is marked, what its caption says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tta_bench.report.table import Mark

# Column heads: on a terminal, where 15 of them and more must fit 120 characters; and in print.
_HEADS = {
    "gaussian_noise": ("gauss", "Gauss."), "shot_noise": ("shot", "Shot"), "impulse_noise": ("imp", "Impul."),
    "defocus_blur": ("defoc", "Defoc."), "glass_blur": ("glass", "Glass"), "motion_blur": ("motn", "Motion"),
    "zoom_blur": ("zoom", "Zoom"), "snow": ("snow", "Snow"), "frost": ("frost", "Frost"), "fog": ("fog", "Fog"),
    "brightness": ("brit", "Brit."), "contrast": ("cont", "Contr."), "elastic_transform": ("elas", "Elast."),
    "pixelate": ("pix", "Pixel"), "jpeg_compression": ("jpeg", "JPEG"), "speckle_noise": ("speck", "Speckle"),
    "gaussian_blur": ("gblur", "G.\N{NO-BREAK SPACE}blur"), "spatter": ("spatt", "Spatter"),
    "saturate": ("satur", "Saturate"), "clean": ("clean", "Clean"), "mean": ("mean", "Mean"),
}  # fmt: skip

Kind = Literal["cell", "mean", "interval", "number", "text"]


@dataclass(frozen=True)
class Entry:
    """What stands in one place.

    Attributes:
        value: a number with its decimals, "–", or a state.
        spread: standard deviation over seeds, or empty.
        mark: as in :class:`tta_bench.report.table.Cell`.
        starred: it is over fewer cells than were planned.
        state: "ok", "failed", "skipped" or "missing".
    """

    value: str
    spread: str = ""
    mark: Mark = ""
    starred: bool = False
    state: str = "ok"

    @property
    def text(self) -> str:
        """``12.3±0.4*``."""
        return f"{self.value}{f'±{self.spread}' if self.spread else ''}{'*' if self.starred else ''}"


@dataclass(frozen=True)
class Column:
    """Attributes: short, head: on a terminal, in print; group: stands above it; kind: what is in it."""

    short: str
    head: str
    kind: Kind
    group: str = ""


@dataclass(frozen=True)
class Line:
    """Attributes: name: of a method; entries: one for each column."""

    name: str
    entries: list[Entry]


@dataclass(frozen=True)
class Section:
    """Attributes: title: a source model; lines: of its methods."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        name: unique in the report, for files and labels.
        title: a few words.
        warning: that it is no result, and why; empty where there is nothing to warn of.
        caption: sentences that state the conditions.
        legend: sentences that explain marks and columns.
        columns: all but the first, which holds the names of lines.
        sections: by source model.
    """

    name: str
    title: str
    warning: str
    caption: list[str]
    legend: list[str]
    columns: list[Column]
    sections: list[Section]

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns of one group."""
        found: list[tuple[str, list[Column]]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1][1].append(column)
            else:
                found.append((column.group, [column]))
        return found

    def column(self, position: int) -> list[Entry]:
        """A column's entries."""
        return [line.entries[position] for section in self.sections for line in section.lines]

    def taking(self, positions: Sequence[int]) -> Grid:
        """The grid with some of its columns."""

        def taken(line: Line) -> Line:
            return replace(line, entries=[line.entries[i] for i in positions])

        sections = [replace(section, lines=[taken(line) for line in section.lines]) for section in self.sections]
        return replace(self, columns=[self.columns[i] for i in positions], sections=sections)

    def pages(self, height: int) -> Iterator[Grid]:
        """The grid in parts of at most ``height`` lines, cut between sections where that is possible."""
        parts: list[list[Section]] = [[]]
        for section in self.sections:
            for first in range(0, len(section.lines), height):
                piece = replace(section, lines=section.lines[first : first + height])
                if parts[-1] and sum(len(s.lines) for s in parts[-1]) + len(piece.lines) > height:
                    parts.append([])
                parts[-1].append(piece)
        for part in parts:
            yield replace(self, sections=part)


def heads(name: str) -> tuple[str, str]:
    """A column's head on a terminal and in print; the name itself where no shorter one is known."""
    return _HEADS.get(name, (name, name))


def plain(text: str) -> str:
    """Text that can be a part of a file's name or of a label: small letters, digits and hyphens."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
