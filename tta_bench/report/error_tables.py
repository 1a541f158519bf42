"""Tables of errors from the rows of the runs: cells, means over corruptions, missing cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.report import statistics
from tta_bench.report.evidence import ALL_IMAGES, CLEAN, TRIAL, Evidence, adapting_most
from tta_bench.report.images import ImageErrors
from tta_bench.report.marks import ColumnImages, Tested
from tta_bench.report.statistics import Ranks
from tta_bench.report.table import (
    CORRUPTIONS,
    JOINED,
    Cell,
    ErrorTable,
    MethodErrors,
    TableSetting,
    identifier,
    shifted_of,
)
from tta_bench.setting import Setting

_ORDER = {name: position for position, name in enumerate(("clean", *NAMES))}


def tables(evidence: Evidence, *, joined: bool = False) -> list[ErrorTable]:
    """One table for each setting, family of shifts and severity; clean images alone in their stream are part of each.

    Where a run varies ``adapt_images``, the table is of the trials that adapt on most; :func:`curves` has all.

    Args:
        evidence: the rows.
        joined: all families in one table, with one mean.
    """
    error_tables = []
    for base, frame in sections(evidence):
        several = _adapt_on_several(frame)
        most, frame = adapting_most(frame)
        places = set(zip(frame["key"], frame["setting"], strict=True))
        errors = ImageErrors(evidence, places)
        for family, severity, part in parts(frame, joined):
            error_tables.append(_table(evidence, part, TableSetting(base, severity, most, several, family), errors))
    return named(error_tables)


def curves(evidence: Evidence, *, joined: bool = False) -> list[ErrorTable]:
    """Tables by number of images adapted on: over all images, and over those after the suite's largest number."""
    curve_tables = []
    for base, frame in sections(evidence):
        if _adapt_on_several(frame):
            for family, severity, part in parts(frame, joined):
                columns = [name for name in ("error_pct", "error_after_pct") if part[name].notna().any()]
                setting = TableSetting(base, severity, family=family)
                curve_tables += [_curve(evidence, part, setting, column) for column in columns]
    return named(curve_tables)


def sections(evidence: Evidence, role: str | None = "stream") -> Iterator[tuple[Setting, pd.DataFrame]]:
    """Settings without severity and number of images adapted on, with their rows, those of one role or of all."""
    shifts = evidence.shifts if role is None else evidence.shifts[evidence.shifts["role"] == role]
    for section, frame in shifts.groupby("section", sort=False):
        yield evidence.sections[str(section)], frame


def parts(frame: pd.DataFrame, joined: bool = False) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """(family, severity, rows) of each table of a section; ``joined``: all families are one."""
    for family, own in families(frame, joined):
        for severity in severities(own):
            yield family, severity, own[own["of_severity"].isin([severity, 0])]


