"""What a run writes of its trials: one file pair each, atomically, and what was asked for.

``trials/<key>.npz`` holds what is known of every image and batch, ``trials/<key>.json`` the scalars and the status; its
rename commits the trial. The JSON holds a checksum of both files: a trial that does not match it is damaged, and counts as
not run. ``plan.json`` lists what was asked for, so that a trial that never ran is a row, too.

The driver of a run imports this and not :mod:`tta_bench.store.results`, whose tables need pandas: that would be a tenth of
all the memory that it takes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from tta_bench import NUMERICS_VERSION
from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_atomically, write_together
from tta_bench.store import npz, schema
from tta_bench.streams import StreamSpec

if TYPE_CHECKING:  # a process that only reads needs no torch
    from tta_bench.run.runner import TrialResult
    from tta_bench.suite.plan import Plan, Trial

SCHEMA_VERSION = 4


def _write_lines(stream: IO[bytes], values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON, with a line for each and for each item of a list or iterator: indenting it takes long."""
    stream.writelines(part.encode() for part in _lines(values))


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    before = "{\n"
    for name, value in values.items():
        yield f"{before} {json.dumps(name)}: "
        before = ",\n"
        if isinstance(value, (list, Iterator)):
            between = "[\n  "
            for item in value:
                yield f"{between}{json.dumps(item)}"
                between = ",\n  "
            yield "\n ]" if between == ",\n  " else "[]"
        else:
            yield json.dumps(value)
    yield "\n}\n"


def write(run: pathlib.Path, result: TrialResult, asked: Mapping[str, Any], session: int) -> TrialResult:
    """Commit one trial: arrays first, then the JSON whose rename makes it count; returns what :func:`write_all` does."""
    return write_all(run, [(result, asked)], session)[0]


def write_all(
    run: pathlib.Path, ended: Sequence[tuple[TrialResult, Mapping[str, Any]]], session: int
) -> list[TrialResult]:
    """Commit trials, each with what was asked: the arrays of all first, then each JSON, whose rename makes it count.

    Returns:
        What was written of each: the result itself, or, of one that no record can hold, a failed one with the reason.
    """
    folder = run / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    files = [_files(result, asked, session) for result, asked in ended]
    write_together((folder / f"{f.result.key}.npz", _writer(f.arrays)) for f in files)
    write_together((folder / f"{f.result.key}.json", functools.partial(_write_lines, values=f.record)) for f in files)
    return [f.result for f in files]


class _Files(NamedTuple):
    """What is written of a trial: the content of both files, and the result that they hold."""

    result: TrialResult
    arrays: bytes
    record: dict[str, Any]


def _files(result: TrialResult, asked: Mapping[str, Any], session: int) -> _Files:
    try:
        arrays = _arrays(result)
        return _Files(result, arrays, _record(result, arrays, asked, session))
    except (TypeError, ValueError, RecursionError) as error:  # one trial's facts must not end the run
        failed = _unfit_result(result, "; ".join(schema.fact_faults(schema.Facts, result.facts)) or str(error))
        arrays = _arrays(failed)
        return _Files(failed, arrays, _record(failed, arrays, asked, session))


def _unfit_result(result: TrialResult, wrong: str) -> TrialResult:
    """A failed trial in the place of one that no record can hold, with the facts that one can."""
    facts = schema.fitting(schema.Facts, result.facts) | {"failure": "method"}
    return dataclasses.replace(
        result,
        status="failed",
        reason=f"the result cannot be recorded: {wrong}",
        traceback="",
        facts=facts,
        segments=[],
        shifts=[],
        batches={},
        images={},
        environment=schema.fitting(schema.Environment, result.environment),
    )


def _writer(content: bytes) -> Callable[[IO[bytes]], Any]:
    return lambda stream: stream.write(content)


def _arrays(result: TrialResult) -> bytes:
    """A trial's ``.npz`` file."""
    stream = io.BytesIO()
    batches = {f"batches/{name}": array for name, array in result.batches.items()}
    npz.write(stream, batches | {f"images/{name}": array for name, array in result.images.items()})
    return stream.getvalue()


def _record(result: TrialResult, arrays: bytes, asked: Mapping[str, Any], session: int) -> dict[str, Any]:
    record = {k: v for k, v in vars(result).items() if k not in ("batches", "images", "log")}
    record |= {"schema_version": SCHEMA_VERSION, "session": session, "asked": dict(asked)}
    read_back = json.loads(json.dumps(record))  # as a reader will find it: tuples are lists then
    sealed: dict[str, Any] = read_back | {"checksum": checksum(read_back, arrays)}
    if wrong := [*schema.faults(sealed)]:  # found now, not when it is read
        raise TypeError("; ".join(wrong))
    return sealed


