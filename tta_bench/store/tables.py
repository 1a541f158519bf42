"""The rows of the three tables, from the plan and the records of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tta_bench.run import metrics
from tta_bench.store.schema import BATCHES, STATISTIC, Asked, Column, types_of

_ASKED = [*types_of(Asked), "key"]
_DEFAULTS = {each.name: each.default for each in dataclasses.fields(Asked) if each.default is not dataclasses.MISSING}
_GRADES = ("images/batch", "images/correct", "images/graded", "images/predicted")
MAX_POINTS = 10_000  # of a trial's online curve
_MEANS = ("step_ms", "data_ms")  # where a row is of several batches; other columns are sums


def trial_columns(trial: Mapping[str, Any], record: Mapping[str, Any] | None, damage: str | None) -> dict[str, Any]:
    """What all rows of a planned trial share. Without a record the trial is missing, and ``reason`` says why."""
    asked = {name: _asked(trial, name) for name in _ASKED}
    if record is None:
        reason = f"damaged: {damage}; run the suite again" if damage else "not run yet"
        return {**asked, "status": "missing", "reason": reason}
    ending = {name: record[name] for name in ("status", "reason", "session")}
    return {**asked, **record["facts"], **record["environment"], **ending}


def _asked(trial: Mapping[str, Any], name: str) -> Any:
    """What a planned trial says of itself; plans lack what is younger than they are, and what has no meaning for it."""
    return trial.get(name, _DEFAULTS[name]) if name in _DEFAULTS else trial[name]


def planned_segments(trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each segment of a trial without results."""
    return [
        {"position": position, "segment": name, "visit": visit, "role": role}
        for position, (name, visit, role) in enumerate(trial["segments"])
    ]


def planned_shifts(trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each segment, shift and visit of a trial without results."""
    segments, rows = planned_segments(trial), []
    for position, number, visit in trial["cells"]:
        corruption, severity, name = trial["shifts"][number]
        family = trial["families"][number] if "families" in trial else ""
        shift = {"visit": visit, "shift": name, "corruption": corruption, "family": family, "severity": severity}
        rows.append(segments[position] | shift)
    return rows


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table with the schema's columns, then the methods' own statistics in the order in which they occur."""
    return typed(columns, pd.DataFrame.from_records(rows))


def typed(columns: Sequence[Column], frame: pd.DataFrame) -> pd.DataFrame:
    """The same with the schema's column order and types; any other column but a statistic is dropped."""
    statistics = [name for name in frame if str(name).startswith(STATISTIC)]
    ordered = frame.reindex(columns=[*(column.name for column in columns), *statistics])
    texts = {column.name: np.nan for column in columns if column.dtype == "object"}  # Parquet knows one missing value
    return ordered.astype({**dict.fromkeys(statistics, "float64"), **{c.name: c.dtype for c in columns}}).fillna(texts)


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, without its index.

    A text that a spreadsheet would compute, as it begins with = + - @, a tab or a line break, gets an apostrophe; texts
    that are numbers stay as they are. The Parquet files have the texts themselves.
    """
    safe: dict[str, pd.Series] = {}
    for name in frame.select_dtypes(exclude="number"):
        texts = [value for value in set(map(str, frame[name])) if _neutral(value) != value]
        if texts:
            safe[name] = frame[name].replace({text: _neutral(text) for text in texts})
    return frame.assign(**safe).rename(columns=_neutral).to_csv(index=False)


def _neutral(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


_FORMULA = re.compile(r"[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|-inf", re.IGNORECASE)


# -- the online curve --------------------------------------------------------------------------------------------------


def is_of_batches(name: str) -> bool:
    """Whether the online curve needs an array of a trial."""
    return name.startswith("batches/") or name in _GRADES


def batch_columns(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A trial's columns: its own, the number of images graded, and of those classified correctly.

    An element is of one batch, or of several where there are more than :data:`MAX_POINTS`.
    """
    own = {name.removeprefix("batches/"): array for name, array in arrays.items() if name not in _GRADES}
    own["position"] = own.pop("segment")
    if "images/batch" in arrays:
        batch, correct, graded, predicted = (arrays[name] for name in _GRADES)
        size, expected = len(own["batch"]), metrics.expected(predicted, correct)
        own["images_graded"] = np.bincount(batch[graded], minlength=size)
        own["images_correct"] = np.bincount(batch[graded], weights=expected[graded], minlength=size)
    return own if len(own["batch"]) <= MAX_POINTS else _thinned(own)


def _thinned(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a long trial with at most :data:`MAX_POINTS` elements, or one for each segment if that is more.

    An element is of adjacent batches of one segment.
    """
    frame = pd.DataFrame(columns)
    room = max(1, MAX_POINTS - int(frame["position"].nunique()))  # each segment may end with a short one
    length = -(-len(frame) // room)
    place = [frame["position"], frame.groupby("position").cumcount() // length]
    rules = dict.fromkeys(frame, "sum") | {"batch": "first", "position": "first", "adapted": "any"}
    rules |= {name: "mean" for name in frame if name in _MEANS or name.startswith(STATISTIC)}
    points = frame.groupby(place, sort=False).agg(rules)
    return {name: points[name].to_numpy() for name in columns}


def batches(trials: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """The table ``batches``: the online curve of each segment.

    Args:
        trials: those that are ok, as the plan has them.
        columns: :func:`batch_columns` of each; a statistic that a trial lacks is not a number there.
    """
    if not trials:
        return table(BATCHES, [])
    sizes = [len(own["batch"]) for own in columns]  # arrays, for a frame per trial would take pandas long
    names = dict.fromkeys(name for own in columns for name in own)
    lacking = [np.full(size, np.nan) for size in sizes]
    frame = pd.DataFrame(
        {
            name: np.concatenate([own.get(name, nan) for own, nan in zip(columns, lacking, strict=True)])
            for name in names
        }
    ).assign(trial=np.repeat(np.arange(len(trials)), sizes))
    frame = frame.merge(pd.DataFrame.from_records(list(_segments(trials))), on=["trial", "position"], how="left")
    seen = frame.groupby(["trial", "position"])[["images_graded", "images_correct"]].cumsum()
    frame["error_pct"] = 100.0 * (1.0 - frame["images_correct"] / frame["images_graded"])
    frame["images_seen"] = seen["images_graded"]
    frame["running_error_pct"] = 100.0 * (1.0 - seen["images_correct"] / seen["images_graded"])
    return typed(BATCHES, frame)


def _segments(trials: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What all batches of a segment share."""
    for number, trial in enumerate(trials):
        asked = {column.name: _asked(trial, column.name) for column in BATCHES if column.name in _ASKED}
        for position, (name, visit, _) in enumerate(trial["segments"]):
            yield {**asked, "trial": number, "position": position, "segment": name, "visit": visit}
