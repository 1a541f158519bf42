"""Figure: the running error against the images seen, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tta_bench.report.evidence import TRIAL, of_shifts
from tta_bench.report.figures import plot, sheet, text
from tta_bench.report.figures.section import Drawn, Section
from tta_bench.report.figures.style import MUTED, Style

_TITLE = "Running error"
_POINTS = 100  # of a line: more cannot be seen
_NAMED = 20  # shifts of a stream whose names find room


def draw(section: Section) -> Iterator[Drawn]:
    """The figure at the most severe severity, where trials have two batches or more."""
    curves = running(section)
    if curves.empty or curves["images_seen"].nunique() < 2:
        return
    labels, models = (set(curves.index.unique(name)) for name in ("label", "model"))
    shown = [model for model in section.worst.models if model in models]
    rows, continual = section.worst.rows, section.continual
    fewer = {(row.model, row.label) for row in rows if row.mean.state != "ok"} & set(curves.index)
    notes = [plot.FEWER] if fewer else []
    if (curves["high"] > curves["low"]).any():
        notes.insert(0, "Bands: from the lowest to the highest seed")
    conditions = section.conditions()
    styles = section.styles_of(labels)
    words = section.words(_TITLE, sheet.lines(styles, points=False), rows, conditions, notes)
    borders = _borders(section) if continual else []
    page = sheet.Sheet(words, shown, _room(borders))
    for axes, model in zip(page.axes, shown, strict=True):
        for label, style in styles.items():
            if (model, label) in curves.index:
                _line(axes, curves.loc[[(model, label)]], style, fewer=(model, label) in fewer)
        _name(axes, borders)
        axes.set_xlabel("images seen of the whole stream" if continual else "images seen of a corruption")
        axes.set_xlim(0, None)
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), None)
        sheet.error_axis(axes, "running error, %")
    yield Drawn(
        f"online{section.suffix}", _TITLE, section.caption(_said(continual), conditions, rows, notes), page.figure
    )


def _said(continual: bool) -> str:
    if continual:
        return "Error in per cent on all images of the stream so far, clean ones and all corruptions, by images seen."
    return "Error in per cent on the images of a corruption so far, mean over the corruptions, by images seen."


def running(section: Section) -> pd.DataFrame:
    """The curves at the most severe severity.

    Returns:
        A row for each point, indexed by (model, label): ``images_seen``, and over seeds ``mean``, ``low`` and ``high`` of
        the running error, per cent. Under reset a point is the mean over the corruptions of seeds that have all of the
        method's, where all of them are that long; under a continual protocol it is over the stream so far.
    """
    by_seed = _of_streams(section) if section.continual else _of_shifts(section)
    if by_seed.empty:
        return pd.DataFrame({"images_seen": [], "low": [], "high": []})
    place = ["model", "label", "images_seen"]
    points = by_seed.groupby(place, sort=False)["error"].agg(["mean", "min", "max", "count"]).reset_index()
    points = points.rename(columns={"min": "low", "max": "high"}).sort_values("images_seen", kind="stable")
    seeds = points.groupby(["model", "label"])["count"].transform("max")
    return points[points["count"] == seeds].set_index(["model", "label"]).sort_index(kind="stable")


def _batches(section: Section) -> pd.DataFrame:
    """Batches of the trials at the most severe severity."""
    batches, shifts = section.content.evidence.batches, section.most_severe
    if batches.empty:
        return batches
    if not section.continual:
        return of_shifts(batches, shifts)
    return batches[batches["key"].isin(set(shifts["key"])) & batches["setting"].isin(set(shifts["setting"]))]


def _of_shifts(section: Section) -> pd.DataFrame:
    batches = _batches(section)
    if batches.empty:
        return batches
    place = ["model", "label", "seed", "images_seen"]
    points = batches.groupby(place, sort=False)["running_error_pct"].agg(["mean", "count"]).reset_index()
    shifts = points.groupby(["model", "label"])["count"].transform("max")
    return points[points["count"] == shifts].rename(columns={"mean": "error"})


def _of_streams(section: Section) -> pd.DataFrame:
    batches = _batches(section)
    if batches.empty:
        return batches
    images = batches["images_graded"].astype(float)
    wrong = images * batches["error_pct"].fillna(0.0)  # of a batch without graded images there is no error
    trials = [batches[name] for name in TRIAL]
    seen = images.groupby(trials).cumsum()
    return batches.assign(images_seen=seen, error=wrong.groupby(trials).cumsum() / seen)


def _borders(section: Section) -> list[tuple[str, float]]:
    """Each segment of the stream and where it begins, images; nothing where streams differ, or have one or very many."""
    batches = _batches(section)
    parts = batches.groupby([*TRIAL, "position", "segment"], sort=False)["images_graded"].sum().reset_index()
    trials = (part for _, part in parts.groupby(TRIAL, sort=False))
    orders = {tuple(zip(part["segment"], part["images_graded"], strict=True)) for part in trials}
    if len(orders) != 1 or not 1 < len(first := orders.pop()) <= _NAMED:
        return []
    begins = np.cumsum([0, *(images for _, images in first)])
    return [(name, float(begin)) for (name, _), begin in zip(first, begins, strict=False)]


def _short(name: str) -> str:
    return name.rpartition("-")[0].replace("_", " ") or name


def _room(borders: list[tuple[str, float]]) -> sheet.Room:
    names = 0.6 * text.widest((_short(name) for name, _ in borders), 7)  # turned by 35 degrees
    return sheet.Room(5.6, 1.8, top=0.35 + names) if borders else sheet.Room(2.5, 1.8)


def _line(axes: Axes, curve: pd.DataFrame, style: Style, *, fewer: bool) -> None:
    keep = np.unique(np.linspace(0, len(curve) - 1, min(_POINTS, len(curve))).round().astype(int))
    x, mean, low, high = curve[["images_seen", "mean", "low", "high"]].to_numpy(dtype=float)[keep].T
    axes.plot(x, mean, **style.line)
    if (high > low).any():
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
    if fewer:
        axes.annotate("*", (x[-1], mean[-1]), (3, -4), textcoords="offset points", fontsize=9)


def _name(axes: Axes, borders: list[tuple[str, float]]) -> None:
    for name, begin in borders:
        axes.axvline(begin, color=MUTED, linewidth=0.5, linestyle=(0, (1, 2)))
        above: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "rotation_mode": "anchor",
        }
        axes.annotate(_short(name), (begin, 1), (2, 2), rotation=35, fontsize=7, color=MUTED, **above)
