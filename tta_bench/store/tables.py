"""The rows of the tables, gathered trial by trial from what is on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tta_bench.store.schema import BATCHES, STATISTIC, Asked, Column, types_of

Row = Mapping[str, Any]
_ASKED = [*types_of(Asked), "key"]


class Gathered:
    """A table, gathered column by column: pandas takes long to sort out thousands of dictionaries."""

    def __init__(self, columns: Sequence[Column]):
        self._columns = columns
        self._values: dict[str, list[Any]] = {column.name: [] for column in columns}
        self._length = 0

    def add(self, shared: Row, rows: Iterable[Row]) -> None:
        """Add the rows of a trial; they may lack columns, and have further ones: statistics of its method."""
        for row in rows:
            for name in row:
                if name not in self._values and name.startswith(STATISTIC):
                    self._values[name] = [np.nan] * self._length
            for name, values in self._values.items():
                value = row[name] if name in row else shared.get(name, np.nan)
                values.append(sys.intern(value) if type(value) is str else value)  # most texts are in many rows
            self._length += 1

    def frame(self) -> pd.DataFrame:
        """The table; statistics come last, in the order in which they came."""
        return pd.DataFrame(self._values).astype({c.name: c.dtype for c in self._columns})


def shared(trial: Row, record: Row | None, damage: str) -> dict[str, Any]:
    """What all rows of a trial have in common; of one that is not there (``record`` is None) why that is so."""
    asked = {name: trial[name] for name in _ASKED}
    if record is None:
        reason = f"damaged: {damage}; run the suite again" if damage else "not run yet"
        return {**asked, "status": "missing", "reason": reason}
    ending = {name: record[name] for name in ("status", "reason", "session")}
    return {**asked, **record["facts"], **record["environment"], **ending}


def segments(trial: Row, record: Row | None) -> Iterable[Row]:
    """A row for each segment, whatever became of the trial."""
    if record is not None and record["status"] == "ok":
        return record["segments"]
    return [segment_place(trial, position) for position in range(len(trial["segments"]))]


def shifts(trial: Row, record: Row | None) -> Iterable[Row]:
    """A row for each segment, shift and visit, whatever became of the trial."""
    if record is not None and record["status"] == "ok":
        return record["shifts"]
    return _planned_shifts(trial)


def segment_place(trial: Row, position: int) -> dict[str, Any]:
    """Where a planned segment is."""
    name, visit, role = trial["segments"][position]
    return {"position": position, "segment": name, "visit": visit, "role": role}


def _planned_shifts(trial: Row) -> Iterator[Row]:
    for position, number, visit in trial["cells"]:
        corruption, severity, name = trial["shifts"][number]
        about = {"visit": visit, "shift": name, "corruption": corruption, "severity": severity}
        yield segment_place(trial, position) | about


# -- the online curve --------------------------------------------------------------------------------------------------

_OF_IMAGES = ("images/batch", "images/correct", "images/graded")


def is_of_batches(name: str) -> bool:
    """Whether the online curve needs an array of a trial."""
    return name.startswith("batches/") or name in _OF_IMAGES


class Curves:
    """The table ``batches``, put together from the arrays of all trials at once."""

    def __init__(self) -> None:
        self._trials: list[Row] = []
        self._parts: list[dict[str, np.ndarray]] = []  # of each trial: arrays of one length, its columns
        self._first: list[int] = []  # of each trial: number of its first segment among those of all trials
        self._segments: list[tuple[str, int]] = []  # of all trials: name and visit

    def add(self, trial: Row, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a trial."""
        batch, correct, graded = (arrays[name] for name in _OF_IMAGES)
        own = {name.removeprefix("batches/"): a for name, a in arrays.items() if name not in _OF_IMAGES}
        part = {name: a.copy() for name, a in own.items()}  # else all of the file would stay in memory
        size = len(part["batch"])
        part["position"] = part.pop("segment")
        part["images_graded"] = np.bincount(batch[graded], minlength=size)
        part["right"] = np.bincount(batch[graded & correct], minlength=size)
        self._trials.append(trial)
        self._parts.append(part)
        self._first.append(len(self._segments))
        self._segments += [(name, visit) for name, visit, _ in trial["segments"]]

    def frame(self) -> pd.DataFrame:
        """The table, in the order in which trials were added."""
        if not self._trials:
            return pd.DataFrame()
        number = np.repeat(np.arange(len(self._parts)), [len(part["batch"]) for part in self._parts])
        own = {name: self._column(name) for name in dict.fromkeys(name for part in self._parts for name in part)}
        segment = np.array(self._first)[number] + own["position"]
        names, visits = zip(*self._segments, strict=True)
        graded, right = pd.Series(own["images_graded"]), pd.Series(own.pop("right"))
        seen = graded.groupby(segment).cumsum()
        columns = {
            **own,
            **{c.name: self._of_trials(c).take(number) for c in BATCHES if c.name in _ASKED},
            "segment": pd.Index(names).take(segment),
            "visit": np.array(visits)[segment],
            "error_pct": 100.0 * (1.0 - right / graded),
            "images_seen": seen,
            "running_error_pct": 100.0 * (1.0 - right.groupby(segment).cumsum() / seen),
        }
        ordered = [c.name for c in BATCHES] + [name for name in own if name.startswith(STATISTIC)]
        return pd.DataFrame({name: columns[name] for name in ordered}).astype({c.name: c.dtype for c in BATCHES})

    def _of_trials(self, column: Column) -> pd.Index:
        return pd.Index([trial[column.name] for trial in self._trials], dtype=column.dtype)

    def _column(self, name: str) -> np.ndarray:
        """A column of all trials; not a number where a trial has no such statistic."""
        parts = [part[name] if name in part else np.full(len(part["batch"]), np.nan) for part in self._parts]
        return np.concatenate(parts)