def families(frame: pd.DataFrame, joined: bool = False) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each family of shifts with its rows and those of clean images, corruptions first, the others as they come."""
    names = sorted(dict.fromkeys(frame["family"]), key=lambda name: name != CORRUPTIONS)
    others = [str(name) for name in names if name != CLEAN]
    if joined and len(others) > 1:
        yield JOINED, frame
        return
    for family in others or [CORRUPTIONS]:
        yield family, frame[frame["family"].isin([family, CLEAN])]


def _adapt_on_several(frame: pd.DataFrame) -> bool:
    """Whether trials adapt on different numbers of images."""
    return bool(frame["adapt_images"].fillna(0).nunique() > 1)


def severities(frame: pd.DataFrame) -> list[int]:
    """Severities that have a table of their own."""
    return sorted({int(s) for s in frame["of_severity"]} - {0}) or [0]


def named(tables: Sequence[ErrorTable]) -> list[ErrorTable]:
    """Tables with unique names, as short as possible, and titles with their protocol, where there are several settings."""
    names = names_of([t.setting.base for t in tables])
    if len(names) < 2:
        return list(tables)
    named = [(t, *names[t.setting.base]) for t in tables]
    return [replace(t, name=f"{name}-{t.name}", title=f"{t.title}, {protocol}") for t, name, protocol in named]


def names_of(bases: Sequence[Setting]) -> dict[Setting, tuple[str, str]]:
    """(unique name, as short as possible; protocol for titles) of each setting; both empty where there is only one."""
    bases = list(dict.fromkeys(bases))
    if len(bases) < 2:
        return dict.fromkeys(bases, ("", ""))
    short = [_short(base) for base in bases]
    unique = [identifier(base.text) if short.count(name) > 1 else name for base, name in zip(bases, short, strict=True)]
    titles = told_apart({base: base.protocol_text for base in bases})
    return {base: (name, titles[base]) for base, name in zip(bases, unique, strict=True)}


def told_apart(names: Mapping[Setting, str]) -> dict[Setting, str]:
    """Unique names of settings: equal ones with parameters, data set, batch size, mode or class mask, as it takes."""
    details: tuple[Callable[[Setting], str], ...] = (
        lambda base: base.told, lambda base: base.dataset, lambda base: f"batch size {base.batch_size}",
        lambda base: base.mode.text, lambda base: base.mask_told,
    )  # fmt: skip
    told = dict(names)
    for detail in details:
        groups: dict[str, list[Setting]] = {}
        for base, name in told.items():
            groups.setdefault(name, []).append(base)
        apart = [group for group in groups.values() if len({detail(base) for base in group}) > 1]
        told |= {b: f"{told[b]}, {detail(b)}" for group in apart for b in group if detail(b)}
    return told if len(set(told.values())) == len(told) else {base: base.text for base in told}


def _short(base: Setting) -> str:
    return f"{identifier(base.dataset)}-{base.protocol}-{base.batch_size}"


# -- a table -----------------------------------------------------------------------------------------------------------


def _table(evidence: Evidence, frame: pd.DataFrame, setting: TableSetting, images: ImageErrors) -> ErrorTable:
    corruptions = corruptions_of(frame)
    rows = rows_of(frame, "corruption", corruptions)
    by_name = dict(iter(frame.groupby("corruption", sort=False)))
    tested = Tested(rows, {name: _column(by_name[name]) for name in corruptions}, images)
    classes = masks_of(frame)
    return ErrorTable(
        name=setting.name,
        title=f"{evidence.title}: error in per cent{setting.told}",
        setting=setting,
        caption=caption(frame, setting),
        corruptions=corruptions,
        rows=tested.rows,
        partial=bool(frame["partial"].any()),
        averaged=corruptions != [ALL_IMAGES],
        seeds=frame["seed"].nunique(),
        pairs=tested.pairs,
        untested=tested.untested,
        ranks=dict(_ranks(rows, corruptions)),
        mixed=evidence.mixed,
        classes=classes,
    )


def corruptions_of(frame: pd.DataFrame) -> list[str]:
    """The corruptions of some rows, in the benchmark's order, clean first."""
    return sorted(frame["corruption"].unique(), key=lambda name: _ORDER.get(name, len(_ORDER)))


def _column(rows: pd.DataFrame) -> ColumnImages:
    """Which images a column of the table is of: those of corruptions are the clean ones, other shifts have their own."""
    first = rows.iloc[0]
    own = first["family"] not in (CLEAN, CORRUPTIONS) and not first["severity"]
    return ColumnImages(str(first["shift"]), str(first["corruption"]) if own else "")


def masks_of(frame: pd.DataFrame) -> dict[str, int]:
    """The number of classes of each column under a class mask."""
    masked = frame[["corruption", "classes"]].dropna().drop_duplicates("corruption")
    return {str(name): int(count) for name, count in masked.itertuples(index=False)}


