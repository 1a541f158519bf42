"""Rows to tables of errors: which cells there are, their means, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tta_bench.data.corruptions import NAMES
from tta_bench.report import statistics
from tta_bench.report.evidence import Evidence
from tta_bench.report.images import ImageErrors
from tta_bench.report.marks import Resampled
from tta_bench.report.statistics import Ranks
from tta_bench.report.table import Cell, ErrorTable, Row, Setting

_ORDER = {name: position for position, name in enumerate(("clean", *NAMES))}


def tables(evidence: Evidence) -> list[ErrorTable]:
    """One table for each data set, protocol, batch size and severity; ``clean`` stands in each.

    Where a run varies ``adapt_images``, that table is of the trials that adapt on most; :func:`curves` has the others.
    """
    made = []
    for place, frame in _sections(evidence):
        most = _most(frame)
        frame = frame[frame["adapt_images"].fillna(0) == most]
        keys = set(frame["key"])
        errors = ImageErrors(evidence, keys.__contains__)
        for severity in _severities(frame):
            part = frame[frame["severity"].isin([severity, 0])]
            made.append(_table(evidence, part, Setting(*place, severity, most), errors))
    return _named(made)


def curves(evidence: Evidence) -> list[ErrorTable]:
    """Tables by number of images adapted on: over all images, and over those after the suite's largest number."""
    made = []
    for place, frame in _sections(evidence):
        if frame["adapt_images"].fillna(0).nunique() > 1:
            for severity in _severities(frame):
                part = frame[frame["severity"].isin([severity, 0])]
                columns = [name for name in ("error_pct", "error_after_pct") if part[name].notna().any()]
                made += [_curve(evidence, part, Setting(*place, severity), column) for column in columns]
    return _named(made)


def _sections(evidence: Evidence) -> Iterator[tuple[tuple[str, str, int], pd.DataFrame]]:
    """((data set, protocol, batch size), their rows)."""
    for (dataset, protocol, size), frame in evidence.segments.groupby(
        ["dataset", "protocol", "batch_size"], sort=False
    ):
        yield (str(dataset), str(protocol), int(size)), frame


def _most(frame: pd.DataFrame) -> int:
    counts = set(frame["adapt_images"].fillna(0).astype(int))
    return 0 if 0 in counts else max(counts)


def _severities(frame: pd.DataFrame) -> list[int]:
    return sorted({int(s) for s in frame["severity"]} - {0}) or [0]


def _named(made: Sequence[ErrorTable]) -> list[ErrorTable]:
    """Names that are unique: of what tells the tables apart, as little as it takes."""
    if len({(t.setting.dataset, t.setting.protocol, t.setting.batch_size) for t in made}) < 2:
        return list(made)
    return [
        replace(t, name="-".join([_plain(t.setting.dataset), t.setting.protocol, str(t.setting.batch_size), t.name]))
        for t in made
    ]


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


# -- cells and rows ----------------------------------------------------------------------------------------------------


def _table(evidence: Evidence, frame: pd.DataFrame, setting: Setting, errors: ImageErrors) -> ErrorTable:
    corruptions = sorted(frame["corruption"].unique(), key=lambda name: _ORDER.get(name, len(_ORDER)))
    rows = list(_rows(frame, corruptions))
    about = Resampled(rows, corruptions, setting.severity, errors, _by_seed(frame))
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


def _curve(evidence: Evidence, frame: pd.DataFrame, setting: Setting, column: str) -> ErrorTable:
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
    grades = ["mean over the corruptions", f"graded over {what}", "columns: images of each corruption adapted on"]
    return ErrorTable(
        name=f"{'curve' if column == 'error_pct' else 'curve-after'}{f'-{setting.severity}' if severity else ''}",
        title=f"{evidence.title}: error in per cent on {what}, by images adapted on{severity}",
        setting=setting,
        caption=_caption(frame, setting, grades),
        corruptions=counts,
        rows=list(_rows(shifted, counts)),
        partial=bool(frame["partial"].any()),
        averaged=False,
        seeds=frame["seed"].nunique(),
        untested="curves are not tested",
        mixed=evidence.mixed,
    )


def _rows(frame: pd.DataFrame, corruptions: Sequence[str]) -> Iterator[Row]:
    """A row for each source model and method, grouped by source model."""
    parts = dict(iter(frame.groupby(["model", "label"], sort=False)))
    labels = list(dict.fromkeys(frame["label"]))
    for model in dict.fromkeys(frame["model"]):
        for label in labels:
            if (model, label) in parts:
                yield _row(parts[model, label], str(label), str(model), corruptions)


def _row(frame: pd.DataFrame, label: str, model: str, corruptions: Sequence[str]) -> Row:
    parts = dict(iter(frame.groupby("corruption", sort=False)))
    cells = {name: _cell(parts.get(name)) for name in corruptions}
    shifted = [name for name in corruptions if name != "clean"] or list(corruptions)
    have = [name for name in shifted if cells[name].mean is not None]
    states = [cells[name].state for name in shifted if cells[name].state != "ok"]
    state = states[0] if states else "ok"
    reasons = [str(reason) for reason in frame["reason"].dropna().unique() if reason]
    good = frame[frame["corruption"].isin(have) & (frame["status"] == "ok")]
    mean = _spread(_seed_means(good), state) if have else Cell(None, None, state)
    return Row(label, model, cells, mean, "; ".join(reasons))


def _seed_means(good: pd.DataFrame) -> pd.Series:
    """Mean over corruptions of each seed that has all of them: a mean over others is not its."""
    by_seed = good.groupby("seed")["error_pct"]
    whole = by_seed.count() == by_seed.count().max()
    return by_seed.mean()[whole]


def _cell(frame: pd.DataFrame | None) -> Cell:
    if frame is None:
        return Cell(None, None, "missing")
    good = frame[frame["status"] == "ok"]
    bad = frame.loc[frame["status"] != "ok", "status"]
    state = str(bad.iloc[0]) if len(bad) else "ok"
    return _spread(good.groupby("seed")["error_pct"].mean(), state) if len(good) else Cell(None, None, state)


def _spread(by_seed: pd.Series, state: str) -> Cell:
    std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    return Cell(float(by_seed.mean()), std, state, seeds=len(by_seed))


def _by_seed(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """For each (model, label) its errors, seeds × corruptions."""
    good = frame[frame["status"] == "ok"]
    parts = good.groupby(["model", "label"], sort=False)
    return {place: part.pivot_table(index="seed", columns="corruption", values="error_pct") for place, part in parts}


def _caption(frame: pd.DataFrame, setting: Setting, further: Sequence[str] = ()) -> str:
    seeds = sorted(int(s) for s in frame["seed"].unique())
    images = sorted({int(n) for n in frame["images_planned"]})
    partial = " (a subset: not a result)" if frame["partial"].any() else ""
    spread = (
        f"one seed ({seeds[0]}), so no spread over seeds is known"
        if len(seeds) == 1
        else f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    )
    counted = " or ".join(f"{n:,}" for n in images)
    parts = [f"Error in per cent on {setting.text}", f"{counted} images a corruption{partial}", *further, spread]
    return ", ".join(parts) + "." + ("" if further else " The mean leaves clean out.")


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
