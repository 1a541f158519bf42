"""Figure: the running error by images seen, a panel for each source model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tta_bench.report.evidence import TRIAL, of_shifts
from tta_bench.report.figures import layout, limits, plot
from tta_bench.report.figures.limits import Range
from tta_bench.report.figures.section import Drawing, Section
from tta_bench.report.figures.style import FEW, MethodStyle

_POINTS = 100  # of a line: more cannot be seen
_NAMED = 20  # at most, segments of a stream whose names are shown
_WINDOW = 50_000  # images, at most: that of published curves of CCC
_WINDOWS = 20  # of a shorter stream
_WHOLE = "Error in per cent on all images of the stream so far, clean ones and all corruptions, by images seen."
_BY_SHIFT = "Error in per cent on the images of a corruption so far, mean over the corruptions, by images seen."


def draw(section: Section) -> Iterator[Drawing]:
    """The figure at the most severe severity, where trials have two batches or more."""
    curves = running(section)
    if curves.empty or curves["images_seen"].nunique() < 2:
        return
    continual, rows = section.continual, section.worst.rows
    models = [model for model in section.worst.models if model in curves.index.unique("model")]
    styles, left_out = section.drawn(curves.index.unique("label"), FEW)
    ranges = Range.of_models({model: _errors(curves, model, styles) for model in models}, section.content.baseline)
    fewer = {(row.model, row.label) for row in rows if row.mean.state != "ok"} & set(curves.index)
    notes = [_averaging(section)]
    notes += ["Bands: from the lowest to the highest seed"] if (curves["high"] > curves["low"]).any() else []
    notes += [plot.FEWER] if fewer else []
    notes += [*left_out, *limits.notes(ranges)]
    text = section.text("online", "Running error", _summary(section), rows=rows, notes=notes)
    begins = _begins(section) if continual else []
    legends = [layout.legend(styles, curves=True)]
    if begins:
        figure, grid = layout.panels(text, models, legends, width=layout.TEXT_WIDTH, height=2.7)
    else:
        figure, grid = layout.square_panels(text, models, legends)
    for axes, model in zip(grid, models, strict=True):
        for label, style in styles.items():
            if (model, label) in curves.index:
                _line(axes, curves.loc[[(model, label)]], style, fewer=(model, label) in fewer)
        axes.set_xlabel("images seen of the whole stream" if continual else "images seen of a corruption")
        axes.set_xlim(0, None)
        ranges[model].apply(axes)
        for label in ranges[model].beyond:
            x, value = curves.loc[[(model, label)], ["images_seen", "mean"]].to_numpy(dtype=float)[-1]
            ranges[model].mark(axes, [0.97 * x], [value], {"color": styles[label].colour})
        plot.error_axis(axes, "error in windows, %" if section.compound else "running error, %")
        if begins:
            names, places = [_short(name) for name, _ in begins], [place for _, place in begins]
            plot.groups_above(axes, names, places, places, rotation=35, ha="left", rotation_mode="anchor")
    yield Drawing(text, figure)


def running(section: Section) -> pd.DataFrame:
    """The curves at the most severe severity.

    Returns:
        A row for each point, indexed by (model, label): ``images_seen``, and over seeds ``mean``, ``low`` and ``high`` of
        the running error, per cent. Under reset a point is the mean over the corruptions of seeds that have all of the
        method's, where all of them are that long; under a continual protocol it is over the stream so far, and where
        shifts change continually, over a window that ends there.
    """
    batches = _batches(section)
    if batches.empty:
        return pd.DataFrame({"images_seen": [], "low": [], "high": []})
    if section.compound:
        by_seed = _of_windows(batches, _window(batches))
    else:
        by_seed = _of_streams(batches) if section.continual else _of_shifts(batches)
    place = ["model", "label", "images_seen"]
    points = by_seed.groupby(place, sort=False)["error"].agg(["mean", "min", "max", "count"]).reset_index()
    points = points.rename(columns={"min": "low", "max": "high"}).sort_values("images_seen", kind="stable")
    seeds = points.groupby(["model", "label"])["count"].transform("max")
    return points[points["count"] == seeds].set_index(["model", "label"]).sort_index(kind="stable")


def _batches(section: Section) -> pd.DataFrame:
    """Batches of the trials at the most severe severity."""
    batches, shifts = section.content.evidence.batches, section.most_severe
    if batches.empty or not section.continual:
        return batches if batches.empty else of_shifts(batches, shifts)
    return batches[batches["key"].isin(set(shifts["key"])) & batches["setting"].isin(set(shifts["setting"]))]


def _of_shifts(batches: pd.DataFrame) -> pd.DataFrame:
    place = ["model", "label", "seed", "images_seen"]
    points = batches.groupby(place, sort=False)["running_error_pct"].agg(["mean", "count"]).reset_index()
    shifts = points.groupby(["model", "label"])["count"].transform("max")
    return points[points["count"] == shifts].rename(columns={"mean": "error"})


def _of_streams(batches: pd.DataFrame) -> pd.DataFrame:
    images = batches["images_graded"].astype(float)
    wrong = images * batches["error_pct"].fillna(0.0)  # of a batch without graded images there is no error
    trials = [batches[name] for name in TRIAL]
    seen = images.groupby(trials).cumsum()
    return batches.assign(images_seen=seen, error=wrong.groupby(trials).cumsum() / seen)


def _window(batches: pd.DataFrame) -> int:
    """Images in a window of the error."""
    images = batches.groupby(TRIAL, sort=False)["images_graded"].sum().min()
    return max(1, min(_WINDOW, int(images) // _WINDOWS))


def _of_windows(batches: pd.DataFrame, window: int) -> pd.DataFrame:
    streams = _of_streams(batches)
    wrong = batches["images_graded"] * batches["error_pct"].fillna(0.0)
    number = (streams["images_seen"] - 1) // window
    by_window = streams.assign(wrong=wrong, number=number).groupby([*TRIAL, "seed", "number"], sort=False)
    points = by_window.agg({"images_seen": "max", "images_graded": "sum", "wrong": "sum"}).reset_index()
    return points.assign(error=points["wrong"].astype(float) / points["images_graded"].astype(float))


def _summary(section: Section) -> str:
    if section.compound:
        window = _window(_batches(section))
        return f"Error in per cent on the latest {window:,} images of the stream, by images seen."
    return _WHOLE if section.continual else _BY_SHIFT


def _begins(section: Section) -> list[tuple[str, float]]:
    """(segment, images before it) of the stream; empty where streams differ, or have one segment or very many."""
    batches = _batches(section)
    parts = batches.groupby([*TRIAL, "position", "segment"], sort=False)["images_graded"].sum().reset_index()
    trials = (part for _, part in parts.groupby(TRIAL, sort=False))
    orders = {tuple(zip(part["segment"], part["images_graded"], strict=True)) for part in trials}
    if len(orders) != 1 or not 1 < len(first := orders.pop()) <= _NAMED:
        return []
    begins = np.cumsum([0, *(images for _, images in first)])
    return [(name, float(begin)) for (name, _), begin in zip(first, begins, strict=False)]


def _averaging(section: Section) -> str:
    """What a point of a curve is a mean over: under a continual protocol of seeds alone."""
    if not section.continual:
        return section.averaging
    return f"Means over {section.worst.seeds} seeds" if section.worst.seeds > 1 else ""


def _errors(curves: pd.DataFrame, model: str, labels: Iterable[str]) -> dict[str, np.ndarray]:
    """Running errors of methods without the first tenth of the stream, where they are of few images."""
    own = {label: curves.loc[[(model, label)]] for label in labels if (model, label) in curves.index}
    late = {label: curve[curve["images_seen"] > 0.1 * curve["images_seen"].max()] for label, curve in own.items()}
    return {label: curve["mean"].to_numpy(dtype=float) for label, curve in late.items()}


def _short(name: str) -> str:
    return name.rpartition("-")[0].replace("_", " ") or name


def _line(axes: Axes, curve: pd.DataFrame, style: MethodStyle, *, fewer: bool) -> None:
    keep = np.unique(np.linspace(0, len(curve) - 1, min(_POINTS, len(curve))).round().astype(int))
    x, mean, low, high = curve[["images_seen", "mean", "low", "high"]].to_numpy(dtype=float)[keep].T
    axes.plot(x, mean, **style.curve)
    if (high > low).any():
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
    if fewer:
        axes.annotate("*", (x[-1], mean[-1]), (3, -4), textcoords="offset points", size=9)
