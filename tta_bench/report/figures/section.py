"""What figures are drawn from: all tables of one data set, protocol and batch size, and text on how they were made."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tta_bench.report.across import BY
from tta_bench.report.content import Content
from tta_bench.report.error_tables import without_clean
from tta_bench.report.evidence import ALL_IMAGES, CLEAN, TRIAL, of_shifts
from tta_bench.report.figures.layout import FigureText
from tta_bench.report.figures.style import MethodStyle, styles
from tta_bench.report.table import CORRUPTIONS, JOINED, ErrorTable, MethodErrors, TableSetting, shifted_of
from tta_bench.report.words import bounded
from tta_bench.setting import Setting


@dataclass(frozen=True)
class Drawing:
    """A figure in memory; see :class:`tta_bench.report.figures.SavedFigure`."""

    text: FigureText
    figure: Figure


@dataclass(frozen=True)
class Section:
    """Tables of one setting and family of shifts, by severity.

    Attributes:
        content: the report.
        tables: by severity, the most severe last; at least one.
        curves: by number of images adapted on.
        views: along the stream; and by each axis, in the first of the settings that differ in it alone.
        suffix: of the figures' names: empty where the report has one section.
    """

    content: Content
    tables: list[ErrorTable]
    curves: list[ErrorTable]
    views: list[ErrorTable]
    suffix: str

    @property
    def worst(self) -> ErrorTable:
        """The table of the most severe severity."""
        return self.tables[-1]

    @property
    def continual(self) -> bool:
        """Whether a stream has several shifts."""
        trials = self.shifts.groupby(TRIAL, sort=False)["shift"].nunique()
        return self.compound or bool((trials > 1).any())

    @property
    def compound(self) -> bool:
        """Whether shifts are compounds, whose rows are joined."""
        return self.worst.corruptions == [ALL_IMAGES]

    @functools.cached_property
    def styles(self) -> dict[str, MethodStyle]:
        """Of all methods of the report."""
        return styles(self.content.labels)

    @functools.cached_property
    def shifts(self) -> pd.DataFrame:
        """The rows that the tables are made from, of any status."""
        frame, setting = self.content.evidence.shifts, self.worst.setting
        frame = frame[frame["section"] == setting.base.id]
        if setting.family != JOINED:
            frame = frame[frame["family"].isin([setting.family, CLEAN])]
        return frame[(frame["adapt_images"].fillna(0) == setting.adapt_images) & (frame["role"] == "stream")]

    @property
    def most_severe(self) -> pd.DataFrame:
        """The rows of ``shifts`` with status ok that the mean at the most severe severity is over."""
        frame = self.shifts
        frame = without_clean(frame[frame["of_severity"].isin([self.worst.setting.severity, 0])])
        return frame[frame["status"] == "ok"]

    def per_thousand(self, column: str) -> dict[tuple[str, str], float]:
        """A count per 1,000 images in segments of the most severe severity, by (source model, method), where known."""
        frame = of_shifts(self.content.evidence.segments, self.most_severe).dropna(subset=[column])
        sums = frame.groupby(["model", "label"], sort=False)[[column, "images"]].sum().astype(float)
        rates = 1000.0 * sums[column] / sums["images"]
        return {(str(model), str(label)): float(rate) for (model, label), rate in rates.items()}

    def drawn(self, labels: Iterable[str], most: int | None = None) -> tuple[dict[str, MethodStyle], list[str]]:
        """(unique styles of methods that a figure can show, a note on those that it leaves out).

        Args:
            labels: of the methods that have something to draw.
            most: how many; the baseline and those with the lowest mean error on some source model go first.
        """
        own = self.styles_of(labels)
        order = {self.content.baseline: -1}
        for model in self.worst.models:
            rows = sorted(self.worst.of(model), key=lambda row: np.inf if row.mean.mean is None else row.mean.mean)
            for place, row in enumerate(rows):
                order[row.label] = min(place, order.get(row.label, place))
        kept: dict[MethodStyle, str] = {}
        for label in sorted(own, key=lambda label: order.get(label, len(own)))[:most]:
            kept.setdefault(own[label], label)
        left_out = [label for label in own if label not in kept.values()]
        told = f"Left out here, {len(left_out)} of {len(own)} methods, with higher errors: {', '.join(left_out)}"
        return {label: style for label, style in own.items() if label not in left_out}, [told] * bool(left_out)

    @property
    def averaging(self) -> str:
        """``Means over 15 corruptions and 2 seeds``."""
        shifts = len(shifted_of(self.worst.corruptions))
        over = [f"{shifts} {self.worst.setting.noun}"] if self.worst.averaged and shifts > 1 else []
        over += [f"{self.worst.seeds} seeds"] if self.worst.seeds > 1 else []
        return f"Means over {' and '.join(over)}" if over else ""

    def styles_of(self, labels: Iterable[str]) -> dict[str, MethodStyle]:
        """Styles of the given methods, in the report's order."""
        shown = set(labels)
        return {label: style for label, style in self.styles.items() if label in shown}

    def text(
        self, name: str, title: str, summary: str, *,
        rows: Sequence[MethodErrors], notes: Iterable[str] = (), severity: str | None = None, further: str | None = None,
        setting: TableSetting | None = None,
    ) -> FigureText:  # fmt: skip
        """Text of a figure.

        Args:
            name: of the kind of figure.
            title: a few words.
            summary: what is drawn, in a sentence or two.
            rows: of the tables; those without a result are listed.
            notes: how to read the figure.
            severity: if not the most severe.
            further: conditions.
            setting: if not that of the table of the most severe severity.
        """
        conditions = self._conditions(setting or self.worst.setting, severity, further)
        notes, warning = [note for note in notes if note], self.content.warning
        sentences = [summary, f"{conditions}.", *(f"{note}." for note in notes), *_absent(rows)]
        sentences += [f"{warning}."] if warning else []
        absent = [f"{row.label} on {row.model} ({row.mean.state})" for row in rows if not has_result(row)]
        notes += [f"No result: {'; '.join(dict.fromkeys(absent))}"] if absent else []
        return FigureText(f"{name}{self.suffix}", title, " ".join(sentences), conditions, notes, warning)

    def _conditions(self, setting: TableSetting, severity: str | None, further: str | None) -> str:
        """``CIFAR-10-C, severity 5, protocol reset, batch size 200, 10,000 images of each shift, seed 0``."""
        if severity is None and setting.severity:
            severity = f"severity {setting.severity}"
        planned = self.shifts["images_planned"].astype(int)
        images = " to ".join(f"{n:,}" for n in dict.fromkeys((planned.min(), planned.max())))
        images += " clean images" if self.compound else " images of each shift"
        seeds = sorted({int(n) for n in self.shifts["seed"]})
        seeded = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
        family = "" if setting.family == CORRUPTIONS else setting.noun
        parts = [setting.dataset, family, severity, setting.conditions, images, seeded, further]
        return ", ".join(part for part in parts if part)


