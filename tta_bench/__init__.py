"""tta-bench: a benchmarking harness for test-time adaptation of image classifiers.

Importing this package imports nothing heavy: torch, timm and Ray are loaded by the modules that need them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"

# Raised whenever a change of the harness itself can change a result: it is part of every trial's key.
NUMERICS_VERSION = 1


def load_results(*runs: str | os.PathLike[str], table: str = "shifts", mix: bool = False) -> pd.DataFrame:
    """A tidy table of one or more runs.

    Args:
        runs: folders that ``tta-bench run`` made.
        table: ``shifts`` (errors: a row for each trial, segment, shift and visit), ``segments`` (passes, times, memory: a
            row for each trial and segment), ``batches`` (the online curve), or one of what the report says: ``errors``,
            ``pairs``, ``ranks``, ``calibration``, ``costs``, ``published``, ``mce``, ``gaps``.
        mix: put runs together whose images, versions or precision differ.

    Raises:
        tta_bench.errors.UsageError: a folder is no run, the runs must not stand in one table, or there is no such table.
    """
    import pathlib

    from tta_bench.report.render import data

    return data.load([pathlib.Path(run) for run in runs], table, mix=mix)
