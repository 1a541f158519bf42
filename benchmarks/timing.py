"""Duration and throughput of a run, from the files of its trials; shared by other scripts."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Sweep:
    """A finished run.

    Attributes:
        seconds: from the first trial's start to the last one's end.
        trials: number of trials.
        images: graded by all trials.
        workers: number of processes that ran them.
    """

    seconds: float
    trials: int
    images: int
    workers: int

    @property
    def images_per_s(self) -> float:
        """Images graded per second."""
        return self.images / self.seconds


def read(run: pathlib.Path) -> Sweep:
    """Read a run of one session; the time of a trial's file is the end of the trial."""
    files = list((run / "trials").glob("*.json"))
    ends = [file.stat().st_mtime for file in files]
    records = [json.loads(file.read_text()) for file in files]
    starts = [end - record["facts"]["trial_s"] for end, record in zip(ends, records, strict=True)]
    return Sweep(
        seconds=max(ends) - min(starts),
        trials=len(records),
        images=sum(row["images"] for record in records for row in record["shifts"]),
        workers=len({(record["environment"]["host"], record["environment"]["pid"]) for record in records}),
    )
