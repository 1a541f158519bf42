"""What methods cost: times by hardware, and counts, which do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from tta_bench.report.cautions import disturbed
from tta_bench.report.evidence import Evidence, adapting_most
from tta_bench.setting import Setting


@dataclass(frozen=True)
class CostRow:
    """A method on one source model and one kind of hardware. None: unknown, or not measurable there.

    Attributes:
        images_per_s: images per second of step time, median over trials.
        step_ms, step_ms_p95: time of a batch's step, median and 95th percentile of a trial, their medians over trials, ms.
        slowdown: step time over the baseline's, median over the segments and seeds that both have.
        forwards, backwards, updates: images forwarded, images backwarded and optimizer steps for each 1,000 images.
        peak_memory_mib: largest peak of device memory, MiB.
        prepare_s: time of ``prepare()``, in the trial that ran it, s.
        trials: number of trials timed.
    """

    label: str
    model: str
    images_per_s: float | None
    step_ms: float | None
    step_ms_p95: float | None
    slowdown: float | None
    forwards: float
    backwards: float | None
    updates: float
    peak_memory_mib: float | None
    prepare_s: float | None
    trials: int


@dataclass(frozen=True)
class CostTable:
    """Methods on one kind of hardware, with one batch size: only such times are comparable.

    Attributes:
        hardware: its name; empty for methods that were timed only on shared devices.
        caption: conditions in a sentence.
        baseline: the method that ``slowdown`` is relative to.
        shared: whether times were taken on a device that other trials used.
        section: the setting of all rows, without severity and number of images adapted on.
        disturbed: how a busy machine disturbed the times, a sentence each.
    """

    hardware: str
    caption: str
    baseline: str
    rows: list[CostRow]
    shared: bool = False
    section: Setting | None = None
    disturbed: tuple[str, ...] = ()

    def of(self, model: str) -> list[CostRow]:
        """The rows of a source model."""
        return [row for row in self.rows if row.model == model]

    @property
    def title(self) -> str:
        """The hardware, and the mode unless it is the default; empty where ``hardware`` is."""
        mode = self.section.mode_told if self.section else ""
        return ", ".join(filter(None, [self.hardware, self.hardware and mode]))

    @property
    def models(self) -> list[str]:
        """Source models in order."""
        return list(dict.fromkeys(row.model for row in self.rows))


def costs(evidence: Evidence, baseline: str, *, shared: bool = False) -> list[CostTable]:
    """Cost tables.

    Args:
        evidence: the rows.
        baseline: label of the method that slow-downs are relative to.
        shared: also make separate tables of the times that were taken on a shared device.
    """
    frame = evidence.segments[evidence.segments["status"] == "ok"]
    cost_tables: list[CostTable] = []
    sections = [(evidence.sections[str(section)], part) for section, part in frame.groupby("section", sort=False)]
    short = [_about(section) for section, _ in sections]
    for (section, part), name in zip(sections, short, strict=True):
        about, first = section.text if len(set(short)) < len(short) else name, len(cost_tables)
        _, part = adapting_most(part)  # other trials predict most batches: their median step is a prediction
        alone = part["device_share"].fillna(1.0) >= 1.0
        own, others = part[alone], part[~alone]
        cost_tables += list(_by_hardware(own, part, about, baseline, shared=False))
        if shared:
            cost_tables += list(_by_hardware(others, part, about, baseline, shared=True))
        elif len(others):
            timed = set(zip(own["model"], own["label"], strict=True))
            untimed = [row for row in zip(part["model"], part["label"], strict=True) if row not in timed]
            if untimed:
                cost_tables.append(_untimed(part, list(dict.fromkeys(untimed)), about, baseline))
        cost_tables[first:] = [replace(table, section=section) for table in cost_tables[first:]]
    return cost_tables


def _about(section: Setting) -> str:
    return ", ".join(filter(None, [section.dataset, f"batch size {section.batch_size}", section.mode_told]))


def _by_hardware(
    timed: pd.DataFrame, counted: pd.DataFrame, about: str, baseline: str, *, shared: bool
) -> Iterator[CostTable]:
    machine = timed["host"].where(timed["device"] == "cpu", "")  # two machines can have processors of one name
    threads = timed["threads"].where(timed["device"] == "cpu", 0)
    places = [timed["device_name"].fillna(""), machine, threads, timed["torch"]]
    for (device, host, count, torch), part in timed.groupby(places, sort=False):
        where = f"{device} ({host}), {count} thread{'s' if count > 1 else ''}" if host else str(device)
        hardware = f"{where}, torch {torch}"
        base = {m: _steps(f) for m, f in part[part["label"] == baseline].groupby("model", sort=False)}
        rows = [
            _row(str(label), str(model), mine, _counts(counted, label, model), base.get(model))
            for model in dict.fromkeys(part["model"])
            for label, mine in part[part["model"] == model].groupby("label", sort=False)
        ]
        note = "; other trials used the device at the same time" if shared else ""
        caption = f"Cost on {about}, {hardware}{note}."
        yield CostTable(hardware, caption, baseline, rows, shared, disturbed=tuple(disturbed(part)))


def _untimed(part: pd.DataFrame, places: Sequence[tuple[str, str]], about: str, baseline: str) -> CostTable:
    rows = []
    for model, label in places:
        mine = part[(part["model"] == model) & (part["label"] == label)]
        rows.append(_row(label, model, mine.iloc[:0], _counts(part, label, model), None))
    caption = f"Counts on {about}; timed on a shared device: times are left out."
    return CostTable("", caption, baseline, rows)


def _steps(frame: pd.DataFrame) -> pd.Series:
    """Median step time by (segment, seed, visit, adapt_images), ms."""
    places = [frame["segment"], frame["seed"], frame["visit"], frame["adapt_images"].fillna(0)]
    return frame["step_ms_median"].groupby(places).median()


def _counts(frame: pd.DataFrame, label: str, model: str) -> pd.DataFrame:
    """All rows of a method: counts are the same on any hardware."""
    return frame[(frame["label"] == label) & (frame["model"] == model)]


def _row(label: str, model: str, timed: pd.DataFrame, counted: pd.DataFrame, base: pd.Series | None) -> CostRow:
    images, backwarded = float(counted["images"].sum()) / 1000.0, counted["images_backwarded"]
    ratios = (_steps(timed) / base).dropna() if base is not None and len(timed) else pd.Series(dtype=float)
    return CostRow(
        label,
        model,
        images_per_s=_median(timed["images_per_s"]),
        step_ms=_median(timed["step_ms_median"]),
        step_ms_p95=_median(timed["step_ms_p95"]),
        slowdown=_median(ratios),
        forwards=float(counted["images_forwarded"].sum()) / images,
        backwards=None if backwarded.isna().any() else float(backwarded.sum()) / images,
        updates=float(counted["updates"].sum()) / images,
        peak_memory_mib=_largest(counted["peak_memory_mib"]),
        prepare_s=_largest(timed["prepare_s"]),
        trials=timed["key"].nunique(),
    )


def _median(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.median()) if len(known) else None


def _largest(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.max()) if len(known) else None
