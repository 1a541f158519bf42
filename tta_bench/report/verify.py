"""``tta-bench report --verify``: recompute every number of a run's records from its predictions."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tta_bench.data.base import digest
from tta_bench.run import metrics
from tta_bench.store import records, results
from tta_bench.store.results import Results


def verify(runs: Sequence[Results]) -> tuple[list[str], int]:
    """(disagreements, a line each; number of trials recomputed).

    A trial agrees where its files match their checksum, its key is the digest of what was asked, and each of its numbers
    follows from its predictions.
    """
    lines, count = list[str](), 0
    for run in runs:
        planned = [int(t["adapt_images"]) for t in run.plan["trials"] if t["adapt_images"] is not None]
        for trial in {t["key"]: t for t in run.plan["trials"]}.values():
            stored = records.read_planned(run.path, trial)  # tables written before a disk's error still have it
            record = stored.record
            lines += [stored.damage] if stored.damage else []
            if record is not None:
                disagreements = _disagreements(run.path, trial, record, max(planned, default=None))
                lines += [f"{run.path}/trials/{trial['key']}.json: {text}" for text in disagreements]
                count += record["status"] == "ok"
    return lines, count


def _disagreements(
    run: pathlib.Path, trial: Mapping[str, Any], record: Mapping[str, Any], graded_after: int | None
) -> Iterator[str]:
    asked = json.loads((run / "trials" / f"{trial['key']}.json").read_text(encoding="utf-8"))["asked"]
    if digest(asked) != trial["key"]:
        yield "its key is not the digest of what was asked"
    if record["status"] != "ok":
        return
    arrays = results.read_arrays(run, trial["key"], lambda name: True)
    if "batches/images_correct" in arrays:
        yield from _sums(record, arrays)
        return
    for row in record["segments"]:
        yield from _unlike(row, _segment(arrays, row["position"]), row["segment"])
    numbers = {name: number for number, (_, _, name) in enumerate(trial["shifts"])}
    for row in record["shifts"]:
        recomputed = _shift(arrays, row["position"], numbers[row["shift"]], row["visit"], graded_after)
        yield from _unlike(row, recomputed, f"{row['segment']}, {row['shift']}")


def _sums(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Disagreements of a long stream's rows with the sums over its batches."""
    for row in record["segments"]:
        here, name = arrays["batches/segment"] == row["position"], row["segment"]
        shifts = [shift for shift in record["shifts"] if shift["position"] == row["position"]]
        correct = sum(shift["correct"] for shift in shifts)
        images = int(arrays["batches/images_graded"][here].sum())
        yield from _unlike(row, {"images": images, "batches": int(here.sum())}, name)
        yield from _unlike({"correct": correct}, {"correct": int(arrays["batches/images_correct"][here].sum())}, name)


def _unlike(row: Mapping[str, Any], recomputed: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, value in recomputed.items():
        if name not in row or not _close(row[name], value):
            yield f"{where}: {name} is {row.get(name)}, its predictions give {value}"


def _close(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(other, list):
        return isinstance(one, list) and len(one) == len(other) and np.allclose(one, other, rtol=1e-9, atol=1e-9)
    return math.isclose(one, other, rel_tol=1e-9)


def _segment(arrays: Mapping[str, np.ndarray], position: int) -> dict[str, Any]:
    of_batches = arrays["batches/segment"] == position
    here = arrays["images/graded"] & of_batches[arrays["images/batch"]]
    share = metrics.most_predicted_pct(arrays["images/predicted"][here])
    return {"images": int(here.sum()), "batches": int(of_batches.sum()), "most_predicted_pct": share}


def _shift(
    arrays: Mapping[str, np.ndarray], position: int, number: int, visit: int, graded_after: int | None
) -> dict[str, Any]:
    """All but the mean over classes, which needs the labels: they are in no record."""
    batch, adapted = arrays["images/batch"], arrays["batches/adapted"]
    in_segment = arrays["batches/segment"][batch] == position
    segment, index = adapted[arrays["batches/segment"] == position], np.cumsum(in_segment) - 1
    here = arrays["images/graded"] & in_segment & (arrays["images/shift"] == number) & (arrays["images/visit"] == visit)
    correct = metrics.expected(arrays["images/predicted"][here], arrays["images/correct"][here])
    confidence, nll = arrays["images/confidence"][here], arrays.get("images/nll")
    if not len(correct):
        return {"images": 0}
    apart = metrics.by_adaptation(correct, adapted[batch[here]]) if segment.any() and not segment.all() else {}
    summary = metrics.summary(correct, confidence, None if nll is None else nll[here])
    return {**summary, **metrics.after(correct, index[here], graded_after), **apart}
