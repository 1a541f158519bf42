"""Merge runs of one suite that were made on several machines: results are copied, by key, into one plan.

All inputs are read and checked before the first byte is written. ``plan.json`` is written last, so that a merge which was
killed leaves no folder that passes for a run.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tta_bench import preparation
from tta_bench.errors import Problem, UsageError
from tta_bench.files import write_json
from tta_bench.precision import Mode
from tta_bench.store import documents, records, results, runlog

SHOWN = 5  # of a list of trials


class InputRun(NamedTuple):
    """A run to merge, under the name that the user gave it; its sessions by number."""

    name: str
    path: pathlib.Path
    plan: Mapping[str, Any]
    sessions: Mapping[int, Mapping[str, Any]]


class Source(NamedTuple):
    """The record that is copied, and the run that holds it."""

    run: InputRun
    record: Mapping[str, Any]


def open_run(name: str) -> InputRun:
    """Read the plan and the sessions of a run.

    Raises:
        UsageError: the folder is not a whole run of this schema version.
    """
    path = pathlib.Path(name)
    records.check_version(path)
    plan, sessions = documents.plan(path), documents.sessions(path)
    return InputRun(name, path, plan, {session["session"]: session for session in sessions})


# -- what runs must agree in -------------------------------------------------------------------------------------------


def check_comparable(runs: Sequence[InputRun]) -> None:
    """Refuse runs whose numbers must not stand in one table: of other images, weights, hyperparameters, code, …

    Raises:
        UsageError: with the first differences.
    """
    known: dict[str, tuple[InputRun, Any]] = {}
    problems = []
    for run in runs:
        for name, value in _facts(run):
            holder, expected = known.setdefault(name, (run, value))
            if value != expected:
                message = f"{name} is {value}, but {expected} in {holder.name}"
                problems.append(Problem(message, run.name, hint="merge runs of one suite, code and set of images"))
    if problems:
        raise UsageError(problems[:SHOWN])


def _facts(run: InputRun) -> Iterator[tuple[str, Any]]:
    """What all runs must agree in, by name; the key of each cell of the tables comes last."""
    plan, trials = run.plan, run.plan["trials"]
    yield "suite", plan["suite"]
    yield "numerics_version", plan["numerics_version"]
    yield "number of images", "all" if plan["all_images"] else max(trial["images"] for trial in trials)
    yield "protocol", ", ".join(sorted({trial["protocol"] for trial in trials}))
    limits = [trial["adapt_images"] for trial in trials if trial["adapt_images"] is not None]
    yield "largest adapt_images", max(limits, default="all")  # error_after_pct is over the images after it
    yield from _leaves("model", plan["models"])
    for trial in {(t["label"], t["model"], t["batch_size"]): t for t in trials}.values():
        asked, row = trial["asked"], f"{trial['label']} · {trial['model']} · batch size {trial['batch_size']}"
        yield from _leaves(row, asked["method"] | {"config": trial["config"] | asked["method"]["config"]})
        yield f"{row} · source images", asked.get("source")
    for trial in trials:
        yield f"images of {trial['model']} · {', '.join(name for *_, name in trial['shifts'])}", trial["data"]
    for trial in trials:
        row = f"key of {trial['label']} · {trial['model']} · setting {trial['setting']} · seed {trial['seed']}"
        for position, number, visit in trial["cells"]:
            yield f"{row} · {trial['segments'][position][0]} {trial['shifts'][number][2]} {visit}", trial["key"]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name} · {key}", item)
    else:
        yield name, value


# -- the merged run ----------------------------------------------------------------------------------------------------


def merge_plans(runs: Sequence[InputRun]) -> dict[str, Any]:
    """Content of the merged ``plan.json``: the trials of all runs, methods and models in the first run's order."""
    trials: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for trial in (trial for run in runs for trial in run.plan["trials"]):
        trials.setdefault((trial["label"], trial["setting"], trial["key"]), trial)
    names = ("label", "model", "batch_size", *vars(Mode()))
    ranks = {name: list(dict.fromkeys(trial.get(name) for trial in trials.values())) for name in names}
    plans = [run.plan for run in runs]
    return {
        **plans[0],
        "notes": sorted({note for plan in plans for note in plan["notes"]}),
        "models": {name: model for plan in plans for name, model in plan["models"].items()},
        "axes": list(dict.fromkeys(axis for plan in plans for axis in plan["axes"])),
        "trials": sorted(
            trials.values(), key=lambda t: (*(ranks[name].index(t.get(name)) for name in names), t["seed"])
        ),
    }


