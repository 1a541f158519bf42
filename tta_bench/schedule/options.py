"""What the command line of ``tta-bench run`` says, from there to the scheduler."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tta_bench.data.cache import ImageCache, default_root
from tta_bench.run import faults


@dataclass(frozen=True)
class Options:
    """The options of ``tta-bench run``, each under its own name.

    Attributes:
        suite: a path, or the name of a shipped suite.
        only: expressions that choose among the trials.
        sets: ``key=value`` pairs that replace keys of the suite.
        executor: "ray" or "local".
        address: an existing Ray cluster (``auto`` or HOST:PORT), or None: one is started on this machine.
        workers: at most so many worker processes (Ray); None: as many as fit.
        cpus_per_trial: CPU cores and torch threads of a trial; None: all with "local", 1 with "ray".
        gpus_per_trial: share of a GPU that a trial gets, where there are GPUs.
        timeout: seconds after which a trial's process is ended, or None.
        retries: how often a trial is tried again after an infrastructure fault (Ray).
        out: the run's folder, or None for ``results/<suite name>``.
        cache: the image cache's folder, "off", or None for the default place of each machine.
        retry_failed: run trials again that failed by the method's own error.
        limit: size of the seeded subset of images, or None.
        dry_run: check and print the plan only.
        plugins: plugin files.
    """

    suite: str
    only: Sequence[str] = ()
    sets: Sequence[str] = ()
    executor: str = "ray"
    address: str | None = None
    workers: int | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float = 1.0
    timeout: float | None = None
    retries: int = faults.RETRIES
    out: str | None = None
    cache: str | None = None
    retry_failed: bool = False
    limit: int | None = None
    dry_run: bool = False
    plugins: Sequence[str] = ()

    @property
    def threads(self) -> int:
        """CPU threads of a trial."""
        return self.cpus_per_trial or (available_cpus() if self.executor == "local" else 1)

    def resolved(self, cache: str) -> Options:
        """The same with the image cache settled, by the suite's ``cache`` ("on" or "off") and the environment here."""
        if self.cache is None and cache == "off":
            return replace(self, cache="off")
        named = self.cache or os.environ.get("TTA_BENCH_CACHE")
        return self if named in (None, "off") else replace(self, cache=str(pathlib.Path(str(named)).absolute()))

    def image_cache(self) -> ImageCache:
        """The image cache of the machine on which this is called."""
        if self.cache == "off":
            return ImageCache(None)
        return ImageCache(pathlib.Path(self.cache) if self.cache else default_root())


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
