"""The joined results: which run's record of a trial counts, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_bench.errors import Problem, UsageError
from tta_bench.store.merge import words
from tta_bench.store.merge.clashes import Clash, difference_of, method_of, refusal
from tta_bench.store.merge.inputs import BROKEN, Run, Trial
from tta_bench.store.records import look

# what must agree; the confidence may round otherwise elsewhere
_PREDICTIONS = ("images/image", "images/shift", "images/predicted", "images/correct")


@dataclass(frozen=True)
class Record:
    """A committed trial of one run; ``predictions`` is a digest of what it predicted, empty where it is not ok."""

    run: Run
    content: Mapping[str, Any]
    predictions: str

    @property
    def rank(self) -> int:
        """What counts more comes first: ok, then a method's own end, then a failure of the machine."""
        if self.content["status"] == "ok":
            return 0
        return 2 if self.content["facts"].get("failure") == "infrastructure" else 1


def choose(inputs: Sequence[Run], trials: Sequence[Trial], winner: Run | None) -> tuple[dict[str, Record], list[str]]:
    """(the record that counts for each key that has one, what is to be said of the others).

    Raises:
        UsageError: runs predict differently for a key, and ``winner`` does not decide.
    """
    keys = list(dict.fromkeys(t["key"] for t in trials))
    found, notes = _records(inputs, keys)
    chosen, agreed, overruled, clashes = dict[str, Record](), 0, 0, dict[str, list[Record]]()
    for key, records in found.items():
        good = [record for record in records if record.rank == 0]
        preferred = [record for record in good if record.run is winner]
        alike = len({record.predictions for record in good}) < 2
        if alike or preferred:
            chosen[key] = min(preferred or records, key=lambda record: record.rank)  # the first of the lowest
            agreed += alike and len(good) > 1
            overruled += not alike
        else:
            clashes[key] = good
    if clashes:
        raise UsageError(_disagreement(clashes, {t["key"]: t for t in reversed(trials)}))
    said = [f"  {words.count(agreed, 'trial was', 'trials were')} in several runs and agreed"]
    if overruled and winner:
        said.append(f"  {words.count(overruled, 'trial', 'trials')} differed; {winner.given} is kept")
    return chosen, said + notes


def of_one_kind(
    chosen: Mapping[str, Record], trials: Sequence[Trial], winner: Run | None
) -> tuple[dict[str, Record], list[str]]:
    """(the records without those that were asked for in another way than ``winner`` asked, what is to be said of them).

    What stands in one table must be of one making, though no two runs made the same cell: one learning rate in a row, the
    same weights, images and order of images in all rows.

    Raises:
        UsageError: records of several runs differ in it, and ``winner`` does not decide.
    """
    by_key = {t["key"]: t for t in reversed(trials)}
    kept, dropped, clashes = dict[str, Record](), 0, list[Clash]()
    held: dict[tuple[Any, ...], tuple[Run, Any]] = {}
    for key, record in sorted(chosen.items(), key=lambda item: item[1].run is not winner):
        making = _making(by_key[key], record.content["asked"])
        others = [(scope, held[scope]) for scope, value in making.items() if held.get(scope, (0, value))[1] != value]
        if not others:
            kept[key] = record
            for scope, value in making.items():
                held.setdefault(scope, (record.run, value))
        elif any(by is winner for _, (by, _) in others):
            dropped += 1
        else:
            (scope, (by, value)), *_ = others
            difference = difference_of({scope[0]: value}, {scope[0]: making[scope]})
            clashes.append(Clash(by_key[key], by, record.run, difference))
    if clashes:
        raise UsageError(refusal(clashes))
    what = f"{words.count(dropped, 'trial was', 'trials were')} asked for in another way"
    notes = [f"  {what} than {winner.given} asked; left out"] if dropped and winner else []
    return {key: kept[key] for key in chosen if key in kept}, notes


