"""What a reader must know before trusting a number: sentences for the notes of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tta_bench.report.evidence import CLEAN, TRIAL, Evidence
from tta_bench.report.table import ErrorTable

_NEAR_CHANCE = 0.05  # of the way from chance to no error at all
_BUSY = 1.25  # load for each CPU: a trial that uses all of them, its supervisor and the scheduler are a little above 1
_OTHERS_MIB = 2048.0  # more than a process's own CUDA context and libraries take


def cautions(evidence: Evidence, error_tables: Sequence[ErrorTable], baseline: str) -> Iterator[str]:
    """All of them, the gravest first."""
    if baseline not in evidence.labels:
        yield f"No row has the label {baseline}: numbers relative to it are left out."
    yield from _at_chance(evidence, baseline)
    yield from _timed(evidence)
    if any(table.seeds == 1 for table in error_tables):
        yield "One seed: how much errors vary with the order of the images is unknown and not part of the tests."
    for table in error_tables:
        if table.untested:
            yield f"{table.setting.text}: nothing was tested: {table.untested}."


def _at_chance(evidence: Evidence, baseline: str) -> Iterator[str]:
    """Source models that the baseline shows to know nothing of clean images; of earlier runs that is not known."""
    classes = {t["key"]: t["num_classes"] for _, t in evidence.trials() if "num_classes" in t}
    rows = evidence.shifts
    rows = rows[(rows["label"] == baseline) & (rows["family"] == CLEAN) & (rows["status"] == "ok")]
    rows = rows.assign(chance=1.0 / rows["key"].map(classes).astype(float)).dropna(subset=["chance"])
    for model, own in rows.groupby("model", sort=False):
        right, images = float(own["correct"].sum()), float(own["images"].sum())
        chance = float(own["chance"].mean())
        margin = max(_NEAR_CHANCE * (1 - chance), 3 * np.sqrt(chance * (1 - chance) / images))
        if right / images <= chance + margin:
            error = f"{baseline} on {model} is at chance on clean images: error {100 * (1 - right / images):.1f} %"
            yield (
                f"{error}, of random answers {100 * (1 - chance):.1f} %. Check the weights, the normalisation and the "
                "order of the classes; no other number of this source model means anything before."
            )


def _timed(evidence: Evidence) -> Iterator[str]:
    """What disturbed times, of all runs together."""
    trials = evidence.segments[evidence.segments["status"] == "ok"].drop_duplicates(TRIAL)
    shared = int((trials["device_share"].fillna(1.0) < 1).sum())
    if shared:
        told = f"{shared:,} of {len(trials):,} trials shared their device with other trials (--gpus-per-trial)"
        yield f"{told}: their times are not the methods' own."
    yield from disturbed(trials)


def disturbed(rows: pd.DataFrame) -> Iterator[str]:
    """How a busy machine disturbed the times of some trials, a sentence each; nothing of what was not recorded."""
    trials = rows.drop_duplicates(TRIAL)
    load = trials[["load_start", "load_end"]].max(axis=1)
    others = trials["device_others_mib"].fillna(0.0)
    if count := int((load > _BUSY).sum()):
        told = f"{count:,} of {len(trials):,} trials ran on a busy host, with up to {load.max():.1f} waiting or running"
        yield f"{told} processes for each CPU: their times are too long."
    if count := int((others > _OTHERS_MIB).sum()):
        told = (
            f"{count:,} of {len(trials):,} trials met other processes on their GPU, with up to {others.max():,.0f} MiB"
        )
        yield f"{told} of its memory: their times are not the methods' own."
