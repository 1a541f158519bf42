"""Measured cost ratios: what a run's calibrations leave in files, and trials follow."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass, fields

CostRow = tuple[str, str, int, str]  # label, source model, batch size, mode


@dataclass(frozen=True)
class CostRatio:
    """Outcome of a calibration.

    Attributes:
        ratio: time of an adapting step relative to a plain forward pass; None where it could not be measured, and then
        status, reason, traceback, failure, log: as of a trial that failed or was skipped.
    """

    ratio: float | None
    status: str = "ok"
    reason: str = ""
    traceback: str = ""
    failure: str = ""
    log: str = ""

    @classmethod
    def read(cls, file: pathlib.Path) -> CostRatio:
        """From a calibration's file, which also says how the ratio was measured."""
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})


NOT_MEASURED = CostRatio(None, "failed", "its cost ratio has not been measured", failure="infrastructure")
