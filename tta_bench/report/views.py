"""Tables along the stream: error by place, by visit, of probes, by adaptation, and collapse.

They are error tables with other columns than corruptions, rendered like all others and not tested for significance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tta_bench.report.error_tables import (
    caption,
    families,
    named,
    named_part,
    rows_of,
    sections,
    severities,
    without_clean,
)
from tta_bench.report.evidence import ALL_IMAGES, TRIAL, Evidence, of_shifts
from tta_bench.report.table import ErrorTable, TableSetting
from tta_bench.setting import Setting

PLACES, VISITS, PROBES, PARTS, CHANCE, COLLAPSE = "place", "visit", "probe", "adaptation", "chance", "collapse"
_SHOWN = 10  # visits with a column


def views(evidence: Evidence, baseline: str, *, joined: bool = False) -> list[ErrorTable]:
    """All views that the runs have data for, by setting and family of shifts; ``joined``: all families are one."""
    tables: list[ErrorTable] = []
    for base, frame in sections(evidence, role=None):
        stream, probes = frame[frame["role"] == "stream"], frame[frame["role"] == "probe"]
        for family, own in families(stream, joined):
            tables += _of_family(evidence, base, own, family)
        tables += _view(evidence, TableSetting(base, 0), probes, PROBES, _forgetting(probes, baseline))
    return named(tables)


def _of_family(evidence: Evidence, base: Setting, stream: pd.DataFrame, family: str) -> Iterator[ErrorTable]:
    """The views of the rows of a family."""
    walks = _walks_severities(stream)
    if walks:
        yield from _view(evidence, TableSetting(base, 0, family=family), stream, PLACES, _by_place(stream))
    for severity in severities(stream):
        setting = TableSetting(base, severity, family=family)
        part = stream[stream["of_severity"].isin([severity, 0])]
        shifted = without_clean(part)
        if not walks:
            yield from _view(evidence, setting, part, VISITS, _by_visit(shifted))
        parts = CHANCE if _counts_at_chance(base) else PARTS
        yield from _view(evidence, setting, part, parts, _by_adaptation(shifted, _SKIPPED[parts]))
        yield from _view(evidence, setting, part, COLLAPSE, _collapse(evidence, shifted))


def _walks_severities(stream: pd.DataFrame) -> bool:
    """Whether a stream has several severities."""
    severities_met = stream[stream["corruption"] != "clean"].groupby(TRIAL, sort=False)["severity"].nunique()
    return bool((severities_met > 1).any())


_TITLES = {
    PLACES: "by place in the sequence of severities",
    VISITS: "by visit, mean over the {noun}",
    PROBES: "of the probe after each part of the stream",
    PARTS: "on all images, on those adapted on and on those only predicted",
    CHANCE: "on all images, on those adapted on and on those skipped, which count at chance",
    COLLAPSE: "over all images, mean over classes, and share of the most predicted class",
}
_NOTES = {
    PLACES: "mean over the {noun} at each severity of the sequence; mean over all places",
    VISITS: "last − first: change from the first visit to the last",
    PROBES: "forgetting: mean error of the probes minus the baseline's",
    PARTS: "share: images adapted on, per cent of the images graded",
    CHANCE: "chance: expected error of random answers; share: images adapted on, per cent of the images graded",
    COLLAPSE: "most predicted: 100 after a collapse to one class; uniform predictions of C classes have 100/C",
}

_SKIPPED = {PARTS: "predicted", CHANCE: "chance"}  # the column of images that were not adapted on


def _counts_at_chance(setting: Setting) -> bool:
    return json.loads(dict(setting.parameters).get("adapt", "{}")).get("skipped") == "chance"


def _view(
    evidence: Evidence, setting: TableSetting, frame: pd.DataFrame, kind: str, rows: pd.DataFrame
) -> Iterator[ErrorTable]:
    """The table of ``rows``, which have their column's name in ``view``; nothing where there are none."""
    columns = list(dict.fromkeys(rows["view"])) if len(rows) else []
    if (len(columns) < 2 and kind != PROBES) or not columns:
        return
    title, note = (texts[kind].format(noun=setting.noun) for texts in (_TITLES, _NOTES))
    yield ErrorTable(
        name="-".join([kind, *named_part(setting)]),
        title=f"{evidence.title}: error in per cent {title}{setting.told}",
        setting=setting,
        caption=caption(frame, setting, [note, *(_cost_ratios(rows) if kind in _SKIPPED else [])]),
        corruptions=columns,
        rows=rows_of(rows, "view", columns),
        partial=bool(frame["partial"].any()),
        averaged=kind == PLACES,
        seeds=frame["seed"].nunique(),
        untested="views are not tested",
        mixed=evidence.mixed,
        view=kind,
    )


