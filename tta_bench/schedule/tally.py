"""What a run has come to so far: counts, and the error of each method, for those who watch it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass
class _Cell:
    """Attributes: planned: trials of a method and model; errors: of those that are ok, per cent."""

    planned: int = 0
    errors: list[float] = field(default_factory=list)


class Tally:
    """Counts trials and keeps their errors.

    Args:
        planned: (label, model, corruptions) of every trial, in plan order.

    Attributes:
        total: trials planned.
    """

    def __init__(self, planned: Iterable[tuple[str, str, Iterable[str]]]):
        self._cells: dict[tuple[str, str], _Cell] = {}
        self.statuses: Counter[str] = Counter()
        self.total = 0
        for label, model, corruptions in planned:
            self.total += 1
            self._cells.setdefault((label, model), _Cell()).planned += any(name != "clean" for name in corruptions)

    @property
    def done(self) -> int:
        """Trials that have ended, however."""
        return sum(self.statuses.values())

    def add(self, label: str, model: str, status: str, shifts: Iterable[Mapping[str, Any]]) -> None:
        """A trial has ended; ``shifts`` are its rows."""
        self.statuses[status] += 1
        images = correct = 0
        for row in (row for row in shifts if row["corruption"] != "clean"):
            images, correct = images + row["images"], correct + row["correct"]
        if status == "ok" and images:
            self._cells[label, model].errors.append(100.0 * (images - correct) / images)

    def table(self) -> Table:
        """Mean error of the trials that are ok, methods × models, clean left out as in the report; a mean over fewer than
        planned says over how many.

        Such means are over different trials and cannot be compared yet.
        """
        labels, models = (list(dict.fromkeys(place[i] for place in self._cells)) for i in (0, 1))
        table = Table("mean error, %", *models, box=None, pad_edge=False, header_style="bold")
        for label in labels:
            table.add_row(Text(label), *(Text(self._cell(label, model), justify="right") for model in models))
        for column in table.columns[1:]:
            column.justify = "right"
        return table

    def _cell(self, label: str, model: str) -> str:
        cell = self._cells.get((label, model))
        if cell is None or not cell.errors:
            return "–"
        mean = f"{sum(cell.errors) / len(cell.errors):.1f}"
        return mean if len(cell.errors) == cell.planned else f"{mean} ({len(cell.errors)} of {cell.planned})"

    def counts(self) -> str:
        """ "412 of 495 trials: 400 ok, 12 failed"."""
        parts = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        return f"{self.done} of {self.total} trials" + (f": {parts}" if parts else "")


def duration(seconds: float | None) -> str:
    """ "2 h 05 min", "3 min", "12 s"; empty where it is not known."""
    if seconds is None:
        return ""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{hours} h {round(seconds % 3600 / 60):02d} min"
