"""Run trials on Ray, or one after another without it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from tta_bench.run.server import own_server
from tta_bench.schedule import local
from tta_bench.schedule.estimates import Estimates
from tta_bench.schedule.observer import Observer
from tta_bench.schedule.options import RunOptions, available_cpus
from tta_bench.schedule.preflight import requirements
from tta_bench.suite.plan import Materials, Trial

if TYPE_CHECKING:
    from tta_bench.schedule.cluster import Cluster


def describe(options: RunOptions, trials: int) -> str:
    """One line about the resources that ``trials`` will use."""
    gpus = torch.cuda.device_count()
    if options.executor == "local":
        device = "one GPU" if gpus else f"{options.threads} CPU thread{'s' if options.threads > 1 else ''}"
        return f"{trials} trials, one after another, on {device}"
    if options.address:
        return f"{trials} trials on the Ray cluster at {options.address}"
    size = f"{options.gpu_share:g} GPU" if gpus else f"{options.threads} CPU"
    return f"{trials} trials on {slots(options)} Ray workers of {size} each, on this machine"


def slots(options: RunOptions) -> int:
    """Number of trials that run at the same time on this machine."""
    if options.executor == "local":
        return 1
    from tta_bench.schedule.cluster import Slot

    gpus = torch.cuda.device_count()
    slot = Slot(options.cpus_per_trial or 1, options.gpu_share if gpus else 0.0)
    fitting = max(1, slot.fits({"CPU": available_cpus(), "GPU": gpus}))
    return min(fitting, options.workers or fitting)


@contextlib.contextmanager
def ray_connection(options: RunOptions) -> Iterator[Callable[[], Cluster]]:
    """A function that connects to the run's Ray cluster on its first call; the connection is closed with the context.

    The function raises what :func:`tta_bench.schedule.cluster.connected` does.
    """
    with contextlib.ExitStack() as connection:

        @functools.cache
        def connect() -> Cluster:
            from tta_bench.schedule.cluster import connected

            return connection.enter_context(connected(options.address, available_cpus()))

        yield connect


def run(
    materials: Materials,
    trials: Sequence[Trial],
    options: RunOptions,
    connect: Callable[[], Cluster],
    estimates: Estimates,
    observer: Observer,
) -> None:
    """Run ``trials``; ``observer.finished`` is called once for each, as soon as it ends.

    Args:
        materials: what all trials share.
        trials: in plan order; on Ray the longest start first.
        options: of the run, with the image cache resolved.
        connect: see :func:`ray_connection`; called only for a run on Ray.
        estimates: durations of trials; updated as trials finish.
        observer: receives results and progress.

    Raises:
        UsageError: the cluster cannot be used; no trial was started.
        Stopped: the remaining trials cannot be run.
    """
    if options.executor == "local":
        local.run(materials, trials, options, observer)
        return
    from tta_bench.schedule.cluster import Slot
    from tta_bench.schedule.pool import Pool

    cluster = connect()
    any_gpu = any(node.resources.get("GPU") for node in cluster.nodes().values())
    slot = Slot(options.cpus_per_trial or 1, options.gpu_share if any_gpu else 0.0)
    needed = requirements(materials, trials)
    server = None if options.address else own_server().address  # workers may be on other machines
    arguments = (cluster.share(materials), options, needed.code, server)
    pool = Pool(cluster, slot, options, arguments, cluster.share(needed), estimates)
    pool.run(trials, observer)
