"""What is on disk, as tidy tables, rebuilt at any time from what :mod:`tta_bench.store.records` has written."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pandas as pd

from tta_bench.errors import Problem, UsageError
from tta_bench.store import npz, records
from tta_bench.store.records import SCHEMA_VERSION as SCHEMA_VERSION
from tta_bench.store.records import statuses as statuses
from tta_bench.store.records import write as write
from tta_bench.store.records import write_atomically as write_atomically
from tta_bench.store.records import write_json as write_json
from tta_bench.store.records import write_plan as write_plan


@dataclass(frozen=True)
class Column:
    """A column of ``segments``.

    Attributes:
        name: carries the unit.
        kind: "key" (what was asked), "result" (equal bit for bit when a trial is run again on one kind of device with one
            thread count), "cost" (times and memory), or "origin" (where the number comes from).
        meaning: in one sentence.
        dtype: pandas' name; integers and booleans may be missing.
    """

    name: str
    kind: str
    meaning: str
    dtype: str = "object"


COLUMNS = [
    Column("label", "key", "the method's row in tables"),
    Column("method", "key", "registered name of the method"),
    Column("variant", "key", "official (as published code computes) or paper, where the two differ"),
    Column("preset", "key", "published hyperparameters that it started from; empty: the Config's defaults"),
    Column("model", "key", "source model"),
    Column("dataset", "key", "data set; generated corruptions say so"),
    Column("protocol", "key", "reset (before every shift) or continual"),
    Column(
        "adapt_images",
        "key",
        "images of a shift adapted on; the rest meets the frozen state; empty for all",
        "Int64",
    ),
    Column("segment", "key", "the reported run of batches"),
    Column("visit", "key", "how many earlier segments have the same name", "Int64"),
    Column("shift", "key", "corruption and severity, or clean"),
    Column("corruption", "key", "corruption, or clean"),
    Column("severity", "key", "1 to 5; clean is 0", "Int64"),
    Column("seed", "key", "trial seed", "Int64"),
    Column("batch_size", "key", "nominal batch size", "Int64"),
    Column("precision", "key", "float32 or float64"),
    Column("data", "key", "fingerprint of the images: rows are compared only where it is the same"),
    Column("status", "result", "ok, failed, skipped, or missing (not run yet)"),
    Column("reason", "result", "why it is not ok"),
    Column("images", "result", "images graded", "Int64"),
    Column("correct", "result", "images classified correctly", "Int64"),
    Column("error_pct", "result", "share of images classified wrongly, per cent", "float64"),
    Column(
        "error_after_pct",
        "result",
        "the same over the images after the suite's largest adapt_images",
        "float64",
    ),
    Column("confidence_mean", "result", "mean probability of the predicted class", "float64"),
    Column("batches", "result", "batches in the segment", "Int64"),
    Column(
        "images_forwarded", "result", "images that entered the network, counted at its stem, in the segment", "Int64"
    ),
    Column(
        "images_backwarded",
        "result",
        "images that a gradient came back for (that entered a loss), counted at the classifier, in the segment",
        "Int64",
    ),
    Column("updates", "result", "optimizer steps taken in the segment", "Int64"),
    Column(
        "batch_statistics", "result", "BatchNorm uses the batch's own statistics: per-batch, or per-image at batch 1"
    ),
    Column("adapted_parameters", "result", "scalars that require a gradient after setup", "Int64"),
    Column("step_ms_median", "cost", "median time of a batch's step, warm-up batches apart, ms", "float64"),
    Column("step_ms_p95", "cost", "95th percentile of the same, ms", "float64"),
    Column("images_per_s", "cost", "images per second of step time, warm-up batches apart", "float64"),
    Column("warmup_ms", "cost", "time of the trial's first batches, ms", "float64"),
    Column("data_ms_median", "cost", "median time to load a batch, ms", "float64"),
    Column("peak_memory_mib", "cost", "peak device memory in the segment, MiB; empty on the CPU", "float64"),
    Column("prepare_s", "cost", "time of prepare() in the run that made its result, s", "float64"),
    Column("trial_s", "cost", "wall time of the whole trial, s", "float64"),
    Column("source_images", "origin", "clean unlabelled source images that the method saw", "Int64"),
    Column("reset_keeps", "origin", "state that the published reset() leaves alone"),
    Column("preset_missing", "origin", "the preset that the model names and the method lacks: its defaults were used"),
    Column("needs_backward", "origin", "the method takes backward passes", "boolean"),
    Column("needs_source_images", "origin", "it sees source images", "boolean"),
    Column("needs_checkpoint", "origin", "it needs a learned checkpoint", "boolean"),
    Column(
        "checkpoint", "origin", "where that checkpoint comes from, and whether it was made for another source model"
    ),
    Column("needs_min_batch", "origin", "smallest batch it adapts on", "Int64"),
    Column("needs_norm_kinds", "origin", "normalisation layers of which it needs one"),
    Column("needs_class_token", "origin", "it needs a transformer with a class token", "boolean"),
    Column("needs_linear_head", "origin", "it needs a linear classifier", "boolean"),
    Column("needs_packages", "origin", "packages that it needs"),
    Column("session", "origin", "session in run.json that ran it", "Int64"),
    Column("attempts", "origin", "how often it was tried; each fault before is in its log", "Int64"),
    Column("log", "origin", "its output, a file below the run's folder"),
    Column("host", "origin", "machine"),
    Column("device", "origin", "cpu or cuda"),
    Column("device_name", "origin", "model of the device"),
    Column(
        "device_share",
        "origin",
        "part of the device that it had; below 1 its times are not its own",
        "float64",
    ),
    Column("threads", "origin", "CPU threads of torch", "Int64"),
    Column("torch", "origin", "torch's version"),
    Column("key", "origin", "the trial's key: SHA-256 of all that was asked"),
]
_NAMES = [column.name for column in COLUMNS]


def result_columns(segments: pd.DataFrame) -> pd.DataFrame:
    """The part of ``segments`` that a repeated run must reproduce bit for bit, statistics of the method included."""
    names = [c.name for c in COLUMNS if c.kind in ("key", "result")]
    return segments[names + [str(name) for name in segments if str(name).startswith("stat_")]]


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
        segments: a row for each trial, segment and shift, in plan order; failed, skipped and missing trials included.
        batches: a row for each batch of the trials that are ok: the online curve.
        stale: trial files whose key is not in the plan, left out of the tables.
        damaged: what is wrong with trials whose files do not match their checksum; they are missing in the tables.
    """

    path: pathlib.Path
    plan: Mapping[str, Any]
    segments: pd.DataFrame
    batches: pd.DataFrame
    stale: int
    damaged: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status."""
        status = self.segments.groupby(["label", "model", "seed", "key"], sort=False)["status"].first()
        return {str(name): int(count) for name, count in status.value_counts().items()}


def load(run: pathlib.Path) -> Results:
    """Read a run's folder.

    Raises:
        UsageError: it is none, or was written by another schema version.
    """
    try:
        plan = json.loads((run / "plan.json").read_text())
    except (OSError, ValueError) as error:
        hint = "give the folder that 'tta-bench run' printed last"
        raise UsageError(Problem(f"not a run: {error}", where=str(run), hint=hint)) from error
    records.check_version(run)
    segments, batches, damaged = _Columns(), _Batches(), list[str]()
    for trial in plan["trials"]:
        stored = records.look(run, trial["key"])
        record = stored.record
        damaged += [stored.damage] if stored.damage else []
        for row in _rows(trial, record, stored.damage):
            segments.add(row)
        if record is not None and record["status"] == "ok":
            batches.add(trial, read_arrays(run, trial["key"], _is_of_batches))
    stale = len(_committed(run) - {t["key"] for t in plan["trials"]})
    return Results(run, plan, segments.frame(), batches.frame(), stale, tuple(dict.fromkeys(damaged)))


def read_arrays(run: pathlib.Path, key: str, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a trial, by name (``images/correct``, ``batches/step_ms``, …).

    Raises:
        UsageError: they are gone or damaged.
    """
    file = f"{run}/trials/{key}.npz"
    try:
        return npz.read(file, wanted)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        hint = "delete the .json beside it and run the suite again: this trial is then run anew"
        raise UsageError(Problem(f"a trial's arrays cannot be read: {error}", file, hint=hint)) from error


