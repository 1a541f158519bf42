"""Measured cost ratios: what a run's calibrations leave in files, and trials follow."""

from __future__ import annotations

import pathlib
from typing import Annotated

from pydantic import Field, FiniteFloat, TypeAdapter
from pydantic.dataclasses import dataclass

CostRow = tuple[str, str, int, str]  # label, source model, batch size, mode


@dataclass(frozen=True, config={"extra": "ignore"})
class CostRatio:
    """Outcome of a calibration.

    Attributes:
        ratio: time of an adapting step relative to a plain forward pass; None where it could not be measured, and then
        status, reason, traceback, failure, log: as of a trial that failed or was skipped.
    """

    ratio: Annotated[FiniteFloat, Field(gt=0)] | None
    status: str = "ok"
    reason: str = ""
    traceback: str = ""
    failure: str = ""
    log: str = ""

    @classmethod
    def read(cls, file: pathlib.Path) -> CostRatio:
        """From a calibration's file, which also says how the ratio was measured.

        Raises:
            OSError, ValueError: the file cannot be read, or is damaged.
        """
        return TypeAdapter(cls).validate_json(file.read_bytes(), strict=True)


NOT_MEASURED = CostRatio(None, "failed", "its cost ratio has not been measured", failure="infrastructure")
