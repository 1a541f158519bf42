"""``tta-bench merge``: runs of one suite, made on several machines, joined into one run's folder by trial key.

Everything is read and judged before the first byte is written. ``plan.json`` is written after the trials, so that a merge
that was killed leaves no folder that passes for a run.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from tta_bench import plan as planning
from tta_bench import results, rundir, runlog, suite
from tta_bench.errors import Problem, UsageError

Trial = Mapping[str, Any]  # a trial as plan.json has it

# what must agree; the confidence may round otherwise elsewhere
_PREDICTIONS = ("images/image", "images/shift", "images/predicted", "images/correct")
_BROKEN = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile)
_SHOWN = 5  # of any list of trials or files; how many there are is always said
_ROWS = 12


@dataclass(frozen=True)
class _Run:
    """An input: ``given`` is how the user names it."""

    given: str
    path: pathlib.Path
    plan: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]

    @property
    def trials(self) -> Sequence[Trial]:
        return self.plan["trials"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Record:
    """A committed trial of one run; ``predictions`` is a digest of what it predicted, empty where it is not ok."""

    run: _Run
    content: Mapping[str, Any]
    predictions: str

    @property
    def rank(self) -> int:
        """What counts more comes first: ok, then a method's own end, then a failure of the machine."""
        if self.content["status"] == "ok":
            return 0
        return 2 if self.content["facts"].get("failure") == "infrastructure" else 1


def merge(runs: Sequence[str], out: str, keep: str | None = None, suite_name: str | None = None) -> int:
    """Join runs; returns the exit code: 3 where a trial is missing or failed.

    Args:
        runs: two or more runs' folders.
        out: the folder of the joined run.
        keep: the run whose results win where runs differ.
        suite_name: the suite whose trials are to be there; None: those that any of the runs planned.

    Raises:
        UsageError: the runs cannot be joined, or they differ and ``keep`` does not decide; nothing was written.
    """
    target = pathlib.Path(out).absolute()
    inputs = _opened(runs)
    _check_out(target, inputs)
    winner = _winner(keep, inputs)
    whole = _planned(suite_name, inputs[0]) if suite_name else None
    _check_alike([*inputs, *([whole] if whole else [])])
    trials, notes = _united(inputs, winner, whole)
    chosen, further = _chosen(inputs, trials, winner)
    chosen, others = _of_one_kind(chosen, trials, winner)
    with rundir.locked(target):
        _check_out(target, inputs)  # another process may have been faster
        _write(target, inputs, trials, chosen)
        tables = results.load(target)
        results.write_tables(tables)
    code = _conclude(tables, inputs, chosen, [*notes, *further, *others], target)
    print(target)
    return code


# -- what is given -----------------------------------------------------------------------------------------------------