def _committed(run: pathlib.Path) -> set[str]:
    """Keys of the trials on disk."""
    try:
        names = os.listdir(run / "trials")
    except FileNotFoundError:
        return set()
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


class _Columns:
    """The table ``segments``, gathered column by column: pandas takes long to sort out thousands of dictionaries."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {name: [] for name in _NAMES}
        self._length = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; it may lack columns, and have further ones: statistics of its method."""
        for name in row:
            if name not in self._values and name.startswith("stat_"):
                self._values[name] = [np.nan] * self._length
        for name, values in self._values.items():
            value = row.get(name, np.nan)
            values.append(sys.intern(value) if type(value) is str else value)  # most texts are in many rows
        self._length += 1

    def frame(self) -> pd.DataFrame:
        """The table; statistics come last, in the order in which they came."""
        return pd.DataFrame(self._values).astype({c.name: c.dtype for c in COLUMNS})


def _rows(trial: Mapping[str, Any], record: Mapping[str, Any] | None, damage: str = "") -> list[dict[str, Any]]:
    asked = {k: v for k, v in trial.items() if k in _NAMES}
    if record is None:
        reason = f"damaged: {damage}; run the suite again" if damage else "not run yet"
        record = {"status": "missing", "reason": reason, "segments": [], "facts": {}, "environment": {}}
    shared = {
        **asked,
        **{k: v for k, v in record["facts"].items() if k in _NAMES},
        **{k: v for k, v in record["environment"].items() if k in _NAMES},
        "status": record["status"],
        "reason": record["reason"],
        "session": record.get("session"),
    }
    if record["status"] == "ok":
        return [{**shared, **segment} for segment in record["segments"]]
    return [
        {
            **shared,
            "images": None,
            "segment": name,
            "visit": 0,
            "shift": name,
            "corruption": corruption,
            "severity": severity,
        }
        for corruption, severity, name in trial["shifts"]
    ]