def _masks(frame: pd.DataFrame) -> list[str]:
    """``imagenet_a and imagenet_r among 200 classes``: the columns under a class mask."""
    by_count: dict[int, list[str]] = {}
    for name, count in sorted(masks_of(frame).items()):
        by_count.setdefault(count, []).append(name)
    return [f"{' and '.join(names)} among {count:,} classes" for count, names in by_count.items()]


def _curve(evidence: Evidence, frame: pd.DataFrame, setting: TableSetting, column: str) -> ErrorTable:
    """Mean error over corruptions by number of images adapted on, over all images or those after."""
    shifted = without_clean(frame)
    adapted_on = shifted["adapt_images"].astype("string").fillna("all")
    shifted = shifted.assign(error_pct=shifted[column], adapted_on=adapted_on)
    counts = list(dict.fromkeys(adapted_on))
    counts.sort(key=lambda name: float("inf") if name == "all" else int(name))
    after = max(int(name) for name in counts if name != "all")
    graded = "all images" if column == "error_pct" else f"the images after the first {after}"
    grades = [f"mean over the {setting.noun}", f"graded over {graded}", "columns: images of each segment adapted on"]
    return ErrorTable(
        name="-".join(["curve" if column == "error_pct" else "curve-after", *named_part(setting)]),
        title=f"{evidence.title}: error in per cent on {graded}, by images adapted on{setting.told}",
        setting=setting,
        caption=caption(frame, setting, grades),
        corruptions=counts,
        rows=rows_of(shifted, "adapted_on", counts),
        partial=bool(frame["partial"].any()),
        averaged=False,
        seeds=frame["seed"].nunique(),
        untested="curves are not tested",
        mixed=evidence.mixed,
    )


# -- rows --------------------------------------------------------------------------------------------------------------


def rows_of(frame: pd.DataFrame, axis: str, columns: Sequence[str]) -> list[MethodErrors]:
    """A row for each source model and method, grouped by source model, of ``error_pct`` by ``axis``."""
    parts = dict(iter(frame.groupby(["model", "label"], sort=False)))
    seeds = sorted(frame["seed"].unique())
    pairs = itertools.product(dict.fromkeys(frame["model"]), dict.fromkeys(frame["label"]))
    return [_row(*pair, parts[pair], axis, columns, seeds) for pair in pairs if pair in parts]


def _row(
    model: str, label: str, part: pd.DataFrame, axis: str, columns: Sequence[str], seeds: Sequence[int]
) -> MethodErrors:
    complete = part[part["status"] == "ok"]
    errors = _errors(complete, axis).unstack("seed")
    errors = errors.reindex(index=list(columns), columns=list(seeds))
    reasons = [*filter(None, part["reason"]), *_lacking(part, axis, seeds)]
    states = {str(name): _state(cell, seeds) for name, cell in part.groupby(axis, sort=False)}
    cells = {name: _cell(errors.loc[name], states.get(name, "missing")) for name in columns}
    shifted = shifted_of(columns)
    counts = errors.loc[shifted].notna().sum()
    means = errors.loc[shifted, counts == max(counts.max(), 1)].mean()  # of the seeds with most cells
    state = next((cells[name].state for name in shifted if cells[name].state != "ok"), "ok")
    return MethodErrors(label, model, cells, _cell(means, state), "; ".join(dict.fromkeys(reasons)), errors)


def _errors(rows: pd.DataFrame, axis: str) -> pd.Series:
    """Error by ``axis`` and seed: of each shift over all its images in all segments and visits, mean over the shifts."""
    known = rows[rows["error_pct"].notna()]
    images = known["images"].astype(float)
    known = known.assign(images=images, wrong=known["error_pct"].astype(float) * images)
    by_shift = known.groupby([axis, "seed", "shift"], dropna=False)[["wrong", "images"]].sum()
    return (by_shift["wrong"] / by_shift["images"]).groupby([axis, "seed"]).mean()


