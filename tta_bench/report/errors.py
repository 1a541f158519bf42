"""Rows to tables of errors: which cells there are, their means, and what is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.report import statistics
from tta_bench.report.evidence import Evidence, adapting_most
from tta_bench.report.images import ImageErrors
from tta_bench.report.marks import Resampled
from tta_bench.report.statistics import Ranks
from tta_bench.report.table import Cell, ErrorTable, Row, TableSetting
from tta_bench.setting import Setting

_ORDER = {name: position for position, name in enumerate(("clean", *NAMES))}


def tables(evidence: Evidence) -> list[ErrorTable]:
    """One table for each setting and severity; clean images of a stream that has no others stand in each.

    Where a run varies ``adapt_images``, that table is of the trials that adapt on most; :func:`curves` has the others.
    """
    made = []
    for base, frame in _sections(evidence):
        several = _adapt_on_several(frame)
        most, frame = adapting_most(frame)
        places = set(zip(frame["key"], frame["setting"], strict=True))
        errors = ImageErrors(evidence, places.__contains__)
        for severity in _severities(frame):
            part = frame[frame["of_severity"].isin([severity, 0])]
            made.append(_table(evidence, part, TableSetting(base, severity, most, several), errors))
    return _named(made)


def curves(evidence: Evidence) -> list[ErrorTable]:
    """Tables by number of images adapted on: over all images, and over those after the suite's largest number."""
    made = []
    for base, frame in _sections(evidence):
        if _adapt_on_several(frame):
            for severity in _severities(frame):
                part = frame[frame["of_severity"].isin([severity, 0])]
                columns = [name for name in ("error_pct", "error_after_pct") if part[name].notna().any()]
                made += [_curve(evidence, part, TableSetting(base, severity), column) for column in columns]
    return _named(made)


def _sections(evidence: Evidence) -> Iterator[tuple[Setting, pd.DataFrame]]:
    """Settings without severity and number of images adapted on, and their rows."""
    for section, frame in evidence.shifts.groupby("section", sort=False):
        yield evidence.sections[str(section)], frame


def _adapt_on_several(frame: pd.DataFrame) -> bool:
    """Whether trials adapt on different numbers of images."""
    return bool(frame["adapt_images"].fillna(0).nunique() > 1)


def _severities(frame: pd.DataFrame) -> list[int]:
    return sorted({int(s) for s in frame["of_severity"]} - {0}) or [0]


def _named(made: Sequence[ErrorTable]) -> list[ErrorTable]:
    """Names that are unique: of what tells the tables apart, as little as it takes."""
    bases = list(dict.fromkeys(t.setting.base for t in made))
    if len(bases) < 2:
        return list(made)
    short = [_short(base) for base in bases]
    names = {
        base: _plain(base.text) if short.count(name) > 1 else name for base, name in zip(bases, short, strict=True)
    }
    return [replace(t, name=f"{names[t.setting.base]}-{t.name}") for t in made]


def _short(base: Setting) -> str:
    return f"{_plain(base.dataset)}-{base.protocol}-{base.batch_size}"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- cells and rows ----------------------------------------------------------------------------------------------------


def _table(evidence: Evidence, frame: pd.DataFrame, setting: TableSetting, errors: ImageErrors) -> ErrorTable:
    corruptions = sorted(frame["corruption"].unique(), key=lambda name: _ORDER.get(name, len(_ORDER)))
    cells = _Cells(frame)
    rows = cells.rows(corruptions)
    about = Resampled(rows, corruptions, setting.severity, errors, cells.by_seed())
    severity = f", severity {setting.severity}" if setting.severity else ""
    return ErrorTable(
        name=f"severity-{setting.severity}" if setting.severity else "all",
        title=f"{evidence.title}: error in per cent{severity}",
        setting=setting,
        caption=_caption(frame, setting),
        corruptions=corruptions,
        rows=about.rows,
        partial=bool(frame["partial"].any()),
        seeds=frame["seed"].nunique(),
        pairs=about.pairs,
        untested=about.untested,
        ranks=dict(_ranks(rows, corruptions)),
        mixed=evidence.mixed,
    )


def _curve(evidence: Evidence, frame: pd.DataFrame, setting: TableSetting, column: str) -> ErrorTable:
    """Mean error over corruptions against the number of images adapted on, over all images or over those after."""
    shifted = frame[frame["corruption"] != "clean"] if setting.severity else frame
    shifted = shifted.assign(
        error_pct=shifted[column], corruption=shifted["adapt_images"].astype("string").fillna("all")
    )
    counts = list(dict.fromkeys(shifted["corruption"]))
    counts.sort(key=lambda name: float("inf") if name == "all" else int(name))
    after = max(int(name) for name in counts if name != "all")
    what = "all images" if column == "error_pct" else f"the images after the first {after}"
    severity = f", severity {setting.severity}" if setting.severity else ""
    grades = ["mean over the corruptions", f"graded over {what}", "columns: images of each segment adapted on"]
    return ErrorTable(
        name=f"{'curve' if column == 'error_pct' else 'curve-after'}{f'-{setting.severity}' if severity else ''}",
        title=f"{evidence.title}: error in per cent on {what}, by images adapted on{severity}",
        setting=setting,
        caption=_caption(frame, setting, grades),
        corruptions=counts,
        rows=_Cells(shifted).rows(counts),
        partial=bool(frame["partial"].any()),
        averaged=False,
        seeds=frame["seed"].nunique(),
        untested="curves are not tested",
        mixed=evidence.mixed,
    )