def checksum(record: Mapping[str, Any], arrays: bytes) -> str:
    """SHA-256 over both files of a trial, in hexadecimal.

    Args:
        record: the JSON's content; its own ``checksum`` is left out.
        arrays: the ``.npz`` file.
    """
    text = json.dumps({k: v for k, v in record.items() if k != "checksum"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + hashlib.sha256(arrays).digest()).hexdigest()


def write_plan(run: pathlib.Path, plan: Plan) -> None:
    """Write what was asked for: every cell of the tables, in order, with the key of the trial that fills it."""
    streams = plan.materials.streams()

    @functools.cache
    def rows(model: str, spec: StreamSpec) -> dict[str, Any]:
        """What a stream's rows are of: its segments (name, visit, role), and its cells (segment, shift, visit)."""
        made = streams.build(model, spec)
        return {"segments": [(s.name, s.visit, s.role) for s in made.segments], "cells": made.cells}

    content = {
        "schema_version": SCHEMA_VERSION,
        "numerics_version": NUMERICS_VERSION,
        "suite": plan.name,
        "notes": sorted({dataset.note for dataset in plan.materials.datasets.values() if dataset.note}),
        "all_images": all(plan.materials.all_images(trial) for trial in plan.trials),
        "models": {trial.model: trial.asked["model"] for trial in plan.trials},
        "axes": list(plan.axes),
        "trials": (
            _planned(trial, plan.materials.images_a_shift(trial)) | rows(trial.model, trial.stream)
            for trial in plan.trials
        ),
    }
    write_atomically(run / "plan.json", functools.partial(_write_lines, values=content))


def _planned(trial: Trial, images: int) -> dict[str, Any]:
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
        "shifts": [[s.name, s.severity or 0, s.id] for s in trial.stream.shifts],
        "seed": trial.seed,
        "batch_size": trial.stream.batch_size,
        "images": images,
        "precision": trial.precision,
        "data": trial.asked["data"],
    }


def renumbered(run: pathlib.Path, record: Mapping[str, Any], session: int) -> dict[str, Any]:
    """A whole record of ``run`` with another session's number, as a merged run has it."""
    moved = {**record, "session": session}
    return moved | {"checksum": checksum(moved, (run / "trials" / f"{record['key']}.npz").read_bytes())}


@dataclass(frozen=True)
class Stored:
    """What is on disk of a trial.

    Attributes:
        record: the content of its JSON, without what was asked for; None where there is none, or it is damaged.
        damage: what is wrong with its files, which it names; empty where nothing is.
        foreign: the problem where another schema version wrote it: such a record is never overwritten.
    """

    record: dict[str, Any] | None
    damage: str = ""
    foreign: Problem | None = None


def look(run: pathlib.Path, key: str) -> Stored:
    """Read a trial and compare its files with their checksum.

    Raises:
        UsageError: the files are whole, but hold a fact that is unknown, lack one, or have one of another type.
    """
    path = f"{run}/trials/{key}.json"
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except FileNotFoundError:
        return Stored(None)
    except OSError as error:
        return Stored(None, f"{path}: {error.strerror}")
    try:
        record = json.loads(text)
        version = record["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Stored(None, f"{path} is no trial's record")
    if version != SCHEMA_VERSION:
        problem = other_version(version, path)
        return Stored(None, f"{path}: {problem.message}", problem)
    try:
        with open(f"{run}/trials/{key}.npz", "rb") as stream:
            arrays = stream.read()
    except OSError as error:
        return Stored(None, f"{run}/trials/{key}.npz: {error.strerror}")
    if record.get("key") != key or record.get("checksum") != checksum(record, arrays):
        return Stored(None, f"{path} or the .npz beside it does not match its checksum")
    if wrong := [*schema.faults(record)]:
        raise UsageError(unfit(wrong, path))
    record.pop("asked")  # nobody asks for it, and thousands of them take much memory
    return Stored(record)


def read(run: pathlib.Path, key: str) -> dict[str, Any] | None:
    """A trial's record, without what was asked for; None where it is absent or damaged; see :func:`look`."""
    return look(run, key).record


def statuses(run: pathlib.Path, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The committed records among ``keys``, but for what was asked; a damaged one does not count."""
    found = {key: read(run, key) for key in dict.fromkeys(keys)}
    return {key: record for key, record in found.items() if record is not None}


def check_version(run: pathlib.Path) -> None:
    """Refuse a run's folder that was written by another schema version; one that holds no run yet is none.

    Raises:
        UsageError: its ``plan.json`` or ``run.json`` is of another version.
    """
    for name in ("plan.json", "run.json"):
        try:
            content = json.loads((run / name).read_text())
        except (OSError, ValueError):
            continue
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version is not None and version != SCHEMA_VERSION:
            raise UsageError(other_version(version, run / name))


def unfit(wrong: Sequence[str], path: str) -> Problem:
    """What to do about a file whose facts or arrays are not those of :mod:`tta_bench.store.schema`."""
    hint = "read it with the tta-bench that made it (run.json names the version), or delete the trial and run it again"
    return Problem(f"not as schema version {SCHEMA_VERSION} has it: {'; '.join(wrong)}", path, hint=hint)


def other_version(version: Any, path: str | pathlib.Path) -> Problem:
    """What to do about a file of another schema version."""
    if isinstance(version, int) and version > SCHEMA_VERSION:
        what = f"written by a newer tta-bench (schema version {version}; this one reads {SCHEMA_VERSION})"
        return Problem(what, str(path), hint="update tta-bench, or choose another folder with --out DIR")
    what = f"written by an earlier tta-bench (schema version {version}; this one reads {SCHEMA_VERSION})"
    hint = "read it with the tta-bench that made it (run.json names the version), or run the suite again with --out DIR"
    return Problem(what, str(path), hint=hint)
