"""Run trials on Ray, or in this process. The only file that imports Ray."""

from __future__ import annotations

import contextlib
import importlib.resources
import logging
import os
import pathlib
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import tta_bench
from tta_bench import __version__
from tta_bench.data.cache import ImageCache
from tta_bench.errors import Problem, UsageError
from tta_bench.plan import Setting, Trial
from tta_bench.registry import folder_sha256
from tta_bench.runner import TrialResult, Workbench, run_trial

RETRIES = 2  # how often a trial whose worker died is given to another one

OnStart = Callable[[Trial], None]
OnResult = Callable[[Trial, TrialResult], None]


@dataclass(frozen=True)
class Resources:
    """What trials run on.

    Attributes:
        executor: "ray" or "local".
        address: an existing Ray cluster (``auto`` or HOST:PORT), or None: one is started on this machine.
        workers: at most so many worker processes (Ray); None: as many as fit.
        cpus_per_trial: CPU cores and torch threads of a trial; None: all with "local", 1 with "ray".
        gpus_per_trial: share of a GPU that a trial gets, where there are GPUs.
    """

    executor: str = "ray"
    address: str | None = None
    workers: int | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float = 1.0


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
    slot = _slot({"GPU": gpus}, resources)
    found = int(_slots({"CPU": available_cpus(), "GPU": gpus}, slot))
    size = f"{slot['num_gpus']:g} GPU" if "num_gpus" in slot else f"{slot['num_cpus']:g} CPU"
    return f"{trials} trials × {min(found, resources.workers or found)} Ray workers of {size} on this machine"


def run(
    setting: Setting,
    trials: Sequence[Trial],
    resources: Resources,
    cache_root: pathlib.Path | None,
    scratch: pathlib.Path,
    on_start: OnStart,
    on_result: OnResult,
) -> None:
    """Run ``trials``; ``on_result`` is called in this process, once for each, as soon as it ends.

    Args:
        setting: what all trials share.
        trials: in the order in which they start.
        resources: what they run on.
        cache_root: folder of the image cache, or None.
        scratch: a folder that is not the checkout, from which Ray is started.
        on_start: called when a trial starts.
        on_result: called with each trial's result.

    Raises:
        UsageError: the cluster cannot be used.
    """
    if resources.executor == "local":
        _run_local(setting, trials, resources, cache_root, on_start, on_result)
        return
    with _ray(resources, scratch) as ray:
        _Pool(ray, setting, resources, cache_root, len(trials)).run(trials, on_start, on_result)


def _run_local(
    setting: Setting, trials: Sequence[Trial], resources: Resources, cache_root: pathlib.Path | None,
    on_start: OnStart, on_result: OnResult,
) -> None:  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Workbench(setting, ImageCache(cache_root), device, resources.cpus_per_trial or available_cpus())
    for trial in trials:
        on_start(trial)
        on_result(trial, run_trial(trial, bench))


# -- Ray ---------------------------------------------------------------------------------------------------------------


def identity() -> dict[str, str]:
    """What the driver and its workers must agree on: the code that runs, wherever each of them found it."""
    folders = {name: pathlib.Path(str(importlib.resources.files(name))) for name in ("tta_bench", "tta_bench.methods")}
    return {"version": __version__, **{name: folder_sha256(folder) for name, folder in folders.items()}}


class Worker:
    """One device slot: a process that keeps its source models, mapped images and prepared statistics between trials."""

    def __init__(self, setting: Setting, cache_root: pathlib.Path | None, threads: int, expected: dict[str, str]):
        found = identity()
        if found != expected:
            what = f"worker on {socket.gethostname()} imports another tta_bench ({tta_bench.__file__}): {found}"
            raise UsageError(Problem(what, hint=f"install the driver's on every node: {expected}"))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bench = Workbench(setting, ImageCache(cache_root), device, threads)

    def ready(self) -> int:
        """The worker's process number, once it can run trials."""
        return os.getpid()

    def run(self, trial: Trial) -> TrialResult:
        """Run one trial."""
        return run_trial(trial, self._bench)