class _Cells:
    """The rows of a table, by (source model, method) and corruption: pandas takes long to cut out thousands of cells."""

    def __init__(self, frame: pd.DataFrame):
        names = ("model", "label", "corruption", "seed", "status", "reason", "error_pct")
        self._found: dict[tuple[str, str], dict[str, _Trials]] = {}
        self._labels = list(dict.fromkeys(frame["label"]))
        self._seeds = {int(seed) for seed in frame["seed"]}
        for model, label, corruption, seed, status, reason, error in zip(
            *(frame[n].tolist() for n in names), strict=True
        ):
            trials = self._found.setdefault((model, label), {}).setdefault(corruption, _Trials())
            trials.add(seed, status, reason, error)

    def rows(self, corruptions: Sequence[str]) -> list[Row]:
        """A row for each source model and method, grouped by source model."""
        models = dict.fromkeys(model for model, _ in self._found)
        places = [(model, label) for model in models for label in self._labels if (model, label) in self._found]
        return [_row(self._complete(place), *place, corruptions) for place in places]

    def _complete(self, place: tuple[str, str]) -> dict[str, _Trials]:
        """The cells of a row; a seed that only other rows have (of another run) is one that is missing here."""
        for trials in self._found[place].values():
            if lacks := sorted(self._seeds - trials.seeds):
                trials.add(lacks[0], "missing", f"not run with seed {', '.join(map(str, lacks))}", math.nan)
        return self._found[place]

    def by_seed(self) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
        """For each (source model, method) and corruption the error by seed."""
        return {
            place: {corruption: trials.by_seed() for corruption, trials in cells.items()}
            for place, cells in self._found.items()
        }


class _Trials:
    """The trials of a cell."""

    def __init__(self) -> None:
        self._errors: dict[int, list[float]] = {}  # of those that are ok, by seed; several where a shift recurs
        self.state = "ok"
        self.seeds: set[int] = set()
        self.reasons: dict[str, None] = {}

    def add(self, seed: int, status: str, reason: str, error: float) -> None:
        """Count a row of the results."""
        self.seeds.add(seed)
        if status == "ok":
            if error == error:  # not a number: a run whose suite has no adapt_images has no error_after_pct
                self._errors.setdefault(seed, []).append(error)
        elif self.state == "ok":
            self.state = status
        if reason:
            self.reasons[reason] = None

    def by_seed(self) -> dict[int, float]:
        """Error by seed, per cent."""
        return {seed: fmean(errors) for seed, errors in self._errors.items()}

    def cell(self) -> Cell:
        """What the table shows."""
        state = "missing" if self.state == "ok" and not self._errors else self.state
        return _spread(list(self.by_seed().values()), state)


def _row(trials: Mapping[str, _Trials], model: str, label: str, corruptions: Sequence[str]) -> Row:
    cells = {name: trials[name].cell() if name in trials else Cell(None, None, "missing") for name in corruptions}
    shifted = [name for name in corruptions if name != "clean"] or list(corruptions)
    states = [cells[name].state for name in shifted if cells[name].state != "ok"]
    have = [trials[name].by_seed() for name in shifted if cells[name].mean is not None]
    mean = _spread(_seed_means(have), states[0] if states else "ok")
    return Row(label, model, cells, mean, "; ".join(dict.fromkeys(r for t in trials.values() for r in t.reasons)))


def _seed_means(cells: Sequence[Mapping[int, float]]) -> list[float]:
    """Mean over corruptions of each seed that has most of them: a mean over others is not a seed's."""
    by_seed: dict[int, list[float]] = {}
    for errors in cells:
        for seed, error in errors.items():
            by_seed.setdefault(seed, []).append(error)
    most = max(map(len, by_seed.values()), default=0)
    return [fmean(errors) for errors in by_seed.values() if len(errors) == most]


def _spread(errors: Sequence[float], state: str) -> Cell:
    """A cell of one error a seed."""
    if not errors:
        return Cell(None, None, state)
    spread = stdev(errors) if len(errors) > 1 else None
    return Cell(fmean(errors), spread, state, seeds=len(errors))


def _caption(frame: pd.DataFrame, setting: TableSetting, further: Sequence[str] = ()) -> str:
    seeds = sorted(int(s) for s in frame["seed"].unique())
    images = sorted({int(n) for n in frame["images_planned"]})
    partial = " (a subset: not a result)" if frame["partial"].any() else ""
    spread = (
        f"one seed ({seeds[0]}), so no spread over seeds is known"
        if len(seeds) == 1
        else f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    )
    counted = " or ".join(f"{n:,}" for n in images)
    parts = [f"Error in per cent on {setting.text}", f"{counted} images of each shift{partial}", *further, spread]
    apart = not further and setting.severity and (frame["corruption"] == "clean").any()
    return ", ".join(parts) + "." + (" The mean leaves clean out." if apart else "")


def _ranks(rows: Sequence[Row], corruptions: Sequence[str]) -> Iterator[tuple[str, Ranks]]:
    shifted = [name for name in corruptions if name != "clean"] or list(corruptions)
    models, labels = (list(dict.fromkeys(names)) for names in ([r.model for r in rows], [r.label for r in rows]))
    found = {(r.model, r.label): r for r in rows}

    def errors(model: str) -> np.ndarray:
        values = np.full((len(shifted), len(labels)), np.nan)
        for j, label in enumerate(labels):
            if row := found.get((model, label)):
                cells = [row.cells[name] for name in shifted]
                values[:, j] = [c.mean if c.mean is not None and c.state == "ok" else np.nan for c in cells]
        return values

    everywhere = np.concatenate([errors(model) for model in models])
    for name, values in [("", everywhere), *([(m, errors(m)) for m in models] if len(models) > 1 else [])]:
        if (ranks := statistics.average_ranks(labels, values)) is not None:
            yield name, ranks
