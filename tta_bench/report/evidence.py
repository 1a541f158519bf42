"""The evidence of a report: the tables of one or more runs, and whether they can share a table.

Refused are runs whose images, versions or precision differ (unless with ``mix``: then every table is labelled MIXED), one
label for two sets of hyperparameters, and cells that two runs fill.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tta_bench.errors import Problem, UsageError
from tta_bench.precision import Mode
from tta_bench.report.table import CORRUPTIONS
from tta_bench.setting import Setting
from tta_bench.store import documents, results
from tta_bench.store.results import Results

_CELL_KEY = ["label", "model", "setting", "seed", "segment", "shift", "visit"]
TRIAL = ["run", "label", "model", "setting", "key"]  # identifies a trial: several labels and settings can share a key
CLEAN = "clean"  # the family that is part of every table
ALL_IMAGES = "all images"  # the shift of a row that joins a segment's rows of compounds, which can be thousands
_PACKAGES = ("torch", "timm")


@dataclass(frozen=True)
class Evidence:
    """The tables of all runs of a report.

    Attributes:
        runs: in the order given.
        segments, shifts: as in :mod:`tta_bench.store.schema`, with ``run`` (its number), ``images_planned`` (images per
            shift), ``partial`` (whether only a part of the data set was used), ``section`` (id of the setting without
            severities and number of images adapted on) and ``of_severity`` (of the error table that a row belongs to; 0:
            to those of every severity). Rows of compounds are joined into one of each segment; they and corruptions are
            of one ``family``.
        batches: the online curves, with ``run``.
        mixed: how the runs differ, a sentence each; only with ``mix``.
        notes: sentences for the reader.
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
        sections = (section_of(trial) for _, trial in self.trials())
        return {section.id: section for section in sections}

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
        """The sessions of each run, as in ``run.json``."""
        return [documents.sessions(run.path) for run in self.runs]


def gather(folders: Sequence[pathlib.Path], *, mix: bool = False) -> Evidence:
    """Read runs.

    Args:
        folders: of the runs, each once.
        mix: allow runs that differ in images, versions or precision.

    Raises:
        UsageError: a folder is no run, or the runs cannot share a table.
    """
    resolved = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]:
        raise UsageError(Problem("the run is given twice", twice[0], hint="give each run once"))
    runs = tuple(results.load(folder) for folder in folders)
    segments, shifts, batches = (_joined(runs, name) for name in ("segments", "shifts", "batches"))
    problems = [*_doubled(runs, shifts), *_relabelled(runs)]
    differences = list(_differences(runs, segments))
    if not mix:
        problems += [Problem(text, hint="report each separately, or allow it with --mix") for text in differences]
    if problems:
        raise UsageError(problems)
    return Evidence(runs, segments, shifts, batches, tuple(differences), tuple(_notes(runs, segments)))


