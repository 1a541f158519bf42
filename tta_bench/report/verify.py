"""``tta-bench report --verify``: every number of a run's records recomputed from the predictions beside it."""

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
    """(what does not agree, a line each; trials that were recomputed).

    A trial agrees where its files match their checksum, its key is the digest of what was asked, and each of its numbers
    follows from its predictions.
    """
    lines, count = list[str](), 0
    for run in runs:
        lines += run.damaged
        planned = [int(t["adapt_images"]) for t in run.plan["trials"] if t["adapt_images"] is not None]
        for trial in {t["key"]: t for t in run.plan["trials"]}.values():
            record = records.read(run.path, trial["key"])
            if record is not None:
                lines += [f"{run.path}/trials/{trial['key']}.json: {what}"
                          for what in _disagreements(run.path, trial, record, max(planned, default=None))]  # fmt: skip
                count += record["status"] == "ok"
    return lines, count


def _disagreements(
    run: pathlib.Path, trial: Mapping[str, Any], record: Mapping[str, Any], graded_after: int | None
) -> Iterator[str]:
    asked = json.loads((run / "trials" / f"{trial['key']}.json").read_text())["asked"]
    if digest(asked) != trial["key"]:
        yield "its key is not the digest of what was asked"
    if record["status"] != "ok":
        return
    arrays = results.read_arrays(run, trial["key"], lambda name: name.startswith("images/"))
    numbers = {name: number for number, (_, _, name) in enumerate(trial["shifts"])}
    last, segment = 0, None
    for row in record["segments"]:
        if (row["segment"], row["visit"]) != segment:  # rows of one segment share its batches
            segment, first, last = (row["segment"], row["visit"]), last, last + row["batches"]
        batch = arrays["images/batch"]
        here = (batch >= first) & (batch < last) & (arrays["images/shift"] == numbers[row["shift"]])
        for name, value in _recomputed(arrays, here, graded_after).items():
            if name not in row or not math.isclose(row[name], value, rel_tol=1e-9):
                yield f"{row['segment']}, {row['shift']}: {name} is {row.get(name)}, its predictions give {value}"


def _recomputed(arrays: Mapping[str, np.ndarray], here: np.ndarray, graded_after: int | None) -> dict[str, float | int]:
    correct, confidence = arrays["images/correct"][here], arrays["images/confidence"][here]
    if not len(correct):
        return {"images": 0}
    return {**metrics.summary(correct, confidence), **metrics.after(correct, graded_after)}