def _opened(runs: Sequence[str]) -> list[_Run]:
    if len(runs) < 2:
        raise UsageError(
            Problem(f"{len(runs)} runs given; merge joins two or more", hint="tta-bench merge A B --out C")
        )
    inputs = [_open(given) for given in runs]
    places = [run.path.resolve() for run in inputs]
    for run, place in zip(inputs, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(Problem("the run is given twice", run.given, hint="give each run once"))
    return inputs


def _open(given: str) -> _Run:
    path = pathlib.Path(given)
    plan, sessions = _content(path / "plan.json"), _content(path / "run.json")
    return _Run(given, path, plan, sessions["sessions"])


def _content(path: pathlib.Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        hint = "give folders that 'tta-bench run' printed last, copied whole"
        raise UsageError(Problem(f"not a whole run: {error}", str(path.parent), hint=hint)) from error
    if content["schema_version"] != results.SCHEMA_VERSION:
        what = f"schema version {content['schema_version']}, this tta-bench reads {results.SCHEMA_VERSION}"
        raise UsageError(Problem(what, str(path), hint="merge with the tta-bench that made it, or run it again"))
    return content


def _check_out(target: pathlib.Path, inputs: Sequence[_Run]) -> None:
    if any(run.path.resolve() == target.resolve() for run in inputs):
        what = "--out is one of the runs to merge, which are left as they are"
        raise UsageError(Problem(what, str(target), hint="choose a new folder with --out DIR"))
    if any((target / name).exists() for name in ("plan.json", "run.json", "trials")):
        what = "--out holds a run, or a part of one"
        raise UsageError(Problem(what, str(target), hint="choose a new folder with --out DIR, or remove that one"))


def _winner(keep: str | None, inputs: Sequence[_Run]) -> _Run | None:
    """The run that ``--keep`` names: as it was given, by its place, or by its folder's name where one has it."""
    if keep is None:
        return None
    place = pathlib.Path(keep).resolve()
    found = [run for run in inputs if run.path.resolve() == place]
    found = found or [run for run in inputs if run.path.resolve().name == keep]
    if len(found) != 1:
        what = "names several of the runs" if found else "is none of the runs"
        raise UsageError(Problem(f"--keep {keep} {what}", hint="one of: " + ", ".join(run.given for run in inputs)))
    return found[0]


def _check_alike(inputs: Sequence[_Run]) -> None:
    """Refuse runs that are no parts of one benchmark: their cells would stand in one table and mean different things."""
    first, problems = inputs[0], []
    for run in inputs[1:]:
        ours, theirs = _setting(first), _setting(run)
        for name in ours.keys() & theirs.keys():
            if ours[name] != theirs[name]:
                what = f"{name} is {_shown(theirs[name])}, and {_shown(ours[name])} in {first.given}"
                problems.append(Problem(what, run.given, hint="merge runs of one suite, of the same images"))
    if problems:
        raise UsageError(sorted(problems, key=str))


def _setting(run: _Run) -> dict[str, Any]:
    """What a benchmark's tables take for granted, by name."""
    counts = [count for t in run.trials if (count := t["adapt_images"]) is not None]
    return {
        "suite": [run.plan["suite"]],
        "all_images (no --limit)": [run.plan["all_images"]],
        "the number of images": sorted({t["images"] for t in run.trials}),
        "batch_size": sorted({t["batch_size"] for t in run.trials}),
        "precision": sorted({t["precision"] for t in run.trials}),
        "protocol": sorted({t["protocol"] for t in run.trials}),
        "the largest adapt_images": [max(counts, default="all")],  # error_after_pct is over the images after it
        **{f"the data of {model}": sorted(names) for model, names in _datasets(run).items()},
    }


def _datasets(run: _Run) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for trial in run.trials:
        names.setdefault(trial["model"], set()).add(trial["dataset"])
    return names


def _shown(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _planned(name: str, first: _Run) -> _Run:
    """The suite as a run without results, planned anew over as many images as the first run had.

    Raises:
        UsageError: the suite cannot be planned here.
    """
    made = planning.make(suite.load(name), None if first.plan["all_images"] else first.trials[0]["images"])
    with tempfile.TemporaryDirectory() as folder:  # through the one place that knows how plan.json says it
        results.write_plan(pathlib.Path(folder), made)
        return _Run(f"--suite {name}", pathlib.Path(folder), _content(pathlib.Path(folder) / "plan.json"), [])


# -- the plan ----------------------------------------------------------------------------------------------------------


def _united(inputs: Sequence[_Run], winner: _Run | None, whole: _Run | None) -> tuple[list[Trial], list[str]]:
    """(all trials that a run or the suite planned, each cell of the tables once, in order; what is to be said of them).

    Raises:
        UsageError: runs asked for one cell in different ways, and ``winner`` asked for none of them.
    """
    held: dict[tuple[Any, ...], tuple[_Run, Trial]] = {}
    united, dropped, clashes = list[Trial](), list[Trial](), list[_Clash]()
    for run in sorted(inputs, key=lambda run: run is not winner):
        for trial in run.trials:
            holders = [held[cell] for cell in _cells(trial) if cell in held]
            others = [(by, holder) for by, holder in holders if holder["key"] != trial["key"]]
            if not holders:
                united.append(trial)
                held |= dict.fromkeys(_cells(trial), (run, trial))
            elif others and any(by is winner for by, _ in others):
                dropped.append(trial)
            elif others:
                [(by, holder), *_] = others
                clashes.append(_Clash(trial, by, run, _difference(_asked(by, holder), _asked(run, trial))))
    if clashes:
        raise UsageError(_clashing(clashes))
    notes = [f"  {_count(len(dropped), 'cell was', 'cells were')} asked for differently; "
             f"kept as {winner.given} asked"] if dropped and winner else []  # fmt: skip
    if whole is not None:
        notes += _differently(whole.trials, {cell: trial for cell, (_, trial) in held.items()})
        united += [trial for trial in whole.trials if not any(cell in held for cell in _cells(trial))]
    return _ordered(united, [run.trials for run in ([whole] if whole else []) + list(inputs)]), notes


def _cells(trial: Trial) -> list[tuple[Any, ...]]:
    """The cells of the tables that a trial fills. Several continual streams may begin with the same clean images."""
    shifts = [name for _, severity, name in trial["shifts"] if severity] or [name for _, _, name in trial["shifts"]]
    return [(trial["label"], trial["model"], trial["adapt_images"], trial["seed"], name) for name in shifts]


def _differently(whole: Sequence[Trial], held: Mapping[tuple[Any, ...], Trial]) -> list[str]:
    """One line on cells that the runs asked for in another way than the suite does here and now."""
    others = [t for t in whole if any(cell in held and held[cell]["key"] != t["key"] for cell in _cells(t))]
    if not others:
        return []
    what = f"  {_count(len(others), 'trial was', 'trials were')} run with other code, weights, data or hyperparameters"
    return [f"{what} than --suite asks for now: {_listed(others)}"]


def _ordered(trials: Sequence[Trial], plans: Sequence[Sequence[Trial]]) -> list[Trial]:
    """``trials`` in a suite's order: by method, model, seed, adapt_images, severity, corruption, each as in ``plans``."""

    def axis(values: Any) -> dict[Any, int]:
        return _axis([list(dict.fromkeys(value for trial in plan for value in values(trial))) for plan in plans])

    labels, models = axis(lambda t: [t["label"]]), axis(lambda t: [t["model"]])
    seeds, counts = axis(lambda t: [t["seed"]]), axis(lambda t: [_images_adapted_on(t)])
    severities = axis(lambda t: [severity for _, severity, _ in t["shifts"] if severity])
    corruptions = axis(lambda t: [corruption for corruption, _, _ in t["shifts"]])

    def place(trial: Trial) -> tuple[Any, ...]:
        severity = max(severities.get(severity, 0) for _, severity, _ in trial["shifts"])  # clean goes with the first
        shifts = [corruptions[corruption] for corruption, _, _ in trial["shifts"]]
        count = counts[_images_adapted_on(trial)]
        return labels[trial["label"]], models[trial["model"]], seeds[trial["seed"]], count, severity, shifts

    return sorted(trials, key=place)


def _images_adapted_on(trial: Trial) -> float:
    return float("inf") if trial["adapt_images"] is None else trial["adapt_images"]


def _axis(orders: Sequence[Sequence[Any]]) -> dict[Any, int]:
    """The position of each value, from the order that each run has it in.

    Numbers that ascend in every run ascend. Else the first run's order holds, and what a further run adds goes before the
    next value that is known, or to the end.
    """
    if all(not isinstance(v, str) for order in orders for v in order) and all(sorted(o) == list(o) for o in orders):
        return {value: i for i, value in enumerate(sorted({value for order in orders for value in order}))}
    merged: list[Any] = []
    for order in orders:
        for i, value in enumerate(order):
            if value not in merged:
                later = next((merged.index(v) for v in order[i + 1 :] if v in merged), len(merged))
                merged.insert(later, value)
    return {value: i for i, value in enumerate(merged)}


@dataclass(frozen=True)
class _Clash:
    """A trial of ``run`` that was asked for in another way than ``by`` asked."""

    trial: Trial
    by: _Run
    run: _Run
    difference: str


def _clashing(clashes: Sequence[_Clash]) -> Problem:
    lines = []
    for clash in clashes[:_SHOWN]:
        lines.append(f"  {_row(clash.trial)}: {_place(clash.trial)}")
        lines.append(f"    {clash.by.given} and {clash.run.given} differ in {clash.difference}")
    if len(clashes) > _SHOWN:
        lines.append(f"  and {len(clashes) - _SHOWN} more")
    what = f"{_count(len(clashes), 'trial was', 'trials were')} asked for in different ways"
    hint = "run one of the runs again as the other was run, or name the run that counts with --keep RUN"
    return Problem(what, source="\n".join(lines), hint=hint)


def _asked(run: _Run, trial: Trial) -> Mapping[str, Any]:
    """What the key depends on, where the trial was run; else what the plan says of it."""
    try:
        asked: Mapping[str, Any] = json.loads((run.path / "trials" / f"{trial['key']}.json").read_text())["asked"]
    except _BROKEN:
        return {"method": {"config": trial["config"]}, "batch_size": trial["batch_size"]}
    return asked


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    names = [name for name in left if name in right and left[name] != right[name]]
    shown = [f"{name} ({str(left[name])[:24]} / {str(right[name])[:24]})" for name in names[:_SHOWN]]
    return ", ".join(shown) or "code, weights, data or hyperparameters (which, is known of trials that ran)"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


# -- the trials --------------------------------------------------------------------------------------------------------


def _chosen(
    inputs: Sequence[_Run], trials: Sequence[Trial], winner: _Run | None
) -> tuple[dict[str, _Record], list[str]]:
    """(the record that counts for each key that has one, what is to be said of the others).

    Raises:
        UsageError: runs predict differently for a key, and ``winner`` does not decide.
    """
    keys = list(dict.fromkeys(t["key"] for t in trials))
    found, notes = _records(inputs, keys)
    chosen, agreed, overruled, clashes = dict[str, _Record](), 0, 0, dict[str, list[_Record]]()
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
    said = [f"  {_count(agreed, 'trial was', 'trials were')} in several runs and agreed"]
    if overruled and winner:
        said.append(f"  {_count(overruled, 'trial', 'trials')} differed; {winner.given} is kept")
    return chosen, said + notes


def _of_one_kind(
    chosen: Mapping[str, _Record], trials: Sequence[Trial], winner: _Run | None
) -> tuple[dict[str, _Record], list[str]]:
    """(the records without those that were asked for in another way than ``winner`` asked, what is to be said of them).

    What stands in one table must be of one making, though no two runs made the same cell: one learning rate in a row, the
    same weights, images and order of images in all rows.

    Raises:
        UsageError: records of several runs differ in it, and ``winner`` does not decide.
    """
    by_key = {t["key"]: t for t in reversed(trials)}
    kept, dropped, clashes = dict[str, _Record](), 0, list[_Clash]()
    held: dict[tuple[Any, ...], tuple[_Run, Any]] = {}
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
            difference = _difference({scope[0]: value}, {scope[0]: making[scope]})
            clashes.append(_Clash(by_key[key], by, record.run, difference))
    if clashes:
        raise UsageError(_clashing(clashes))
    what = f"{_count(dropped, 'trial was', 'trials were')} asked for in another way"
    notes = [f"  {what} than {winner.given} asked; left out"] if dropped and winner else []
    return {key: kept[key] for key in chosen if key in kept}, notes


def _making(trial: Trial, asked: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """The parts of what was asked, each under all that it may depend on in one run."""
    shifts = tuple(name for _, _, name in trial["shifts"])
    return {
        ("numerics_version",): asked.get("numerics_version"),
        ("method", trial["label"], trial["model"]): asked.get("method"),
        ("source", trial["label"], trial["model"]): asked.get("source"),
        ("model", trial["model"]): asked.get("model"),
        ("data", trial["model"], shifts): asked.get("data"),
        ("stream", trial["model"], shifts, trial["seed"], trial["adapt_images"]): asked.get("stream"),
    }


def _records(inputs: Sequence[_Run], keys: Sequence[str]) -> tuple[dict[str, list[_Record]], list[str]]:
    """(each key's records in the order of the runs, a line for each run with files that do not count)."""
    found: dict[str, list[_Record]] = {}
    notes = []
    for run in inputs:
        torn = []
        for key in keys:
            try:
                record = _read(run, key)
            except _BROKEN as error:
                torn.append(f"{key[:12]}… ({error})")
                continue
            if record is not None:
                found.setdefault(key, []).append(record)
        if torn:
            what = _count(len(torn), "torn trial file does", "torn trial files do")
            notes.append(f"  {run.given}: {what} not count: {_capped(torn)}")
        stale = len({path.stem for path in (run.path / "trials").glob("*.json")}.difference(keys))
        if stale:
            notes.append(f"  {run.given}: {_count(stale, 'stale trial file is', 'stale trial files are')} left out")
    return found, notes


def _read(run: _Run, key: str) -> _Record | None:
    """A run's record of ``key``, or None where it has none; anything in ``_BROKEN`` where its files are torn."""
    path = run.path / "trials" / f"{key}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if content["schema_version"] != results.SCHEMA_VERSION:
        raise ValueError(f"schema version {content['schema_version']}, not {results.SCHEMA_VERSION}")
    if content["key"] != key:
        raise ValueError("it is another trial's")
    if not all(isinstance(content[name], dict) for name in ("asked", "facts", "environment")):
        raise ValueError("asked, facts and environment are no mappings")
    if content["session"] not in [session["session"] for session in run.sessions]:
        raise ValueError(f"session {content['session']} is not in run.json")
    if content["status"] != "ok":
        return _Record(run, content, "")
    arrays = _arrays(path.with_suffix(".npz"))
    digest = hashlib.sha256()
    for name in _PREDICTIONS:
        digest.update(arrays[name].astype(np.int64).tobytes())
    return _Record(run, content, digest.hexdigest())


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        read = {name: arrays[name] for name in arrays.files}  # all, so that every checksum is verified
    if len({len(read[name]) for name in (*_PREDICTIONS, "images/batch")}) != 1:
        raise ValueError("its arrays are not of one length")
    return read


def _disagreement(clashes: Mapping[str, Sequence[_Record]], trials: Mapping[str, Trial]) -> Problem:
    lines = []
    for key in list(clashes)[:_SHOWN]:
        lines.append(f"  {_row(trials[key])}: {_place(trials[key])} ({key[:12]}…)")
        first = clashes[key][0]
        lines += [f"    {record.run.given}: {_origin(record)}{_apart(record, first)}" for record in clashes[key]]
    if len(clashes) > _SHOWN:
        lines.append(f"  and {len(clashes) - _SHOWN} more")
    what = f"{_count(len(clashes), 'trial is', 'trials are')} ok in several runs with different predictions"
    return Problem(what, source="\n".join(lines), hint="name the run whose results win with --keep RUN")


def _origin(record: _Record) -> str:
    where, segments = record.content["environment"], record.content["segments"]
    said = [f"{name} {where.get(name)}" for name in ("host", "device_name", "torch", "threads")]
    wrong = 1 - sum(s["correct"] for s in segments) / sum(s["images"] for s in segments)
    return ", ".join([*said, f"error_pct {100 * wrong:.3f}"])


def _apart(record: _Record, first: _Record) -> str:
    """How many predictions differ from the first run's: some in the last bits of a network are not a wrong network."""
    if record is first or record.predictions == first.predictions:
        return "" if record is first else ", as the first"
    ours, theirs = (_arrays(r.run.path / "trials" / f"{r.content['key']}.npz") for r in (record, first))
    if any(not np.array_equal(ours[name], theirs[name]) for name in ("images/image", "images/shift")):
        return ", over other images than the first"
    different = int((ours["images/predicted"] != theirs["images/predicted"]).sum())
    return f", {different} of {len(ours['images/predicted'])} predictions differ from the first"


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(
    target: pathlib.Path, inputs: Sequence[_Run], trials: Sequence[Trial], chosen: Mapping[str, _Record]
) -> None:
    sessions, numbers = _sessions(inputs)
    folder = target / "trials"
    folder.mkdir()
    for key, record in chosen.items():
        for name in (f"trials/{key}.npz", runlog.name(key)):
            _copy(record.run.path / name, target / name)
        session = numbers[record.run.given, record.content["session"]]
        results.write_json(folder / f"{key}.json", {**record.content, "session": session})
    notes = sorted({note for run in inputs for note in run.plan["notes"]})
    results.write_json(target / "run.json", {"schema_version": results.SCHEMA_VERSION, "sessions": sessions})
    results.write_json(target / "plan.json", {**inputs[0].plan, "notes": notes, "trials": trials})


def _copy(file: pathlib.Path, to: pathlib.Path) -> None:
    """Copy a file atomically; nothing where there is none."""
    if file.exists():
        to.parent.mkdir(exist_ok=True)
        with open(file, "rb") as source:
            results.write_atomically(to, lambda stream: shutil.copyfileobj(source, stream))


def _sessions(inputs: Sequence[_Run]) -> tuple[list[dict[str, Any]], dict[tuple[str, int], int]]:
    """(all sessions, each saying in ``merged_from`` what it was; the new number of each run's session)."""
    sessions: list[dict[str, Any]] = []
    numbers = {}
    for run in inputs:
        for session in run.sessions:
            numbers[run.given, session["session"]] = len(sessions)
            origin = {"run": run.path.resolve().name, "session": session["session"]}
            if "merged_from" in session:
                origin["merged_from"] = session["merged_from"]
            sessions.append({**session, "session": len(sessions), "merged_from": origin})
    return sessions, numbers


# -- what came out -----------------------------------------------------------------------------------------------------


def _conclude(
    tables: results.Results, inputs: Sequence[_Run], chosen: Mapping[str, _Record], notes: Sequence[str],
    target: pathlib.Path,
) -> int:  # fmt: skip
    """Say what came from where and what is missing; the exit code is 3 where a trial is missing or failed."""
    name, trials = tables.plan["suite"], tables.plan["trials"]
    came = Counter(record.run.given for record in chosen.values())
    lines = [f"{name}: {len(inputs)} runs merged into {target}"]
    lines += [f"  {run.given}: {_count(came[run.given], 'trial', 'trials')}" for run in inputs]
    lines += [*notes, f"{name}: " + ", ".join(f"{count} {status}" for status, count in tables.counts.items())]
    lacking = {
        "missing": [t for t in trials if t["key"] not in chosen],
        "failed": [t for t in trials if t["key"] in chosen and chosen[t["key"]].content["status"] == "failed"],
    }
    for status, those in lacking.items():
        lines += _grouped(status, those, len(trials))
    console = Console(stderr=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 3 if any(lacking.values()) else 0


def _grouped(status: str, those: Sequence[Trial], total: int) -> list[str]:
    """``missing 3 of 12:``, then a line for each method and model."""
    if not those:
        return []
    rows: dict[str, list[Trial]] = {}
    for trial in those:
        rows.setdefault(_row(trial), []).append(trial)
    lines = [f"  {row}: {len(of_row)} ({_capped([_place(t) for t in of_row])})" for row, of_row in rows.items()]
    more = [f"  and {len(lines) - _ROWS} more rows"] if len(lines) > _ROWS else []
    return [f"{status} {len(those)} of {total}:", *lines[:_ROWS], *more]


def _row(trial: Trial) -> str:
    return f"{trial['label']} · {trial['model']}"


def _place(trial: Trial) -> str:
    names = [name for _, _, name in trial["shifts"]]
    shifts = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    adapted = "" if trial["adapt_images"] is None else f" adapt_images {trial['adapt_images']}"
    return f"{shifts}{adapted} seed {trial['seed']}"


def _listed(trials: Sequence[Trial]) -> str:
    return _capped([f"{_row(t)} {_place(t)}" for t in trials])


def _capped(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:_SHOWN], *(["…"] if len(texts) > _SHOWN else [])])


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
