"""A run as tidy tables: read where they are up to date, else rebuilt from the trials' records and written."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tta_bench import __version__, files
from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_atomically, write_text
from tta_bench.store import documents, records, schema, tables


def result_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The part of a table that a repeated run must reproduce bit for bit, statistics of the method included."""
    kinds = {column.name: column.kind for columns in schema.TABLES.values() for column in columns}
    chosen = [n for n in table if kinds.get(n) in ("key", "result") or str(n).startswith(schema.STATISTIC)]
    return table[chosen]


def predictions(run: pathlib.Path) -> dict[str, bytes]:
    """The per-image arrays of each trial, by the trial's key: equal bytes for equal arrays."""
    content = {}
    for path in sorted((run / "trials").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            images = [arrays[name].tobytes() for name in sorted(arrays) if name.startswith("images/")]
        content[path.stem] = b"".join(images)
    return content


@dataclass(frozen=True)
class Results:
    """A run as tidy tables.

    Attributes:
        path: the run's folder.
        plan: content of ``plan.json``.
        segments: a row for each trial and segment, in plan order; failed, skipped and missing trials included.
        shifts: a row for each trial, segment, shift and visit, likewise.
        batches: a row for each batch of the trials that are ok: the online curve.
        stale: number of trial files whose key is not in the plan; they are not in the tables.
        damaged: a message for each trial whose files do not match their checksum; such a trial is missing in the tables.
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
        """Number of trials by status."""
        status = self.segments.groupby(["label", "model", "setting", "seed", "key"], sort=False)["status"].first()
        return {str(name): int(count) for name, count in status.value_counts().items()}

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each failed trial by key, in plan order."""
        rows = self.segments[self.segments["status"] == "failed"]
        return dict(zip(rows["key"], rows["reason"], strict=True))


def load(run: pathlib.Path) -> Results:
    """Load a run's tables: the written ones if neither the plan nor a trial's file has changed since, else rebuilt ones.

    Raises:
        UsageError: this is no run, another schema version wrote it, or a trial's files do not hold what the schema says.
    """
    return _load(run)[0]


def write_tables(run: pathlib.Path) -> Results:
    """Load a run's tables, and write them unless they are current.

    Raises:
        UsageError: as :func:`load`.
        OSError: the tables cannot be written.
    """
    results, sources = _load(run)
    if sources is not None:
        _write(results, sources)
    return results


def _load(run: pathlib.Path) -> tuple[Results, str | None]:
    """(the tables; the digest of what they were rebuilt from, None where the written ones are current)."""
    records.check_version(run)
    plan = documents.plan(run)
    sources = _digest(run)
    written = _read(run, plan, sources)
    return (_rebuild(run, plan), sources) if written is None else (written, None)


def read_arrays(run: pathlib.Path, key: str, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of a trial, by name (``images/correct``, ``batches/step_ms``, …).

    Raises:
        UsageError: they are missing, damaged, or not those of :class:`tta_bench.store.schema.Batches` and ``Images``.
    """
    stored = records.read_trial(run, key)
    if stored.record is None:
        hint = "run the suite again: it runs this trial anew"
        raise UsageError(Problem(stored.damage or "no such trial", f"{run}/trials/{key}.json", hint=hint))
    return _arrays(stored.arrays, wanted, f"{run}/trials/{key}.npz")


def _arrays(content: bytes, wanted: Callable[[str], bool], file: str) -> dict[str, np.ndarray]:
    try:
        arrays = files.read_arrays(content, wanted)
    except ValueError as error:
        raise UsageError(records.schema_problem([str(error)], file)) from error
    if wrong := [*schema.array_faults(arrays, wanted)]:
        raise UsageError(records.schema_problem(wrong, file))
    return arrays


def _rebuild(run: pathlib.Path, plan: Mapping[str, Any]) -> Results:
    segments, shifts = list[dict[str, Any]](), list[dict[str, Any]]()
    ok, columns, damaged = list[Mapping[str, Any]](), list[dict[str, np.ndarray]](), dict[str, None]()
    for trial in plan["trials"]:
        stored = records.read_planned(run, trial)
        record = stored.record
        if stored.damage:
            damaged[stored.damage] = None
        shared = tables.trial_columns(trial, record, stored.damage)
        if record is not None and record["status"] == "ok":
            segments += [shared | row for row in record["segments"]]
            shifts += [shared | row for row in record["shifts"]]
            ok.append(trial)
            arrays = _arrays(stored.arrays, tables.is_of_batches, f"{run}/trials/{trial['key']}.npz")
            columns.append(tables.batch_columns(arrays))
        else:
            segments += [shared | row for row in tables.planned_segments(trial)]
            shifts += [shared | row for row in tables.planned_shifts(trial)]
    stale = records.recorded(run).difference(trial["key"] for trial in plan["trials"])
    frames = tables.table(schema.SEGMENTS, segments), tables.table(schema.SHIFTS, shifts), tables.batches(ok, columns)
    return Results(run, plan, *frames, len(stale), tuple(damaged))


# -- the written tables ------------------------------------------------------------------------------------------------


def _digest(run: pathlib.Path) -> str:
    """SHA-256 over the plan and the name, size and times of every trial's file: it changes when one of them does."""
    found = []
    for path in sorted((run / "trials").glob("[!.]*")):  # not those being written
        try:
            status = path.stat()
        except OSError:  # a link to nowhere: damaged
            found.append((path.name, 0, 0, 0))
            continue
        found.append((path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    version = f"{__version__} {records.SCHEMA_VERSION}"
    plan = (run / documents.PLAN).read_bytes()
    return hashlib.sha256(b"\0".join([version.encode(), plan, json.dumps(found).encode()])).hexdigest()


def _write(results: Results, sources: str) -> None:
    """Write each table as Parquet and CSV, and then the index that says which trials they are of; each atomically."""
    digests = {}
    for name, frame in results.tables.items():
        content = frame.to_parquet(index=False)
        digests[name] = hashlib.sha256(content).hexdigest()
        write_atomically(results.path / f"{name}.parquet", lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        write_text(results.path / f"{name}.csv", tables.csv_text(frame))
    index = {"sources": sources, "tables": digests, "stale": results.stale, "damaged": results.damaged}
    documents.write(results.path / documents.TABLES, index)


def _read(run: pathlib.Path, plan: Mapping[str, Any], sources: str) -> Results | None:
    """The written tables, or None where they are of other trials, incomplete or edited."""
    try:
        index = documents.read(run / documents.TABLES, documents.Tables)
        contents = {name: (run / f"{name}.parquet").read_bytes() for name in schema.TABLES}
    except (OSError, UsageError):
        return None
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    if (index["sources"], index["tables"]) != (sources, digests):
        return None
    frames = {
        name: tables.typed(columns, pd.read_parquet(io.BytesIO(contents[name])))
        for name, columns in schema.TABLES.items()
    }
    return Results(run, plan, **frames, stale=index["stale"], damaged=tuple(index["damaged"]))
