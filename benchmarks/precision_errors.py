"""What tf32 and bfloat16 cost in accuracy: differences of errors to float32, from finished runs.

    tta-bench run SUITE --set 'precision=[float32, tf32, bfloat16]' --out RUN
    python benchmarks/precision_errors.py RUN [RUN ...]

Prints a line for each method and source model: the difference of the mean error over the shifts, and that of the shift
where it is largest, in points.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import pandas as pd

from tta_bench.store.results import load

ROW = ["label", "model"]


def differences(shifts: pd.DataFrame) -> pd.DataFrame:
    """Differences by method and source model: columns (precision, "mean") and (precision, "largest"), points.

    Args:
        shifts: the tables of shifts of runs; shifts that lack a precision do not count.

    Raises:
        SystemExit: no shift has an error in float32 and in each other precision.
    """
    finished = shifts[shifts["status"] == "ok"]
    errors = finished.pivot_table(
        index=[*ROW, "protocol", "shift"], columns="precision", values="error_pct", sort=False
    )
    complete = errors.dropna()
    if complete.empty or "float32" not in complete or len(complete.columns) == 1:
        raise SystemExit(
            "no shift has an error in float32 and in each other precision: run with --set 'precision=[float32, …]'"
        )
    changes = complete.sub(complete["float32"], axis=0).drop(columns="float32")
    grouped = changes.groupby(level=ROW, sort=False)
    largest = grouped.agg(lambda values: values.loc[values.abs().idxmax()])
    parts = {(name, "mean"): table for name, table in grouped.mean().items()}
    parts |= {(name, "largest"): table for name, table in largest.items()}
    table = pd.DataFrame(parts).sort_index(axis=1, ascending=False)
    table["shifts", ""] = grouped.size()
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    tables = [load(run).shifts for run in parser.parse_args().runs]
    print(differences(pd.concat(tables)).round(2).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
