"""One or more runs to one body of rows, and whether they may stand in one table.

Runs are read as they are. What would make a table lie is refused here: images, versions or precision that differ between
runs, and one label for two sets of hyperparameters. With ``mix`` the first kind is let through, and every table says so.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tta_bench.errors import Problem, UsageError
from tta_bench.setting import Setting
from tta_bench.store import results
from tta_bench.store.results import Results

_CELL = ["label", "model", "setting", "seed", "segment", "shift", "visit"]
TRIAL = ["run", "label", "model", "setting", "key"]  # names a trial in the tables; labels and settings may share a key
_PACKAGES = ("torch", "timm")


@dataclass(frozen=True)
class Evidence:
    """What a report is made from.

    Attributes:
        runs: in the order given.
        segments, shifts: the tables of all runs (:mod:`tta_bench.store.schema`), with ``run`` (number of the run),
            ``images_planned`` (images a shift), ``partial`` (only a part of the data set was used), ``section`` (id of the
            setting without severities and number of images adapted on) and ``of_severity`` (of the table in which a row
            stands; 0: in that of every severity).
        batches: the online curves of all runs, with ``run``.
        mixed: in words, how the runs differ that the user asked to put together; empty where they do not.
        notes: what a reader must know of the rows, in sentences.
    """

    runs: tuple[Results, ...]
    segments: pd.DataFrame
    shifts: pd.DataFrame
    batches: pd.DataFrame
    mixed: tuple[str, ...]
    notes: tuple[str, ...]

    @functools.cached_property
    def sections(self) -> dict[str, Setting]:
        """Settings without severities and number of images adapted on, by id."""
        found = (section_of(trial) for _, trial in self.trials())
        return {section.id: section for section in found}

    @property
    def title(self) -> str:
        """The suites' names."""
        return ", ".join(dict.fromkeys(str(run.plan["suite"]) for run in self.runs))

    @property
    def labels(self) -> list[str]:
        """All methods, in the order of the suites."""
        return list(dict.fromkeys(self.shifts["label"]))

    @property
    def models(self) -> list[str]:
        """All source models, in the order of the suites."""
        return list(dict.fromkeys(self.shifts["model"]))

    def trials(self) -> Iterator[tuple[Results, Mapping[str, Any]]]:
        """Each planned trial with its run."""
        for run in self.runs:
            for trial in run.plan["trials"]:
                yield run, trial

    def sessions(self) -> list[list[dict[str, Any]]]:
        """For each run what ``run.json`` says of its sessions."""
        return [_sessions(run.path) for run in self.runs]


def gather(folders: Sequence[pathlib.Path], *, mix: bool = False) -> Evidence:
    """Read runs.

    Args:
        folders: of the runs, each once.
        mix: put runs together whose images, versions or precision differ.

    Raises:
        UsageError: a folder is no run, or the runs must not stand in one table.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise UsageError(Problem("the run is given twice", twice[0], hint="give each run once"))
    runs = tuple(results.load(folder) for folder in folders)
    segments, shifts, batches = (_joined(runs, name) for name in ("segments", "shifts", "batches"))
    problems = [*_doubled(runs, shifts), *_relabelled(runs)]
    differences = list(_differences(runs, segments))
    if not mix:
        problems += [
            Problem(text, hint="make a report of each, or put them together with --mix") for text in differences
        ]
    if problems:
        raise UsageError(problems)
    return Evidence(runs, segments, shifts, batches, tuple(differences), tuple(_notes(runs, segments)))


def of_shifts(table: pd.DataFrame, shifts: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table``, segments or batches, that are of the segments which ``shifts`` are rows of."""
    place = [*TRIAL, "position"]
    places = pd.MultiIndex.from_frame(table[place])
    return table[places.isin(pd.MultiIndex.from_frame(shifts[place].drop_duplicates()))]


