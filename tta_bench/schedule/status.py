"""A run's status: counts and errors so far, and ``status.json``, which ``tta-bench status`` reads in another terminal."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tta_bench.files import sealed

if TYPE_CHECKING:
    from tta_bench.schedule.progress import TrialProgress

STATUS_FILE = "status.json"
EVERY_S = 1.0  # between updates of a running driver


def row_of(protocol: str, families: Iterable[str]) -> str:
    """The row of a trial whose shifts have these families: ``reset``, or ``reset, natural``.

    Args:
        protocol: with its parameters.
        families: of its shifts.
    """
    others = [family for family in dict.fromkeys(families) if family not in _USUAL]
    return ", ".join([protocol, *others])


_USUAL = ("clean", "corruption", "compound")


@dataclass
class _TallyCell:
    """Attributes: planned: trials of a row and source model; errors: of those with status ok, per cent."""

    planned: int = 0
    errors: list[float] = field(default_factory=list)


class Tally:
    """Counts trials by status and collects their errors.

    Args:
        planned: (label, protocol, model, corruptions) of every trial, in plan order; the protocol as in :func:`row_of`.

    Attributes:
        total: number of planned trials.
    """

    def __init__(self, planned: Iterable[tuple[str, str, str, Iterable[str]]]):
        self._cells: dict[tuple[str, str, str], _TallyCell] = {}
        self.statuses: Counter[str] = Counter()
        self.total = 0
        for *key, corruptions in planned:
            self.total += 1
            cell = self._cells.setdefault(tuple(key), _TallyCell())  # type: ignore[arg-type]
            cell.planned += any(name != "clean" for name in corruptions)

    @property
    def done(self) -> int:
        """Number of trials with a result, of any status."""
        return sum(self.statuses.values())

    def add(self, label: str, protocol: str, model: str, status: str, shifts: Iterable[Mapping[str, Any]]) -> None:
        """Count a trial; ``shifts`` are its rows of the table of that name."""
        self.statuses[status] += 1
        corrupted = [row for row in shifts if row["corruption"] != "clean"] if status == "ok" else []
        if images := sum(row["images"] for row in corrupted):
            error = sum(row["images"] * row["error_pct"] for row in corrupted) / images
            self._cells[label, protocol, model].errors.append(error)

    def table(self) -> Table:
        """Mean errors so far, methods under each protocol × source models, without clean images, as in the report.

        A mean over fewer trials than planned shows their number: such means are over different trials and cannot be
        compared yet.
        """
        keys = [key for key, cell in self._cells.items() if cell.planned] or [*self._cells]  # else clean images alone
        labels, protocols, models = (list(dict.fromkeys(key[i] for key in keys)) for i in range(3))
        headings = ["protocol"] if len(protocols) > 1 else []
        table = Table("mean error, %", *headings, *models, box=None, pad_edge=False, header_style="bold")
        for protocol, label in itertools.product(protocols, labels):
            means = [self._mean(label, protocol, model) for model in models]
            table.add_row(
                Text(label), *(Text(protocol) for _ in headings), *(Text(mean, justify="right") for mean in means)
            )
        for column in table.columns[1 + len(headings) :]:
            column.justify = "right"
        return table

    def _mean(self, label: str, protocol: str, model: str) -> str:
        cell = self._cells.get((label, protocol, model))
        if cell is None or not cell.errors:
            return "–"
        mean = f"{sum(cell.errors) / len(cell.errors):.1f}"
        return mean if len(cell.errors) == cell.planned else f"{mean} ({len(cell.errors)} of {cell.planned})"

    def counts(self) -> str:
        """ "412 of 495 trials: 400 ok, 12 failed"."""
        parts = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        return f"{self.done} of {self.total} trials" + (f": {parts}" if parts else "")


class StatusFile:
    """Writes ``status.json`` into a run's folder.

    Args:
        run: the folder.
        progress: of this session.
    """

    def __init__(self, run: pathlib.Path, progress: TrialProgress):
        self._file, self._progress = run / STATUS_FILE, progress
        self._written = float("-inf")

    def update(self, *, state: str = "running", now: bool = False) -> None:
        """Write the file, at most once a second unless ``now``."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        self._written = time.monotonic()
        content = {
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": time.time(),
            "session": self._progress.summary(),
            "workers": list(self._progress.workers) if state == "running" else [],
        }
        scratch = self._file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(sealed(content)), encoding="utf-8")  # no fsync: it is replaced within a second
        scratch.replace(self._file)


def duration(seconds: float) -> str:
    """ "2 h 05 min", "3 min", "12 s"."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{hours} h {round(seconds % 3600 / 60):02d} min"
