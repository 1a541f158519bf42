"""What is on disk, as tidy tables, rebuilt at any time from what :mod:`tta_bench.store.records` has written."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pandas as pd

from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_atomically
from tta_bench.store import npz, records, schema, tables
from tta_bench.store.records import SCHEMA_VERSION as SCHEMA_VERSION
from tta_bench.store.records import statuses as statuses
from tta_bench.store.records import write as write
from tta_bench.store.records import write_plan as write_plan


def result_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The part of a table that a repeated run must reproduce bit for bit, statistics of the method included."""
    kinds = {column.name: column.kind for columns in schema.TABLES.values() for column in columns}
    chosen = [n for n in table if kinds.get(n) in ("key", "result") or str(n).startswith(schema.STATISTIC)]
    return table[chosen]


def predictions(run: pathlib.Path) -> dict[str, bytes]:
    """What is known of every image of each trial, by the trial's key: equal bytes for equal arrays."""
    found = {}
    for path in sorted((run / "trials").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.stem] = b"".join(arrays[name].tobytes() for name in sorted(arrays) if name.startswith("images/"))
    return found


@dataclass(frozen=True)
class Results:
    """A run as tidy tables.

    Attributes:
        path: the run's folder.
        plan: content of ``plan.json``.
        segments: a row for each trial and segment, in plan order; failed, skipped and missing trials included.
        shifts: a row for each trial, segment, shift and visit, likewise.
        batches: a row for each batch of the trials that are ok: the online curve.
        stale: trial files whose key is not in the plan, left out of the tables.
        damaged: what is wrong with trials whose files do not match their checksum; they are missing in the tables.
    """

    path: pathlib.Path
    plan: Mapping[str, Any]
    segments: pd.DataFrame
    shifts: pd.DataFrame
    batches: pd.DataFrame
    stale: int
    damaged: tuple[str, ...] = ()

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by name."""
        return {name: getattr(self, name) for name in schema.TABLES}

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status."""
        status = self.segments.groupby(["label", "model", "setting", "seed", "key"], sort=False)["status"].first()
        return {str(name): int(count) for name, count in status.value_counts().items()}


def load(run: pathlib.Path) -> Results:
    """Read a run's folder.

    Raises:
        UsageError: it is none, was written by another schema version, or a trial's files do not hold what the schema says.
    """
    try:
        plan = json.loads((run / "plan.json").read_text())
    except (OSError, ValueError) as error:
        hint = "give the folder that 'tta-bench run' printed last"
        raise UsageError(Problem(f"not a run: {error}", where=str(run), hint=hint)) from error
    records.check_version(run)
    segments, shifts = tables.Gathered(schema.SEGMENTS), tables.Gathered(schema.SHIFTS)
    batches, damaged = tables.Curves(), list[str]()
    for trial in plan["trials"]:
        stored = records.look(run, trial["key"])
        record = stored.record
        damaged += [stored.damage] if stored.damage else []
        shared = tables.shared(trial, record, stored.damage)
        segments.add(shared, tables.segments(trial, record))
        shifts.add(shared, tables.shifts(trial, record))
        if record is not None and record["status"] == "ok":
            batches.add(trial, read_arrays(run, trial["key"], tables.is_of_batches))
    stale = len(_committed(run) - {t["key"] for t in plan["trials"]})
    frames = segments.frame(), shifts.frame(), batches.frame()
    return Results(run, plan, *frames, stale, tuple(dict.fromkeys(damaged)))


def read_arrays(run: pathlib.Path, key: str, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a trial, by name (``images/correct``, ``batches/step_ms``, …).

    Raises:
        UsageError: they are gone, damaged, or not those of :class:`tta_bench.store.schema.Batches` and ``Images``.
    """
    file = f"{run}/trials/{key}.npz"
    try:
        arrays = npz.read(file, wanted)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        hint = "delete the .json beside it and run the suite again: this trial is then run anew"
        raise UsageError(Problem(f"a trial's arrays cannot be read: {error}", file, hint=hint)) from error
    if wrong := [*schema.array_faults(arrays, wanted)]:
        raise UsageError(records.unfit(wrong, file))
    return arrays


def _committed(run: pathlib.Path) -> set[str]:
    """Keys of the trials on disk."""
    try:
        names = os.listdir(run / "trials")
    except FileNotFoundError:
        return set()
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def write_tables(results: Results) -> list[pathlib.Path]:
    """Write each table as ``.parquet`` and ``.csv`` into the run's folder, atomically."""
    writers: dict[str, Callable[[pd.DataFrame, IO[bytes]], Any]] = {
        "parquet": lambda frame, stream: frame.to_parquet(stream, index=False),
        "csv": lambda frame, stream: frame.to_csv(stream, index=False),
    }
    paths = []
    for (name, frame), (ending, writer) in itertools.product(results.tables.items(), writers.items()):
        paths.append(results.path / f"{name}.{ending}")
        write_atomically(paths[-1], functools.partial(writer, frame))
    return paths
