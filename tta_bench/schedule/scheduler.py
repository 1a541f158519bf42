"""Run trials on Ray, or in this process."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tta_bench.errors import Problem, Stopped
from tta_bench.run.runner import Workbench, run_trial
from tta_bench.schedule import faults
from tta_bench.schedule.observer import Observer, title
from tta_bench.schedule.preflight import CacheChoice, requirements
from tta_bench.schedule.queue import Estimates
from tta_bench.store import runlog
from tta_bench.suite.plan import Materials, Trial


@dataclass(frozen=True)
class Resources:
    """What trials run on.

    Attributes:
        executor: "ray" or "local".
        address: an existing Ray cluster (``auto`` or HOST:PORT), or None: one is started on this machine.
        workers: at most so many worker processes (Ray); None: as many as fit.
        cpus_per_trial: CPU cores and torch threads of a trial; None: all with "local", 1 with "ray".
        gpus_per_trial: share of a GPU that a trial gets, where there are GPUs.
        timeout: seconds after which a trial's process is ended (Ray), or None.
        retries: how often a trial is tried again after an infrastructure fault (Ray).
    """

    executor: str = "ray"
    address: str | None = None
    workers: int | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float = 1.0
    timeout: float | None = None
    retries: int = faults.RETRIES


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(resources: Resources, trials: int) -> str:
    """What ``trials`` will run on, in a line."""
    gpus = torch.cuda.device_count()
    if resources.executor == "local":
        place = "one GPU" if gpus else f"{resources.cpus_per_trial or available_cpus()} CPU threads"
        return f"{trials} trials in this process, on {place}"
    if resources.address:
        return f"{trials} trials on the Ray cluster at {resources.address}"
    size = f"{resources.gpus_per_trial:g} GPU" if gpus else f"{resources.cpus_per_trial or 1} CPU"
    return f"{trials} trials × {slots(resources)} Ray workers of {size} on this machine"


def slots(resources: Resources) -> int:
    """Trials that run at a time on this machine."""
    if resources.executor == "local":
        return 1
    from tta_bench.schedule.cluster import Slot

    gpus = torch.cuda.device_count()
    slot = Slot(resources.cpus_per_trial or 1, resources.gpus_per_trial if gpus else 0.0)
    found = max(1, slot.fits({"CPU": available_cpus(), "GPU": gpus}))
    return min(found, resources.workers or found)


def run(
    materials: Materials,
    trials: Sequence[Trial],
    resources: Resources,
    cache: CacheChoice,
    scratch: pathlib.Path,
    estimates: Estimates,
    observer: Observer,
) -> None:
    """Run ``trials``; ``observer.finished`` is called in this process, once for each, as soon as it ends.

    Args:
        materials: what all trials share.
        trials: in plan order; those expected to take longest start first on Ray.
        resources: what they run on.
        cache: where image caches are.
        scratch: a folder that is not the checkout, from which Ray is started.
        estimates: of what trials take; learns from those that end.
        observer: is told what happens.

    Raises:
        UsageError: the cluster cannot be used; no trial was started.
        Stopped: trials are left that cannot be run.
    """
    if resources.executor == "local":
        _run_local(materials, trials, resources, cache, observer)
        return
    from tta_bench.schedule.cluster import Slot, connected
    from tta_bench.schedule.pool import Limits, Pool

    with connected(resources.address, available_cpus(), scratch) as cluster:
        any_gpu = any(node.resources.get("GPU") for node in cluster.nodes().values())
        slot = Slot(resources.cpus_per_trial or 1, resources.gpus_per_trial if any_gpu else 0.0)
        needed = requirements(materials, trials)
        arguments = (cluster.share(materials), cache, slot.cpus, needed.code)
        limits = Limits(resources.retries, resources.timeout, resources.workers)
        checked = resources.address is None
        pool = Pool(cluster, slot, limits, arguments, cluster.share(needed), cache, estimates, checked=checked)
        pool.run(trials, observer)


def _run_local(
    materials: Materials, trials: Sequence[Trial], resources: Resources, cache: CacheChoice, observer: Observer
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Workbench(materials, cache.here(), device, resources.cpus_per_trial or available_cpus())
    with tempfile.TemporaryDirectory(prefix="tta-bench-logs-") as folder:
        for trial in trials:
            observer.tick(1, [f"this process: {title(trial)}"], None)
            file = pathlib.Path(folder) / "log"
            with runlog.captured(file):
                result = run_trial(trial, bench)
            facts = {**result.facts, "device_share": 1.0, "attempts": 1}
            observer.finished([(trial, dataclasses.replace(result, log=runlog.read(file), facts=facts))])
            if result.facts.get("device_ruined"):
                what = f"a CUDA error has ruined this process's device: {result.reason}"
                raise Stopped(Problem(what, hint="run again to go on with the other trials, or use --executor ray"))