def of_shifts(table: pd.DataFrame, shifts: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table`` (segments or batches) that belong to the segments of ``shifts``."""
    segment = [*TRIAL, "position"]
    wanted = pd.MultiIndex.from_frame(shifts[segment].drop_duplicates())
    return table[pd.MultiIndex.from_frame(table[segment]).isin(wanted)]


def adapting_most(rows: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """(images of each segment adapted on, 0 for all; rows), of the trials that adapt on most."""
    adapted = rows["adapt_images"].fillna(0).astype(int)
    most = 0 if (adapted == 0).any() else int(adapted.max())
    return most, rows[adapted == most]


def _joined(runs: Sequence[Results], name: str) -> pd.DataFrame:
    """A table of all runs, concatenated."""
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
    table = _with_compounds_joined(table, {trial["key"] for trial in run.plan["trials"] if _has_compounds(trial)})
    severities = {setting: trial["setting_values"]["severities"] for setting, trial in settings.items()}
    return table.assign(of_severity=_of_severity(table, severities), family=_family(table))


def _family(shifts: pd.DataFrame) -> pd.Series:
    """The family of each row; that of corruptions for compounds, and where an earlier version has not recorded any."""
    family = shifts["family"]
    family = family.mask(family.isna() | family.isin(["", "compound"]), CORRUPTIONS)
    return family.mask(shifts["corruption"] == CLEAN, CLEAN)


def _has_compounds(trial: Mapping[str, Any]) -> bool:
    return any("+" in name for name, *_ in trial["shifts"])


def _with_compounds_joined(shifts: pd.DataFrame, keys: set[str]) -> pd.DataFrame:
    """One row for each segment of the trials ``keys``: errors over all its images; without what those do not tell."""
    compounds = shifts["key"].isin(keys)
    if not compounds.any():
        return shifts
    segment = [*TRIAL, "position"]
    rows = shifts[compounds].assign(shift=ALL_IMAGES, corruption=ALL_IMAGES, visit=0, error_after_pct=np.nan)
    rows = rows.assign(class_mean_error_pct=np.nan, distinct_images=np.nan, ece_pct=np.nan)
    counts = ["images", "correct", "images_adapted", "images_skipped"]
    means = {"error_pct": "images", "error_adapted_pct": "images_adapted", "error_skipped_pct": "images_skipped",
             "confidence_mean": "images", "nll": "images"}  # fmt: skip
    weighted = rows.assign(**{mean: rows[mean] * rows[count] for mean, count in means.items()})
    sums = weighted.groupby(segment, sort=False)[[*counts, *means]].sum(min_count=1).reset_index()
    sums = sums.assign(**{mean: sums[mean] / sums[count] for mean, count in means.items()})
    joined = (
        rows.drop_duplicates(segment).drop(columns=[*counts, *means]).merge(sums, on=segment, validate="one_to_one")
    )
    return pd.concat([shifts[~compounds], joined[shifts.columns].astype(shifts.dtypes)], ignore_index=True)


def section_of(trial: Mapping[str, Any]) -> Setting:
    """The setting of a planned trial, without severities and number of images adapted on."""
    return Setting.of(trial["setting_values"]).without("severities").without("adapt_images")


def _of_severity(shifts: pd.DataFrame, severities: Mapping[str, Sequence[float]]) -> list[int]:
    """The severity of each row's error table: the only one of its stream, or, of several, its own."""
    only = {setting: int(several[0]) if len(several) == 1 else None for setting, several in severities.items()}
    rows = zip(shifts["setting"], shifts["severity"], strict=True)
    return [int(severity) if (one := only[setting]) is None else one for setting, severity in rows]


# -- refusals ---------------------------------------------------------------------------------------------------------


def _doubled(runs: Sequence[Results], shifts: pd.DataFrame) -> Iterator[Problem]:
    """Cells that two runs fill: their mean would count one as a further seed."""
    if len(runs) < 2:
        return
    cells = shifts.groupby(_CELL_KEY, dropna=False, sort=False)["run"].agg(["nunique", "min", "max"])
    for (first, last), group in cells[cells["nunique"] > 1].groupby(["min", "max"]):
        label, model, *_ = group.index[0]
        cause = f"{len(group)} cells are also in {runs[first].path}, the first is {label} on {model}"
        hint = "join parts of one suite with tta-bench merge; give rows of other settings their own label:"
        yield Problem(cause, str(runs[last].path), hint=hint)


def _relabelled(runs: Sequence[Results]) -> Iterator[Problem]:
    """Labels whose hyperparameters differ between runs."""
    configs: dict[tuple[Any, ...], tuple[int, Mapping[str, Any]]] = {}
    reported = set()
    for number, run in enumerate(runs):
        for trial in run.plan["trials"]:
            row = (trial["label"], trial["model"], section_of(trial))
            first, before = configs.setdefault(row, (number, trial))
            if row not in reported and _hyperparameters(trial, before) != _hyperparameters(before, trial):
                reported.add(row)
                cause = f"{row[0]} on {row[1]} has other hyperparameters than in {runs[first].path}"
                yield Problem(cause, str(run.path), hint="give one of the two another label: in its suite")


def _hyperparameters(trial: Mapping[str, Any], beside: Mapping[str, Any]) -> list[Any]:
    """Hyperparameters to compare with those of ``beside``: files by content where both plans have it, else by name."""
    both = "config_keyed" in trial and "config_keyed" in beside
    config = _overlaid(trial["config"], trial["config_keyed"]) if both else trial["config"]
    return [trial["method"], trial["variant"], config]


def _overlaid(values: Any, by_content: Any) -> Any:
    """``values`` replaced by those of ``by_content``, options one by one."""
    if not (isinstance(values, Mapping) and isinstance(by_content, Mapping)):
        return by_content
    return {**values, **{name: _overlaid(values.get(name), value) for name, value in by_content.items()}}


def _differences(runs: Sequence[Results], segments: pd.DataFrame) -> Iterator[str]:
    """How runs of one data set differ, a sentence each."""
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
    """The shifts whose images differ between two runs, for source models that both have."""
    prints = [
        {(t["model"], t["dataset"], _listed(shift[2] for shift in t["shifts"])): t["data"] for t in run.plan["trials"]}
        for run in (one, other)
    ]
    return _listed(dict.fromkeys(p[2] for p in prints[0].keys() & prints[1].keys() if prints[0][p] != prints[1][p]))


def _conditions(run: Results, rows: pd.DataFrame) -> dict[str, list[str]]:
    used = _used_sessions(run, rows)
    return {
        "precision": sorted(modes(rows)),
        "images a shift": sorted({str(n) for n in rows["images_planned"]}),
        "numerics_version": [str(run.plan["numerics_version"])],
        "tta_bench": sorted({s["tta_bench"] for s in used}),
        **{name: sorted({s["packages"].get(name, "none") for s in used}) for name in _PACKAGES},
    }


def modes(rows: pd.DataFrame) -> list[str]:
    """How the networks of rows computed, each way once: ``float32``, ``bfloat16, compiled``."""
    defaults = vars(Mode())  # of rows without a result
    values = rows.reindex(columns=[*defaults]).astype(object).fillna(defaults).drop_duplicates()
    return [Mode(*each).text for each in values.itertuples(index=False)]


def _used_sessions(run: Results, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The sessions that produced rows."""
    numbers = set(rows["session"].dropna().astype(int))
    return [session for session in documents.sessions(run.path) if session["session"] in numbers]


def _listed(values: Iterable[str]) -> str:
    return ", ".join(values)


# -- notes -------------------------------------------------------------------------------------------------------------


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
                yield f"{run.path.name} mixes several values of {name}: {_listed(values)}."
        if run.damaged:
            yield f"{run.path.name} has {len(run.damaged)} damaged trials, counted as missing: run the suite again."
        if run.stale:
            yield f"{run.path.name} has {run.stale} trial files of an earlier plan, left out here."