def choose_sources(
    runs: Sequence[InputRun], trials: Sequence[Mapping[str, Any]], keep: InputRun | None
) -> tuple[dict[str, Source], list[str]]:
    """(where each trial's record is copied from, by key; what is wrong with files that do not count).

    A result that is ok goes before a failure, and a method's failure before one of the infrastructure.

    Raises:
        UsageError: two runs predict differently for a key, and neither is ``keep``.
    """
    chosen, problems = dict[str, Source](), list[Problem]()
    damaged = [f"{file} is damaged" for run in runs for file in preparation.damaged(run.path)]
    for key, trial in {trial["key"]: trial for trial in trials}.items():
        sources = []
        for run in runs:
            stored = records.read_planned(run.path, trial)
            if stored.damage:
                damaged.append(stored.damage)
            elif stored.record and stored.record["session"] not in run.sessions:
                damaged.append(f"{run.path}/trials/{key}.json: its session is not in run.json")
            elif stored.record:
                sources.append(Source(run, stored.record))
        if sources:
            sources.sort(key=lambda source: (_rank(source.record), source.run is not keep))
            chosen[key] = sources[0]
            if sources[0].run is not keep:
                problems += _conflicts(trial, [source.run for source in sources if source.record["status"] == "ok"])
    if problems:
        raise UsageError(problems[:SHOWN])
    return chosen, damaged


def _rank(record: Mapping[str, Any]) -> int:
    if record["status"] == "ok":
        return 0
    return 2 if record["facts"].get("failure") == "infrastructure" else 1


def _conflicts(trial: Mapping[str, Any], runs: Sequence[InputRun]) -> Iterator[Problem]:
    """Runs whose predictions of a trial differ from the first one's; confidences may, on another kind of device."""
    if len(runs) > 1:
        first, *others = (_predictions(run.path, trial["key"]) for run in runs)
        for run, other in zip(runs[1:], others, strict=True):
            if not np.array_equal(first, other):
                differ = np.count_nonzero(first != other)
                message = f"{trial['label']} · {trial['model']} · {trial_name(trial)}: " \
                          f"{differ} of {len(first)} predictions differ from those in {runs[0].name}"  # fmt: skip
                yield Problem(message, run.name, hint="name the run whose results to keep with --keep RUN")


def _predictions(run: pathlib.Path, key: str) -> np.ndarray:
    """The class predicted for each image, or of a long stream the number of images classified correctly in each batch."""
    names = ("images/predicted", "batches/images_correct")
    arrays = results.read_arrays(run, key, names.__contains__)
    return next(arrays[name] for name in names if name in arrays)


def trial_name(trial: Mapping[str, Any]) -> str:
    """A trial within its row: ``contrast-5 visit 1 seed 0``."""
    names = [name for *_, name in trial["shifts"]]
    visit = trial["segments"][0][1]
    parts = [names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", f"visit {visit}" if visit else "",
             trial["protocol_parameters"], f"seed {trial['seed']}"]  # fmt: skip
    return " ".join(filter(None, parts))


def write(
    target: pathlib.Path, runs: Sequence[InputRun], plan: Mapping[str, Any], sources: Mapping[str, Source]
) -> None:
    """Write the merged run to a folder that holds none; ``merged_from`` says where each session comes from."""
    sessions, numbers = list[dict[str, Any]](), dict[tuple[str, int], int]()
    for run in runs:
        for number, session in run.sessions.items():
            numbers[run.name, number] = len(sessions)
            earlier = {"merged_from": session["merged_from"]} if "merged_from" in session else {}
            origin = {"run": run.path.resolve().name, "session": number, **earlier}
            sessions.append({**session, "session": len(sessions), "merged_from": origin})
    for folder in ("trials", "logs", preparation.FOLDER):
        (target / folder).mkdir(exist_ok=True)
    for key, (run, record) in sources.items():
        arrays = (run.path / "trials" / f"{key}.npz").read_bytes()
        (target / "trials" / f"{key}.npz").write_bytes(arrays)
        moved = records.renumbered(record, arrays, numbers[run.name, record["session"]])
        write_json(target / "trials" / f"{key}.json", moved)
        if (run.path / runlog.name(key)).is_file():
            shutil.copyfile(run.path / runlog.name(key), target / runlog.name(key))
    for run in runs[::-1]:
        damaged = preparation.damaged(run.path)
        for file in (run.path / preparation.FOLDER).glob("*.*"):
            if not {file, file.with_suffix("")} & {*damaged}:
                shutil.copyfile(file, target / preparation.FOLDER / file.name)
    about = {"schema_version": records.SCHEMA_VERSION, "sessions": sessions}
    documents.write(target / documents.RUN, about)
    documents.write(target / documents.PLAN, plan)