def _by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """Severities up and, from their second visit on, back down."""
    shifted = frame[frame["corruption"] != "clean"]
    severity = shifted["severity"].astype(int).astype(str)
    return shifted.assign(view=severity.where(shifted["visit"] == 0, severity + " again")).sort_values(
        "position", kind="stable"
    )


def _by_visit(frame: pd.DataFrame) -> pd.DataFrame:
    last = int(frame["visit"].max()) if len(frame) else 0
    if last == 0:
        return frame.iloc[:0].assign(view="")
    shown = {round(v) for v in np.linspace(0, last, min(_SHOWN, last + 1))}
    visits = frame[frame["visit"].isin(shown)].sort_values("visit", kind="stable")
    change = _difference(frame[frame["visit"] == last], frame[frame["visit"] == 0], [*_ROW, "shift"])
    columns = [visits.assign(view=(visits["visit"] + 1).astype(str)), change.assign(view="last − first")]
    return pd.concat(columns, ignore_index=True)


_ROW = ["run", "label", "model", "setting", "seed"]


def _difference(of: pd.DataFrame, minus: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Rows of ``of`` with the difference of their errors to those of ``minus``."""
    errors = minus.groupby(list(on))["error_pct"].mean().rename("minus")
    joined = of.join(errors, on=list(on))
    return joined.assign(error_pct=joined["error_pct"] - joined["minus"])


def _by_adaptation(frame: pd.DataFrame, skipped_name: str) -> pd.DataFrame:
    """Error on all images, on those adapted on, on the skipped ones; and the share of the former.

    A segment of a time-constrained stream that does not tell them apart was adapted on as a whole.
    """
    apart, timed = frame["images_adapted"].notna(), frame["cost_ratio"].notna()
    parts = frame[apart | timed | (frame["status"] != "ok")]
    if not apart.any():
        return frame.iloc[:0].assign(view="")
    adapted = parts["images_adapted"].fillna(parts["images"]).astype(float)
    skipped = parts["images_skipped"].fillna(0).astype(float)
    on_adapted = parts["error_adapted_pct"].where(parts["images_adapted"].notna(), parts["error_pct"])
    values = {"all": parts["error_pct"], "adapted": on_adapted, skipped_name: parts["error_skipped_pct"],
              "share": 100.0 * adapted / (adapted + skipped)}  # fmt: skip
    return pd.concat([parts.assign(view=name, error_pct=value) for name, value in values.items()], ignore_index=True)


def _cost_ratios(frame: pd.DataFrame) -> list[str]:
    """The cost ratio that each method's stream follows, as a sentence of a caption."""
    rows = frame[frame["cost_ratio"].notna()].drop_duplicates(["model", "label"])
    several = rows["model"].nunique() > 1
    texts = [f"{label}{f' on {model}' if several else ''} {ratio:g}"
             for label, model, ratio in zip(rows["label"], rows["model"], rows["cost_ratio"], strict=True)]  # fmt: skip
    return [f"cost of an adapting step in plain forward passes: {', '.join(texts)}"] if texts else []


def _collapse(evidence: Evidence, frame: pd.DataFrame) -> pd.DataFrame:
    segments = of_shifts(evidence.segments, frame)
    share = segments.assign(error_pct=segments["most_predicted_pct"], view="most predicted", shift="")
    classes = frame[frame["shift"] != ALL_IMAGES]  # over all images of a stream it is unknown
    classes = classes.assign(view="classes", error_pct=classes["class_mean_error_pct"])
    return pd.concat([frame.assign(view="images", shift=""), classes, share], ignore_index=True)


def _forgetting(probes: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Probe errors by position, their mean, and its difference from the baseline's."""
    if probes.empty:
        return probes.assign(view="")
    visits = sorted(int(visit) for visit in probes["visit"].unique())
    shown = {visits[round(i)] for i in np.linspace(0, len(visits) - 1, min(_SHOWN, len(visits)))}
    visited = probes[probes["visit"].isin(shown)].sort_values("visit", kind="stable")
    columns = [visited.assign(view="after " + (visited["visit"] + 1).astype(str)), probes.assign(view="average")]
    unadapted = probes[(probes["label"] == baseline) & (probes["status"] == "ok")]
    if len(unadapted):
        columns.append(_difference(probes, unadapted, ["model", "seed", "visit"]).assign(view="forgetting"))
    return pd.concat(columns, ignore_index=True)