def sections(content: Content) -> Iterator[Section]:
    """All sections of a report, in order."""
    by_setting: dict[tuple[Setting, str], list[ErrorTable]] = {}
    for table in content.tables:
        by_setting.setdefault((table.setting.base, table.setting.family), []).append(table)
    by_axis = [view for view in content.views if view.view.startswith(BY)]
    for (base, family), tables in by_setting.items():
        curves = [curve for curve in content.curves if _is_of(curve, base, family)]
        views = [view for view in content.views if _is_of(view, base, family) and view not in by_axis]
        views += [view for view in by_axis if _is_of(view, base.without(view.view.removeprefix(BY)), family)]
        by_axis = [view for view in by_axis if view not in views]
        yield Section(content, tables, curves, views, _suffix(tables[-1]) if len(by_setting) > 1 else "")


def _is_of(table: ErrorTable, base: Setting, family: str) -> bool:
    return (table.setting.base, table.setting.family) == (base, family)


def _suffix(table: ErrorTable) -> str:
    """What tells the names of a section's figures apart: that of its table, without the severity."""
    name = re.sub(rf"(^|-)(severity-{table.setting.severity}|all)$", "", table.name)
    return f"-{name}" if name else ""


def has_result(row: MethodErrors) -> bool:
    """Whether any cell of a row has a result."""
    return any(cell.mean is not None for cell in row.cells.values())


def _absent(rows: Sequence[MethodErrors]) -> Iterator[str]:
    """Sentences on rows without a result, and on rows with fewer cells."""
    for known, heading in ((False, "No result"), (True, "Fewer cells or seeds than planned")):
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if has_result(row) is known and row.mean.state != "ok":
                reason = f"{row.mean.state}: {bounded(row.reason)}" if row.reason else row.mean.state
                by_reason.setdefault(reason, []).append(f"{row.label} on {row.model}")
        for reason, names in by_reason.items():
            yield f"{heading}: {', '.join(dict.fromkeys(names))} ({reason})."