def check_address(address: str) -> None:
    """Say at once that a cluster cannot be used; Ray itself would try for minutes.

    Raises:
        UsageError: the address is of Ray Client, or nobody answers there.
    """
    if address.startswith("ray://"):
        what = "Ray Client (ray://) is not supported: results would pass through a proxy that can lose them"
        raise UsageError(Problem(what, "--address", hint="run on a node of the cluster with --address auto"))
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        hint = "give auto, or HOST:PORT as 'ray start --head' printed it"
        raise UsageError(Problem(f"no Ray cluster answers: {error}", f"--address {address}", hint=hint)) from error


@contextlib.contextmanager
def _ray(resources: Resources, scratch: pathlib.Path) -> Iterator[Any]:
    """Ray, connected, started from ``scratch``: it puts the driver's working directory first on its workers' path."""
    address = resources.address or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # a cluster that lives and dies with this command needs no advice on its access token
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        options |= {"num_cpus": available_cpus(), "include_dashboard": False}
    with contextlib.chdir(scratch):
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            hint = "is it running? 'ray status' on its head node says so"
            raise UsageError(
                Problem(f"cannot use the Ray cluster: {error}", f"--address {address}", hint=hint)
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Pool:
    """One worker actor for each device slot; a worker that dies is replaced, its trial retried."""

    def __init__(self, ray: Any, setting: Setting, resources: Resources, cache_root: pathlib.Path | None, trials: int):
        self._ray = ray
        self._slot = _slot(ray.cluster_resources(), resources)
        found = int(_slots(ray.cluster_resources(), self._slot))
        if found < 1:
            what = f"the cluster has {ray.cluster_resources()}, a trial needs {self._slot}"
            raise UsageError(Problem(what, hint="lower --cpus-per-trial or --gpus-per-trial"))
        self._count = min(found, trials, resources.workers or found)
        self._arguments = (ray.put(setting), cache_root, int(self._slot["num_cpus"]), identity())
        self._busy: dict[Any, tuple[Any, Trial]] = {}
        self._deaths: dict[str, list[str]] = {}

    def _start_worker(self) -> Any:
        return self._ray.remote(Worker).options(**self._slot).remote(*self._arguments)

    def run(self, trials: Sequence[Trial], on_start: OnStart, on_result: OnResult) -> None:
        """Give each worker the next trial whenever it is free, until all have a result."""
        waiting = deque(trials)
        idle = [self._start_worker() for _ in range(self._count)]
        self._check(idle)
        while waiting or self._busy:
            while waiting and idle:
                worker, trial = idle.pop(), waiting.popleft()
                self._busy[worker.run.remote(trial)] = (worker, trial)
                on_start(trial)
            done, _ = self._ray.wait(list(self._busy), num_returns=1)
            for reference in done:
                worker, trial = self._busy.pop(reference)
                result = self._result(reference, trial)
                if result is None:
                    waiting.appendleft(trial)
                else:
                    on_result(trial, result)
                idle.append(worker if result is not None and trial.key not in self._deaths else self._start_worker())

    def _check(self, workers: list[Any]) -> None:
        """Raise now what keeps every worker from starting."""
        try:
            self._ray.get([worker.ready.remote() for worker in workers])
        except self._ray.exceptions.RayActorError as error:
            raise UsageError(Problem(f"a worker cannot start: {error}")) from error

    def _result(self, reference: Any, trial: Trial) -> TrialResult | None:
        """The trial's result; None where its worker died and it shall be tried again."""
        try:
            result: TrialResult = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            deaths = self._deaths.setdefault(trial.key, [])
            deaths.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            if len(deaths) <= RETRIES:
                return None
            reason = f"its worker died {len(deaths)} times"
            facts = {"failure": "infrastructure"}
            return TrialResult(trial.key, "failed", reason, "\n".join(deaths), facts=facts)
        self._deaths.pop(trial.key, None)
        return result


def _slot(cluster: dict[str, float], resources: Resources) -> dict[str, float]:
    """Ray's resources of one worker."""
    slot: dict[str, float] = {"num_cpus": resources.cpus_per_trial or 1}
    if cluster.get("GPU", 0) > 0:
        slot["num_gpus"] = resources.gpus_per_trial
    return slot


def _slots(cluster: dict[str, float], slot: dict[str, float]) -> float:
    """How many workers fit."""
    by_cpu = cluster.get("CPU", 0) // slot["num_cpus"]
    return min(by_cpu, cluster["GPU"] // slot["num_gpus"]) if "num_gpus" in slot else by_cpu
