"""The table of ``tta-bench run --dry-run --measure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tta_bench.precision import Mode
from tta_bench.run.measurement import Measured, agreement_pct
from tta_bench.schedule.estimates import row_seconds
from tta_bench.schedule.packing import Card, share_of_gpu, trials_at_once
from tta_bench.schedule.status import duration
from tta_bench.suite.measuring import Row
from tta_bench.suite.plan import Trial

Outcome = Measured | str  # or why there is no measurement
_HEAD = ("", "mode", "images/s", "compile", "memory", "agreement", "suite")
_NONE = "–"


@dataclass(frozen=True)
class Comparison:
    """Rows of a plan in several modes.

    Attributes:
        rows: the trials of each row, all in one mode.
        outcomes: by row, then mode; of the default mode, the reference, first.
        at_once: trials that run at the same time without sharing a device.
        card: the GPU that they were measured on, or None.
    """

    rows: Mapping[Row, Sequence[Trial]]
    outcomes: Mapping[Row, Mapping[Mode, Outcome]]
    at_once: int
    card: Card | None

    def text(self) -> str:
        """A table with a line for each row and mode, and below it how long the suite would take in each mode."""
        lines = [_HEAD, *(line for row in self.rows for line in self._lines(row))]
        modes = list(dict.fromkeys(mode for outcomes in self.outcomes.values() for mode in outcomes))
        count = sum(map(len, self.rows.values()))
        head = f"suite: its {count} trials in one mode take about, on this machine, {self.at_once} at a time:"
        return "\n".join([aligned(lines), "", head, *(f"  {mode.text}: {self._total(mode)}" for mode in modes)])

    def _lines(self, row: Row) -> list[tuple[str, ...]]:
        outcomes = self.outcomes[row]
        reasons = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
        if len(reasons) == len(outcomes) and len(set(reasons)) == 1:
            return [(row.text, "all", reasons[0])]
        names = [row.text, *[""] * (len(outcomes) - 1)]
        return [
            (name, mode.text, *((outcome,) if isinstance(outcome, str) else self._cells(row, outcome)))
            for name, (mode, outcome) in zip(names, outcomes.items(), strict=True)
        ]

    def _cells(self, row: Row, outcome: Measured) -> tuple[str, ...]:
        reference = self.outcomes[row][Mode()]
        return (
            f"{outcome.images_per_s:,.0f}",
            f"{outcome.compile_s:.0f} s" if outcome.compile_s else _NONE,
            _NONE if outcome.held_mib is None else f"{outcome.held_mib:,.0f} MiB",
            _NONE if isinstance(reference, str) else f"{agreement_pct(outcome.predicted, reference.predicted):.1f} %",
            duration(self._seconds(row, outcome)),
        )

    def _seconds(self, row: Row, outcome: Measured) -> float:
        trials = self.rows[row]
        images = sum(trial.stream.length for trial in trials)
        return row_seconds(images, len(trials), outcome.image_s, outcome.first_s, self.at_once)

    def _total(self, mode: Mode) -> str:
        outcomes = {row: outcomes[mode] for row, outcomes in self.outcomes.items()}
        known = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, Measured)}
        failed = sum(isinstance(outcome, str) and outcome.startswith("failed") for outcome in outcomes.values())
        parts = [duration(sum(self._seconds(row, outcome) for row, outcome in known.items()))]
        if failed:
            parts.append(f"without {failed} row{'s' if failed > 1 else ''} that failed")
        held = max((outcome.held_mib for outcome in known.values() if outcome.held_mib is not None), default=None)
        if held is not None and self.card is not None:
            share = share_of_gpu(held, self.card.memory_mib)
            parts.append(f"--gpus-per-trial auto would be {share:g}, {trials_at_once(share)} trials on a GPU")
        return "; ".join(parts)


def aligned(lines: Sequence[Sequence[str]], texts: int = 2) -> str:
    """Lines with their cells in columns: the first ``texts`` to the left, numbers to the right.

    The last cell of a line with fewer cells than the first is not in a column.
    """
    columns = len(lines[0])
    whole = [line for line in lines if len(line) == columns]
    widths = [max(len(line[i]) for line in (lines if i < texts else whole)) for i in range(columns)]
    return "\n".join("  ".join(_cells(line, widths, texts)).rstrip() for line in lines)


def _cells(line: Sequence[str], widths: Sequence[int], texts: int) -> list[str]:
    if len(line) < len(widths):
        return [*(cell.ljust(width) for cell, width in zip(line[:texts], widths, strict=False)), *line[texts:]]
    return [cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
