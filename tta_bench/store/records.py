"""The files that a run writes: a pair for each trial, atomically, and the plan.

``trials/<key>.npz`` holds a trial's arrays (an element per image or batch), ``trials/<key>.json`` its scalars and status;
renaming the latter into place commits the trial. The JSON has a checksum of both files: a trial that does not match it is
damaged and counts as not run. ``plan.json`` lists every planned trial, so that one that never ran has rows, too.

This module needs no pandas, which takes long to import: a run's driver starts without it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_bench import NUMERICS_VERSION
from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_atomically
from tta_bench.store import documents, schema
from tta_bench.streams import StreamSpec

if TYPE_CHECKING:  # a process that only reads needs no torch
    from tta_bench.run.runner import TrialResult
    from tta_bench.suite.plan import Plan, Trial

SCHEMA_VERSION = 5


def write(run: pathlib.Path, result: TrialResult, asked: Mapping[str, Any], session: int) -> TrialResult:
    """Commit one trial with what was asked: the arrays first, then the JSON, whose rename commits.

    Returns:
        The result as written: one that does not fit the schema becomes a failed one with the reason.
    """
    folder = run / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        arrays = _arrays(result)
        record = _record(result, arrays, asked, session)
    except (TypeError, ValueError, RecursionError) as error:  # one trial's facts must not end the run
        result = _unfit_result(result, "; ".join(schema.fact_faults(schema.Facts, result.facts)) or str(error))
        arrays = _arrays(result)
        record = _record(result, arrays, asked, session)
    write_atomically(folder / f"{result.key}.npz", lambda stream: stream.write(arrays))
    write_atomically(folder / f"{result.key}.json", lambda stream: stream.write(record))
    return result


def _unfit_result(result: TrialResult, fault: str) -> TrialResult:
    """A failed trial in place of one that does not fit the schema, with those of its facts that do."""
    facts = schema.fitting(schema.Facts, result.facts) | {"failure": "method"}
    return dataclasses.replace(
        result,
        status="failed",
        reason=f"the result cannot be recorded: {fault}",
        traceback="",
        facts=facts,
        segments=[],
        shifts=[],
        batches={},
        images={},
        environment=schema.fitting(schema.Environment, result.environment),
    )


def _arrays(result: TrialResult) -> bytes:
    """The content of a trial's ``.npz`` file."""
    arrays = {f"batches/{name}": array for name, array in result.batches.items()}
    arrays |= {f"images/{name}": array for name, array in result.images.items()}
    if wrong := [*schema.array_faults(arrays, lambda name: False)]:
        raise TypeError("; ".join(wrong))
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # a name could be that of an option
    return stream.getvalue()


def _record(result: TrialResult, arrays: bytes, asked: Mapping[str, Any], session: int) -> bytes:
    """The content of a trial's JSON."""
    record = {k: v for k, v in vars(result).items() if k not in ("batches", "images", "log", "trace")}
    record |= {"schema_version": SCHEMA_VERSION, "session": session, "asked": dict(asked)}
    read_back = json.loads(json.dumps(record))  # as a reader will find it: tuples are lists then
    sealed: dict[str, Any] = read_back | {"checksum": checksum(read_back, arrays)}
    if wrong := [*schema.faults(sealed)]:  # found now, not when it is read
        raise TypeError("; ".join(wrong))
    return json.dumps(sealed).encode()


