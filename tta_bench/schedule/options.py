"""Options of ``tta-bench run``, as the command line passes them to the scheduler."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tta_bench.data.cache import ImageCache, default_root
from tta_bench.run import faults


@dataclass(frozen=True)
class RunOptions:
    """Options of ``tta-bench run``, named as on the command line.

    Attributes:
        suite: path, or name of a shipped suite.
        only: expressions that select trials.
        sets: ``key=value`` pairs that replace keys of the suite.
        executor: "ray" or "local".
        address: an existing Ray cluster (``auto`` or HOST:PORT); None starts one on this machine.
        workers: maximum number of Ray workers; None for as many as fit.
        cpus_per_trial: CPU cores and torch threads per trial; None for all with "local", 1 with "ray".
        gpus_per_trial: fraction of a GPU per trial, on machines with GPUs; "auto" until it is measured.
        timeout: seconds after which a trial's process is killed, or None.
        retries: further attempts at a trial after an infrastructure fault (Ray).
        out: the run's folder; None for ``results/<suite name>``, or one beside it with ``sets`` and ``plugins``.
        cache: folder of the image cache, "off", or None for each machine's default.
        retry_failed: rerun trials that failed with an error of the method.
        limit: size of the seeded subset of images, or None.
        dry_run: only check and print the plan.
        profile: profile trials in the place of running them.
        measure: with ``dry_run``: also run a few batches of each row in several modes.
        plugins: plugin files.
        yes: also a plan of very many trials.
    """

    suite: str
    only: Sequence[str] = ()
    sets: Sequence[str] = ()
    executor: str = "ray"
    address: str | None = None
    workers: int | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float | Literal["auto"] = 1.0
    timeout: float | None = None
    retries: int = faults.RETRIES
    out: str | None = None
    cache: str | None = None
    retry_failed: bool = False
    limit: int | None = None
    dry_run: bool = False
    profile: bool = False
    measure: bool = False
    plugins: Sequence[str] = ()
    yes: bool = False

    @property
    def threads(self) -> int:
        """CPU threads per trial."""
        return self.cpus_per_trial or (available_cpus() if self.executor == "local" else 1)

    @property
    def gpu_share(self) -> float:
        """GPUs per trial: a whole one until they are measured."""
        return 1.0 if self.gpus_per_trial == "auto" else self.gpus_per_trial

    def resolved(self, cache: str) -> RunOptions:
        """These options with the image cache set from the suite's ``cache`` ("on" or "off") and the environment."""
        if self.cache is None and cache == "off":
            return replace(self, cache="off")
        folder = self.cache or os.environ.get("TTA_BENCH_CACHE")
        return self if folder in (None, "off") else replace(self, cache=str(pathlib.Path(str(folder)).absolute()))

    def image_cache(self) -> ImageCache:
        """The image cache of the machine where this is called."""
        if self.cache == "off":
            return ImageCache(None)
        return ImageCache(pathlib.Path(self.cache) if self.cache else default_root())


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