def adapting_most(rows: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """(images of each segment that were adapted on, 0 for all; their rows), of the trials that adapt on most."""
    adapted = rows["adapt_images"].fillna(0).astype(int)
    most = 0 if (adapted == 0).any() else int(adapted.max())
    return most, rows[adapted == most]


def _joined(runs: Sequence[Results], name: str) -> pd.DataFrame:
    """A table of all runs, one below the other."""
    return pd.concat([_numbered(run, number, name) for number, run in enumerate(runs)], ignore_index=True)


def _numbered(run: Results, number: int, name: str) -> pd.DataFrame:
    table = run.tables[name].assign(run=number)
    if name == "batches":
        return table
    planned = {trial["key"]: int(trial["images"]) for trial in run.plan["trials"]}
    settings = {trial["setting"]: trial for trial in run.plan["trials"]}  # several may share a key
    sections = {setting: section_of(trial).id for setting, trial in settings.items()}
    table = table.assign(images_planned=table["key"].map(planned), partial=not run.plan["all_images"])
    table = table.assign(section=table["setting"].map(sections))
    if name != "shifts":
        return table
    severities = {setting: trial["setting_values"]["severities"] for setting, trial in settings.items()}
    return table.assign(of_severity=_of_severity(table, severities))


def section_of(trial: Mapping[str, Any]) -> Setting:
    """The setting of a planned trial, without severities and number of images adapted on."""
    return Setting.of(trial["setting_values"]).without("severities").without("adapt_images")


def _of_severity(shifts: pd.DataFrame, severities: Mapping[str, Sequence[float]]) -> list[int]:
    """Of the table in which each row stands: that of the only severity in its stream; of several its own."""
    only = {setting: int(found[0]) if len(found) == 1 else None for setting, found in severities.items()}
    rows = zip(shifts["setting"], shifts["severity"], strict=True)
    return [int(severity) if (one := only[setting]) is None else one for setting, severity in rows]


def _sessions(folder: pathlib.Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["sessions"]
    except (OSError, ValueError, KeyError) as error:
        hint = "give a run's whole folder"
        raise UsageError(Problem(f"run.json cannot be read: {error}", str(folder), hint=hint)) from error
    return found


# -- what must not stand in one table ----------------------------------------------------------------------------------


def _doubled(runs: Sequence[Results], shifts: pd.DataFrame) -> Iterator[Problem]:
    """Cells that two runs fill: averaging them would count one of them as a further seed."""
    if len(runs) < 2:
        return
    places = shifts.groupby(_CELL, dropna=False, sort=False)["run"].agg(["nunique", "min", "max"])
    for (first, last), group in places[places["nunique"] > 1].groupby(["min", "max"]):
        label, model, *_ = group.index[0]
        what = f"{len(group)} cells are also in {runs[first].path}, the first is {label} on {model}"
        hint = "join parts of one suite with tta-bench merge; tell other settings apart by label:"
        yield Problem(what, str(runs[last].path), hint=hint)


def _relabelled(runs: Sequence[Results]) -> Iterator[Problem]:
    """Labels that stand for other hyperparameters in another run."""
    configs: dict[tuple[Any, ...], tuple[int, Mapping[str, Any]]] = {}
    said = set()
    for number, run in enumerate(runs):
        for trial in run.plan["trials"]:
            place = (trial["label"], trial["model"], section_of(trial))
            first, before = configs.setdefault(place, (number, trial))
            if place not in said and _hyperparameters(trial, before) != _hyperparameters(before, trial):
                said.add(place)
                what = f"{place[0]} on {place[1]} has other hyperparameters than in {runs[first].path}"
                yield Problem(what, str(run.path), hint="give one of the two another label: in its suite")


def _hyperparameters(trial: Mapping[str, Any], beside: Mapping[str, Any]) -> list[Any]:
    """What is compared with ``beside``: files by content, where the plans of both say it; else by name."""
    both = "config_keyed" in trial and "config_keyed" in beside
    config = _overlaid(trial["config"], trial["config_keyed"]) if both else trial["config"]
    return [trial["method"], trial["variant"], config]


def _overlaid(values: Any, by_content: Any) -> Any:
    """``values`` with what ``by_content`` has in their place, also within options."""
    if not (isinstance(values, Mapping) and isinstance(by_content, Mapping)):
        return by_content
    return {**values, **{name: _overlaid(values.get(name), value) for name, value in by_content.items()}}


def _differences(runs: Sequence[Results], segments: pd.DataFrame) -> Iterator[str]:
    """How runs differ that share a data set, in sentences."""
    for one, other in itertools.combinations(range(len(runs)), 2):
        shared = {t["dataset"] for t in runs[one].plan["trials"]} & {t["dataset"] for t in runs[other].plan["trials"]}
        if not shared:
            continue
        names = f"{runs[one].path.name} and {runs[other].path.name}"
        if images := _other_images(runs[one], runs[other]):
            yield f"{names} differ in images: {images}"
        ours, theirs = (_conditions(runs[i], segments[segments["run"] == i]) for i in (one, other))
        for name in ours:
            if ours[name] != theirs[name]:
                yield f"{names} differ in {name}: {_listed(ours[name])} against {_listed(theirs[name])}"


def _other_images(one: Results, other: Results) -> str:
    """The shifts whose images have other fingerprints, for a source model that both runs have."""
    prints = [
        {(t["model"], t["dataset"], _listed(shift[2] for shift in t["shifts"])): t["data"] for t in run.plan["trials"]}
        for run in (one, other)
    ]
    return _listed(dict.fromkeys(p[2] for p in prints[0].keys() & prints[1].keys() if prints[0][p] != prints[1][p]))


def _conditions(run: Results, rows: pd.DataFrame) -> dict[str, list[str]]:
    used = _used_sessions(run, rows)
    return {
        "precision": sorted(set(rows["precision"])),
        "images a shift": sorted({str(n) for n in rows["images_planned"]}),
        "numerics_version": [str(run.plan["numerics_version"])],
        "tta_bench": sorted({s["tta_bench"] for s in used}),
        **{name: sorted({s["packages"].get(name, "none") for s in used}) for name in _PACKAGES},
    }


def _used_sessions(run: Results, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The sessions that made rows."""
    numbers = set(rows["session"].dropna().astype(int))
    return [session for session in _sessions(run.path) if session["session"] in numbers]


def _listed(values: Iterable[str]) -> str:
    return ", ".join(values)


# -- what a reader must know -------------------------------------------------------------------------------------------


def _notes(runs: Sequence[Results], segments: pd.DataFrame) -> Iterator[str]:
    for text in dict.fromkeys(str(note) for run in runs for note in run.plan["notes"]):
        yield f"Images are {text}."
    if segments["partial"].any():
        yield "Only a part of the images was used (--limit or max_images): this is not a result."
    for number, run in enumerate(runs):
        rows = segments[(segments["run"] == number) & (segments["status"] == "ok")]
        conditions = {**_conditions(run, rows), "device": sorted(set(rows["device"].dropna()))}
        for name, values in conditions.items():
            if len(values) > 1:
                yield f"{run.path.name} was made with several of {name}: {_listed(values)}."
        if run.damaged:
            yield f"{run.path.name} has {len(run.damaged)} damaged trials, which count as missing: run the suite again."
        if run.stale:
            yield f"{run.path.name} has {run.stale} trial files of an earlier plan, which are left out."