def checksum(record: Mapping[str, Any], arrays: bytes) -> str:
    """SHA-256 over both files of a trial, in hexadecimal.

    Args:
        record: the JSON's content; its own ``checksum`` is left out.
        arrays: the ``.npz`` file.
    """
    text = json.dumps({k: v for k, v in record.items() if k != "checksum"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + hashlib.sha256(arrays).digest()).hexdigest()


def write_plan(run: pathlib.Path, plan: Plan) -> None:
    """Write ``plan.json``: every cell of the tables, in order, with the key of the trial that fills it."""
    documents.write(run / documents.PLAN, plan_content(plan))


def plan_content(plan: Plan) -> dict[str, Any]:
    """The content of ``plan.json``."""
    streams = plan.materials.streams()

    @functools.cache
    def rows(model: str, spec: StreamSpec) -> dict[str, Any]:
        """A stream's segments (name, visit, role), and its cells (position of the segment, number of the shift, visit)."""
        stream = streams.build(model, spec)
        return {"segments": [(s.name, s.visit, s.role) for s in stream.segments], "cells": stream.cells}

    return {
        "schema_version": SCHEMA_VERSION,
        "numerics_version": NUMERICS_VERSION,
        "suite": plan.name,
        "notes": sorted({dataset.note for dataset in plan.materials.datasets.values() if dataset.note}),
        "all_images": all(plan.materials.all_images(trial) for trial in plan.trials),
        "models": {trial.model: trial.asked["model"] for trial in plan.trials},
        "axes": list(plan.axes),
        "trials": [
            _planned(trial, plan.materials.images_a_shift(trial), plan.materials.datasets[trial.model].num_classes)
            | rows(trial.model, trial.stream)
            for trial in plan.trials
        ],
    }


def _planned(trial: Trial, images: int, classes: int) -> dict[str, Any]:
    return {
        "key": trial.key,
        "label": trial.label,
        "method": trial.method,
        "variant": trial.variant,
        "preset": trial.preset,
        "preset_missing": trial.preset_missing,
        "config": dict(trial.config),
        "config_keyed": trial.asked["method"]["config"],
        "model": trial.model,
        "setting": trial.setting.id,
        "setting_values": trial.setting.values(),
        "dataset": trial.setting.dataset,
        "protocol": trial.setting.protocol,
        "protocol_parameters": trial.setting.told,
        "adapt_images": trial.setting.values()["parameters"].get("adapt_images"),
        "cost_ratio": trial.cost_ratio,
        **({} if trial.mask is None else {"classes": len(trial.mask)}),
        "num_classes": classes if trial.mask is None else len(trial.mask),
        "shifts": [[s.name, s.severity or 0, s.id] for s in trial.stream.shifts],
        "families": [s.family for s in trial.stream.shifts],
        "seed": trial.seed,
        "batch_size": trial.stream.batch_size,
        "images": images,
        **vars(trial.mode),
        "data": trial.asked["data"],
        "asked": trial.asked,
    }


def renumbered(record: Mapping[str, Any], arrays: bytes, session: int) -> dict[str, Any]:
    """A record with another session's number, as a merged run has it; ``arrays``: the trial's ``.npz`` file."""
    moved = {**record, "session": session}
    return moved | {"checksum": checksum(moved, arrays)}


@dataclass(frozen=True)
class StoredTrial:
    """A trial's files.

    Attributes:
        record: the content of its JSON; None where there is none, or the trial is damaged.
        arrays: the content of its ``.npz`` file; empty without a record.
        damage: what is wrong with which file, if anything.
        foreign: the problem where another schema version wrote it: such a record is never overwritten.
    """

    record: dict[str, Any] | None = None
    arrays: bytes = b""
    damage: str | None = None
    foreign: Problem | None = None


def read_trial(run: pathlib.Path, key: str) -> StoredTrial:
    """Read a trial's files and verify their checksum.

    Raises:
        UsageError: the files are intact, but a fact is unknown, lacking or of another type than the schema's.
    """
    path = f"{run}/trials/{key}.json"
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except FileNotFoundError:
        return StoredTrial()
    except OSError as error:
        return StoredTrial(damage=f"{path}: {error.strerror}")
    try:
        record = json.loads(text)
        version = record["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        version = None
    if type(version) is not int:
        return StoredTrial(damage=f"{path} is not a trial's record")
    if version != SCHEMA_VERSION:
        problem = other_version(version, path)
        return StoredTrial(damage=f"{path}: {problem.message}", foreign=problem)
    try:
        with open(f"{run}/trials/{key}.npz", "rb") as stream:
            arrays = stream.read()
    except OSError as error:
        return StoredTrial(damage=f"{run}/trials/{key}.npz: {error.strerror}")
    if record.get("key") != key or record.get("checksum") != checksum(record, arrays):
        return StoredTrial(damage=f"{path} or the .npz beside it does not match its checksum")
    if wrong := [*schema.faults(record), *_half_characters(record)]:
        raise UsageError(schema_problem(wrong, path))
    return StoredTrial(record, arrays)


def _half_characters(record: Mapping[str, Any]) -> Iterator[str]:
    """A message where a text cannot be encoded, so that no table could hold it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        yield "a text has half a character (a surrogate)"


def read_planned(run: pathlib.Path, trial: Mapping[str, Any]) -> StoredTrial:
    """Read a planned trial; one whose rows are not those of its plan is damaged.

    Raises:
        UsageError: as :func:`read_trial`.
    """
    stored = read_trial(run, trial["key"])
    if stored.record is None or stored.record["status"] != "ok":
        return stored
    segments = [(row["position"], row["segment"], row["visit"], row["role"]) for row in stored.record["segments"]]
    shifts = {(row["position"], row["shift"], row["visit"]) for row in stored.record["shifts"]}
    cells = {(position, trial["shifts"][number][2], visit) for position, number, visit in trial["cells"]}
    if segments != [(position, *place) for position, place in enumerate(trial["segments"])] or not shifts <= cells:
        return StoredTrial(damage=f"{run}/trials/{trial['key']}.json: its rows are not those that plan.json has")
    return stored


def recorded(run: pathlib.Path) -> set[str]:
    """The keys of the trials that a run's folder has a file of."""
    return {path.stem for path in (run / "trials").glob("[!.]*.json")}


def check_version(run: pathlib.Path) -> None:
    """Refuse a run's folder that another schema version wrote; a folder without a run is accepted.

    Raises:
        UsageError: its ``plan.json`` or ``run.json`` is of another version.
    """
    for name in (documents.PLAN, documents.RUN):
        try:
            content = json.loads((run / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        version = content.get("schema_version") if isinstance(content, dict) else None
        if type(version) is int and version != SCHEMA_VERSION:
            raise UsageError(other_version(version, run / name))


def schema_problem(faults: Sequence[str], path: str) -> Problem:
    """The problem of a file whose facts or arrays are not those of :mod:`tta_bench.store.schema`."""
    hint = "read it with the tta-bench that made it (run.json names the version), or delete the trial and run it again"
    return Problem(f"does not fit schema version {SCHEMA_VERSION}: {'; '.join(faults)}", path, hint=hint)


def other_version(version: int, path: str | pathlib.Path) -> Problem:
    """The problem of a file that another schema version wrote."""
    if version > SCHEMA_VERSION:
        what = f"written by a newer tta-bench (schema version {version}; this one reads {SCHEMA_VERSION})"
        return Problem(what, str(path), hint="update tta-bench, or choose another folder with --out DIR")
    what = f"written by an earlier tta-bench (schema version {version}; this one reads {SCHEMA_VERSION})"
    hint = "read it with the tta-bench that made it (run.json names the version), or run the suite again with --out DIR"
    return Problem(what, str(path), hint=hint)
