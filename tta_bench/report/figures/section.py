"""What figures are drawn of: all tables of one data set, protocol and batch size, and words on how they were made."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from tta_bench.report.content import Content
from tta_bench.report.evidence import TRIAL, of_shifts
from tta_bench.report.figures.sheet import Entry, Words
from tta_bench.report.figures.style import Style, styles
from tta_bench.report.table import ErrorTable, Row
from tta_bench.setting import Setting


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn and not saved yet; see :class:`tta_bench.report.figures.Figure`."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """Tables of one setting, by severity.

    Attributes:
        content: the report.
        tables: by severity, the most severe last; at least one.
        curves: by number of images adapted on.
        suffix: of the figures' names: empty where the report has one section.
    """

    content: Content
    tables: list[ErrorTable]
    curves: list[ErrorTable]
    suffix: str

    @property
    def worst(self) -> ErrorTable:
        """The table of the most severe severity."""
        return self.tables[-1]

    @property
    def continual(self) -> bool:
        """Whether a stream is of several shifts, of which one after another or all together are adapted to."""
        trials = self.shifts.groupby(TRIAL, sort=False)["shift"].nunique()
        return bool((trials > 1).any())

    @functools.cached_property
    def styles(self) -> dict[str, Style]:
        """Of all methods of the report."""
        return styles(self.content.labels)

    @functools.cached_property
    def shifts(self) -> pd.DataFrame:
        """The rows that the tables are made from, whatever their status."""
        frame, setting = self.content.evidence.shifts, self.worst.setting
        frame = frame[frame["section"] == setting.base.id]
        return frame[frame["adapt_images"].fillna(0) == setting.adapt_images]

    @property
    def most_severe(self) -> pd.DataFrame:
        """Those of them that are ok and of the most severe severity."""
        frame = self.shifts
        return frame[(frame["status"] == "ok") & (frame["severity"] == self.worst.setting.severity)]

    def per_thousand(self, column: str) -> dict[tuple[str, str], float]:
        """A count for each 1,000 images in segments of the most severe severity, by (source model, method), if known."""
        frame = of_shifts(self.content.evidence.segments, self.most_severe).dropna(subset=[column])
        sums = frame.groupby(["model", "label"], sort=False)[[column, "images"]].sum().astype(float)
        rates = 1000.0 * sums[column] / sums["images"]
        return {(str(model), str(label)): float(rate) for (model, label), rate in rates.items()}

    def styles_of(self, labels: Iterable[str]) -> dict[str, Style]:
        """Styles of the methods that are drawn, in the order of the report."""
        drawn = set(labels)
        return {label: style for label, style in self.styles.items() if label in drawn}

    def conditions(self, *, severity: str = "", further: Sequence[str] = ()) -> str:
        """Data set, severity, protocol, batch size, images and seeds, in words."""
        setting = self.worst.setting
        severity = severity or (f"severity {setting.severity}" if setting.severity else "")
        images = sorted({int(n) for n in self.shifts["images_planned"]})
        seeds = sorted({int(n) for n in self.shifts["seed"]})
        counted = " or ".join(f"{n:,}" for n in images)
        seeded = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
        parts = [setting.dataset, severity, setting.conditions, f"{counted} images of each shift", seeded, *further]
        return ", ".join(part for part in parts if part)

    def words(
        self, title: str, legend: Sequence[Entry], rows: Sequence[Row], conditions: str, notes: Sequence[str] = ()
    ) -> Words:
        """Text of a figure that shows rows of a table."""
        absent = "; ".join(f"{row.label} on {row.model} ({row.mean.state})" for row in rows if not is_known(row))
        said = [*notes, *([f"No result: {absent}"] if absent else [])]
        return Words(title, conditions, said, self.content.warning, legend)

    def caption(self, what: str, conditions: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
        """Everything that a reader must know of a figure."""
        parts = [what, f"{conditions}.", *(f"{note}." for note in notes), *_absent(rows)]
        if self.content.warning:
            parts.append(f"{self.content.warning}.")
        return " ".join(parts)


def sections(content: Content) -> Iterator[Section]:
    """All sections of a report, in order."""
    found: dict[Setting, list[ErrorTable]] = {}
    for table in content.tables:
        found.setdefault(table.setting.base, []).append(table)
    for base, tables in found.items():
        name = tables[-1].name.removesuffix(f"-severity-{tables[-1].setting.severity}").removesuffix("-all")
        curves = [curve for curve in content.curves if curve.setting.base == base]
        yield Section(content, tables, curves, f"-{name}" if len(found) > 1 else "")


def is_known(row: Row) -> bool:
    """Whether a row has any result."""
    return any(cell.mean is not None for cell in row.cells.values())


def _absent(rows: Sequence[Row]) -> Iterator[str]:
    """Sentences on rows without a result, and on rows with fewer cells."""
    for known, words in ((False, "No result"), (True, "Fewer cells or seeds than planned")):
        found: dict[str, list[str]] = {}
        for row in rows:
            if is_known(row) is known and (row.mean.state != "ok"):
                why = f"{row.mean.state}: {row.reason}" if row.reason else row.mean.state
                found.setdefault(why, []).append(f"{row.label} on {row.model}")
        for why, places in found.items():
            yield f"{words}: {', '.join(dict.fromkeys(places))} ({why})."