def _making(trial: Trial, asked: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """The parts of what was asked, each under all that it may depend on in one run."""
    shifts = tuple(name for _, _, name in trial["shifts"])
    segments = tuple((name, visit) for name, visit, _ in trial["segments"])
    return {
        ("numerics_version",): asked.get("numerics_version"),
        ("method", trial["label"], trial["model"]): method_of(trial, asked),
        ("source", trial["label"], trial["model"]): asked.get("source"),
        ("model", trial["model"]): asked.get("model"),
        ("data", trial["model"], shifts): asked.get("data"),
        ("stream", trial["model"], shifts, segments, trial["seed"], trial["setting"]): asked.get("stream"),
    }


def _records(inputs: Sequence[Run], keys: Sequence[str]) -> tuple[dict[str, list[Record]], list[str]]:
    """(each key's records in the order of the runs, a line for each run with files that do not count)."""
    found: dict[str, list[Record]] = {}
    notes = []
    for run in inputs:
        torn = []
        for key in keys:
            try:
                record = _read(run, key)
            except BROKEN as error:
                torn.append(f"{key[:12]}… ({error})")
                continue
            if record is not None:
                found.setdefault(key, []).append(record)
        if torn:
            what = words.count(len(torn), "torn trial file does", "torn trial files do")
            notes.append(f"  {run.given}: {what} not count: {words.capped(torn)}")
        stale = len({path.stem for path in (run.path / "trials").glob("*.json")}.difference(keys))
        if stale:
            notes.append(
                f"  {run.given}: {words.count(stale, 'stale trial file is', 'stale trial files are')} left out"
            )
    return found, notes


def _read(run: Run, key: str) -> Record | None:
    """A run's record of ``key``, or None where it has none; anything in ``BROKEN`` where its files are torn."""
    path = run.path / "trials" / f"{key}.json"
    stored = look(run.path, key)
    if stored.damage:
        raise ValueError(stored.damage)
    if stored.record is None:
        return None
    content = json.loads(path.read_text())
    if not all(isinstance(content[name], dict) for name in ("asked", "facts", "environment")):
        raise ValueError("asked, facts and environment are no mappings")
    if content["session"] not in [session["session"] for session in run.sessions]:
        raise ValueError(f"session {content['session']} is not in run.json")
    if content["status"] != "ok":
        return Record(run, content, "")
    arrays = _arrays(path.with_suffix(".npz"))
    digest = hashlib.sha256()
    for name in _PREDICTIONS:
        digest.update(arrays[name].astype(np.int64).tobytes())
    return Record(run, content, digest.hexdigest())


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        read = {name: arrays[name] for name in arrays.files}  # all, so that every checksum is verified
    if len({len(read[name]) for name in (*_PREDICTIONS, "images/batch")}) != 1:
        raise ValueError("its arrays are not of one length")
    return read


def _disagreement(clashes: Mapping[str, Sequence[Record]], trials: Mapping[str, Trial]) -> Problem:
    lines = []
    for key in list(clashes)[: words.SHOWN]:
        lines.append(f"  {words.row(trials[key])}: {words.place(trials[key])} ({key[:12]}…)")
        first = clashes[key][0]
        lines += [f"    {record.run.given}: {_origin(record)}{_apart(record, first)}" for record in clashes[key]]
    if len(clashes) > words.SHOWN:
        lines.append(f"  and {len(clashes) - words.SHOWN} more")
    what = f"{words.count(len(clashes), 'trial is', 'trials are')} ok in several runs with different predictions"
    return Problem(what, source="\n".join(lines), hint="name the run whose results win with --keep RUN")


def _origin(record: Record) -> str:
    where, shifts = record.content["environment"], record.content["shifts"]
    said = [f"{name} {where.get(name)}" for name in ("host", "device_name", "torch", "threads")]
    wrong = 1 - sum(s["correct"] for s in shifts) / sum(s["images"] for s in shifts)
    return ", ".join([*said, f"error_pct {100 * wrong:.3f}"])


def _apart(record: Record, first: Record) -> str:
    """How many predictions differ from the first run's: some in the last bits of a network are not a wrong network."""
    if record is first or record.predictions == first.predictions:
        return "" if record is first else ", as the first"
    ours, theirs = (_arrays(r.run.path / "trials" / f"{r.content['key']}.npz") for r in (record, first))
    if any(not np.array_equal(ours[name], theirs[name]) for name in ("images/image", "images/shift")):
        return ", over other images than the first"
    different = int((ours["images/predicted"] != theirs["images/predicted"]).sum())
    return f", {different} of {len(ours['images/predicted'])} predictions differ from the first"
