"""Run trials on Ray, or one after another without it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from tta_bench.run.server import own_server
from tta_bench.schedule import local
from tta_bench.schedule.observer import Observer
from tta_bench.schedule.options import Options, available_cpus
from tta_bench.schedule.preflight import requirements
from tta_bench.schedule.queue import Estimates
from tta_bench.suite.plan import Materials, Trial

if TYPE_CHECKING:
    from tta_bench.schedule.cluster import Cluster


def describe(options: Options, trials: int) -> str:
    """What ``trials`` will run on, in a line."""
    gpus = torch.cuda.device_count()
    if options.executor == "local":
        place = "one GPU" if gpus else f"{options.threads} CPU threads"
        return f"{trials} trials, one after another, on {place}"
    if options.address:
        return f"{trials} trials on the Ray cluster at {options.address}"
    size = f"{options.gpus_per_trial:g} GPU" if gpus else f"{options.threads} CPU"
    return f"{trials} trials × {slots(options)} Ray workers of {size} on this machine"


def slots(options: Options) -> int:
    """Trials that run at a time on this machine."""
    if options.executor == "local":
        return 1
    from tta_bench.schedule.cluster import Slot

    gpus = torch.cuda.device_count()
    slot = Slot(options.cpus_per_trial or 1, options.gpus_per_trial if gpus else 0.0)
    found = max(1, slot.fits({"CPU": available_cpus(), "GPU": gpus}))
    return min(found, options.workers or found)


@contextlib.contextmanager
def ray_connection(options: Options) -> Iterator[Callable[[], Cluster]]:
    """A function that connects to the run's Ray cluster when it is first called; the connection ends with the context.

    Raises:
        UsageError: (the function) there is none at the address.
        Stopped: (the function) Ray cannot be started on this machine.
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
    options: Options,
    connect: Callable[[], Cluster],
    estimates: Estimates,
    observer: Observer,
) -> None:
    """Run ``trials``; ``observer.finished`` is called in this process, once for each, as soon as it ends.

    Args:
        materials: what all trials share.
        trials: in plan order; those expected to take longest start first on Ray.
        options: what they run on, with the image cache settled.
        connect: see :func:`ray_connection`; not called where the run needs no Ray.
        estimates: of what trials take; learns from those that end.
        observer: is told what happens.

    Raises:
        UsageError: the cluster cannot be used; no trial was started.
        Stopped: trials are left that cannot be run.
    """
    if options.executor == "local":
        local.run(materials, trials, options, observer)
        return
    from tta_bench.schedule.cluster import Slot
    from tta_bench.schedule.pool import Pool

    cluster = connect()
    any_gpu = any(node.resources.get("GPU") for node in cluster.nodes().values())
    slot = Slot(options.cpus_per_trial or 1, options.gpus_per_trial if any_gpu else 0.0)
    needed = requirements(materials, trials)
    here = None if options.address else own_server().address  # else workers may be on other machines
    arguments = (cluster.share(materials), options, needed.code, here)
    pool = Pool(cluster, slot, options, arguments, cluster.share(needed), estimates)
    pool.run(trials, observer)