_OF_IMAGES = ("images/batch", "images/correct", "images/shift")


def _is_of_batches(name: str) -> bool:
    """Whether the online curve needs an array of a trial."""
    return name.startswith("batches/") or name in _OF_IMAGES


class _Batches:
    """The table ``batches``, put together from the arrays of all trials at once."""

    def __init__(self) -> None:
        self._trials: list[Mapping[str, Any]] = []
        self._parts: list[dict[str, np.ndarray]] = []  # of each trial: arrays of one length, its columns
        self._names: dict[str, int] = {}  # of segments, to numbers
        self._segments: list[np.ndarray] = []
        self._right: list[np.ndarray] = []

    def add(self, trial: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Add a trial."""
        batch, correct, shift = (arrays[name] for name in _OF_IMAGES)
        starts = np.flatnonzero(np.concatenate([[True], batch[1:] != batch[:-1]]))
        numbers = [self._names.setdefault(name, len(self._names)) for _, _, name in trial["shifts"]]
        self._trials.append(trial)
        own = {name.removeprefix("batches/"): a for name, a in arrays.items() if name not in _OF_IMAGES}
        self._parts.append({name: a.copy() for name, a in own.items()})  # else all of the file would stay in memory
        self._segments.append(np.array(numbers)[shift[starts]])
        self._right.append(np.add.reduceat(correct.astype(np.int64), starts))

    def frame(self) -> pd.DataFrame:
        """The table, in the order in which trials were added."""
        if not self._trials:
            return pd.DataFrame()
        lengths = [len(right) for right in self._right]
        right, segment = np.concatenate(self._right), np.concatenate(self._segments)
        number = np.repeat(np.arange(len(lengths)), lengths)
        own = {name: self._column(name) for name in dict.fromkeys(name for part in self._parts for name in part)}
        images = pd.Series(own["images"])
        of_segment = [number, segment]
        seen = images.groupby(of_segment).cumsum()
        columns = {
            **{name: pd.Index(self._of_trials(name)).take(number) for name in ("label", "model", "protocol")},
            "adapt_images": pd.array(self._of_trials("adapt_images"), dtype="Int64").take(number),
            "seed": pd.Index(self._of_trials("seed")).take(number),
            "segment": pd.Index(list(self._names)).take(segment),
            **{name: own[name] for name in self._parts[0]},
            "error_pct": 100.0 * (1.0 - right / images),
            "images_seen": seen,
            "running_error_pct": 100.0 * (1.0 - pd.Series(right).groupby(of_segment).cumsum() / seen),
            "key": pd.Index(self._of_trials("key")).take(number),
            **own,
        }
        return pd.DataFrame(columns)

    def _of_trials(self, name: str) -> list[Any]:
        return [trial[name] for trial in self._trials]

    def _column(self, name: str) -> np.ndarray:
        """A column of all trials; not a number where a trial has no such statistic."""
        parts = [part[name] if name in part else np.full(len(part["images"]), np.nan) for part in self._parts]
        return np.concatenate(parts)


def write_tables(results: Results) -> list[pathlib.Path]:
    """Write ``segments.parquet``, ``segments.csv`` and ``batches.parquet`` into the run's folder, atomically."""

    def parquet(frame: pd.DataFrame) -> Any:
        return lambda stream: frame.to_parquet(stream, index=False)

    def csv(stream: IO[bytes]) -> None:
        stream.write(results.segments.to_csv(index=False).encode())

    paths = [results.path / name for name in ("segments.parquet", "segments.csv", "batches.parquet")]
    for path, writer in zip(paths, (parquet(results.segments), csv, parquet(results.batches)), strict=True):
        write_atomically(path, writer)
    return paths
