"""Measured beside published: the same data set, source model, protocol, severity and method, one paper at a time."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from tta_bench.report.evidence import Evidence
from tta_bench.report.table import ErrorTable


@dataclass(frozen=True)
class ComparedRow:
    """One published number.

    Attributes:
        label, model: of the run; empty where nothing in it matches.
        method, published_model: as the paper names them.
        corruption: or "mean".
        published, measured: error, per cent; ``measured`` is None where the run has no such cell.
        difference: measured minus published, points.
        reason: why the two need not agree (other weights, preprocessing, number of images, generated corruptions, …), or
            why there is nothing to compare; empty where the settings are the same as far as is known.
    """

    label: str
    model: str
    method: str
    published_model: str
    corruption: str
    published: float
    measured: float | None
    difference: float | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """A paper's numbers.

    Attributes:
        paper, arxiv, source: as in the file.
        rows: one for each published number that the run has a counterpart of.
        unmatched: how many of the paper's numbers have none, and why, in a sentence; empty where there are none.
    """

    paper: str
    arxiv: str
    source: str
    rows: list[ComparedRow]
    unmatched: str


def compare(evidence: Evidence, tables: Sequence[ErrorTable], file: pathlib.Path) -> list[Comparison]:
    """Every paper of the file of published numbers.

    Raises:
        UsageError: the file cannot be read or lacks a column.
    """
    raise NotImplementedError