def _state(cell: pd.DataFrame, seeds: Sequence[int]) -> str:
    """The first status that is not ok; a seed that only other rows have (of another run) is missing here."""
    unfinished = cell.loc[cell["status"] != "ok", "status"]
    if len(unfinished):
        return str(unfinished.iloc[0])
    return "missing" if set(seeds) - set(cell["seed"]) else "ok"


def _lacking(part: pd.DataFrame, axis: str, seeds: Sequence[int]) -> Iterator[str]:
    for _, cell in part.groupby(axis, sort=False):
        if lacks := sorted(set(seeds) - set(cell["seed"])):
            yield f"not run with seed {', '.join(map(str, lacks))}"


def _cell(by_seed: pd.Series, state: str) -> Cell:
    errors = by_seed.dropna()
    if errors.empty:
        return Cell(None, None, "none" if state == "ok" else state)  # no image has such an error
    spread = float(errors.std()) if len(errors) > 1 else None
    return Cell(float(errors.mean()), spread, state, seeds=len(errors))


def without_clean(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that a mean is over: all but those of clean images, where there are others."""
    shifted = frame[frame["family"] != CLEAN]
    return shifted if len(shifted) else frame


def named_part(setting: TableSetting) -> list[str]:
    """What tells apart the names of tables of one kind: ``5``, ``natural``, ``c-bar-5``, in parts."""
    return [part for part in setting.name.replace("severity-", "").split("-") if part != "all"]


def caption(
    frame: pd.DataFrame, setting: TableSetting, further: Sequence[str] = (), what: str = "Error in per cent"
) -> str:  # fmt: skip
    """The conditions of a table in a sentence."""
    seeds = sorted(int(s) for s in frame["seed"].unique())
    images = _images(frame)
    partial = " (a subset: not a result)" if frame["partial"].any() else ""
    spread = (
        f"one seed ({seeds[0]})"
        if len(seeds) == 1
        else f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    )
    counted = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    of = "in the stream" if (frame["shift"] == ALL_IMAGES).all() else "of each shift"
    images_text = f"{counted} images {of}{_distinct(frame)}{partial}"
    parts = [f"{what} on {setting.text}", *_masks(frame), images_text, *further, spread]
    apart = not further and (frame["family"] == CLEAN).any() and (frame["family"] != CLEAN).any()
    return ", ".join(parts) + "." + (" The mean is without clean." if apart else "")


def _distinct(frame: pd.DataFrame) -> str:
    """How many images of a shift are distinct, where some are drawn several times."""
    counts = sorted({int(n) for n in frame["distinct_images"].dropna()})
    return (
        f", {' to '.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))} of them distinct" if counts else ""
    )


def _images(frame: pd.DataFrame) -> list[int]:
    """Numbers of images of a shift that are graded, or planned where nothing is."""
    graded = frame[frame["status"] == "ok"].groupby([*TRIAL, "shift"], sort=False)["images"].sum()
    return sorted({int(n) for n in (graded if len(graded) else frame["images_planned"])})


def _ranks(rows: Sequence[MethodErrors], corruptions: Sequence[str]) -> Iterator[tuple[str, Ranks]]:
    shifted = shifted_of(corruptions)
    models, labels = (list(dict.fromkeys(names)) for names in ([r.model for r in rows], [r.label for r in rows]))
    by_name = {(r.model, r.label): r for r in rows}

    def errors(model: str) -> np.ndarray:
        values = np.full((len(shifted), len(labels)), np.nan)
        for j, label in enumerate(labels):
            if row := by_name.get((model, label)):
                cells = [row.cells[name] for name in shifted]
                values[:, j] = [c.mean if c.mean is not None and c.state == "ok" else np.nan for c in cells]
        return values

    everywhere = np.concatenate([errors(model) for model in models])
    for name, values in [("", everywhere), *([(m, errors(m)) for m in models] if len(models) > 1 else [])]:
        if (ranks := statistics.average_ranks(labels, values)) is not None:
            yield name, ranks
