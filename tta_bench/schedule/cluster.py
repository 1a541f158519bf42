"""The pool's interface to Ray: nodes, workers, results, faults. The only file that imports Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.run.faults import Fault
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.preflight import Requirements, prepare
from tta_bench.schedule.worker import Worker

REFRESH_S = 2.0  # age at which the list of nodes is fetched again
_MAX_TEMP_DIR = 40  # characters; the paths of Ray's sockets add 65, and the system takes 107


@dataclass(frozen=True)
class Slot:
    """Resources of one worker.

    Attributes:
        cpus: CPU cores, and threads of torch.
        gpus: number or fraction of GPUs; 0 for a run on CPUs.
    """

    cpus: int
    gpus: float

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{cpus} and {self.gpus:g} GPU" if self.gpus else cpus

    def fits(self, resources: Mapping[str, float]) -> int:
        """Number of such workers that fit on a node with ``resources``."""
        by_cpu = int(resources.get("CPU", 0) // self.cpus)
        if not self.gpus:
            return by_cpu
        gpus = resources.get("GPU", 0)
        by_gpu = int(gpus // self.gpus)
        if self.gpus < 1:  # a fraction is of a single GPU; one of them may be partly free
            by_gpu = int(gpus) * int(1 / self.gpus + 1e-9) + int((gpus % 1) / self.gpus + 1e-9)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's node id.
        host: name of the machine.
        resources: total.
        free: resources that no run uses, this one included.
    """

    id: str
    host: str
    resources: Mapping[str, float]
    free: Mapping[str, float]


def check_address(address: str) -> None:
    """Fail at once if a cluster cannot be used; Ray itself would retry for minutes.

    Raises:
        UsageError: the address is one of Ray Client, or no cluster answers.
    """
    if address.startswith("ray://"):
        message = "Ray Client (ray://) is not supported: results would pass through a proxy that can lose them"
        raise UsageError(Problem(message, "--address", hint="run on a node of the cluster with --address auto"))
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:  # the last: a port above 65,535
        hint = "use auto, or HOST:PORT as printed by 'ray start --head'"
        raise UsageError(Problem(f"no Ray cluster answers: {error}", f"--address {address}", hint=hint)) from error


@contextlib.contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Cluster]:
    """The cluster at ``address``, or a new one on this machine that ends with this command.

    Ray is started from an empty folder, since it puts the driver's working directory first on its workers' path.

    Raises:
        UsageError: there is no cluster at the address.
        Stopped: Ray cannot be started on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # silence advice on access tokens: the cluster ends with this command
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False}
        if len(tempfile.gettempdir()) > _MAX_TEMP_DIR:
            options["_temp_dir"] = "/tmp/ray"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as empty:  # its workers keep it as their working directory
        try:
            with contextlib.chdir(empty):
                ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises Exception itself if its start takes too long
            raise _no_cluster(error, address) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray has replaced them
                signal.signal(number, handler)
        try:
            yield Cluster(ray)
        finally:
            ray.shutdown()


def _no_cluster(error: Exception, address: str | None) -> Exception:
    if address is None:
        hint = "try again, or use --executor local, which does not need Ray"
        return Stopped(Problem(f"Ray cannot be started on this machine: {_plain(error)}", hint=hint))
    hint = "check with 'ray status' on its head node that it is running"
    return UsageError(Problem(f"cannot use the Ray cluster: {_plain(error)}", f"--address {address}", hint=hint))


def _plain(error: Exception) -> str:
    """An error's message without Ray's terminal colours."""
    return click.unstyle(str(error)).strip()


class Cluster:
    """A connected Ray cluster. References are Ray's; errors are returned as a :class:`Fault`."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._nodes: dict[str, Node] = {}
        self._fetched = float("-inf")

    def nodes(self) -> dict[str, Node]:
        """Nodes that are alive, by id; at most two seconds old."""
        if time.monotonic() - self._fetched > REFRESH_S:
            alive = {n["NodeID"]: n for n in self._ray.nodes() if n["Alive"]}
            free = self._ray._private.state.available_resources_per_node()
            self._nodes = {
                id: Node(id, n["NodeManagerHostname"], n["Resources"], free.get(id, {})) for id, n in alive.items()
            }
            self._fetched = time.monotonic()
        return self._nodes

    def share(self, value: Any) -> Any:
        """Put a value into Ray's object store, once for all workers; returns its reference."""
        return self._ray.put(value)

    def prepare(self, node: Node, needed: Any, options: RunOptions) -> Any:
        """Check a node and build its image cache; returns a reference to the problems found, a list of sentences."""
        task = self._ray.remote(_prepare).options(num_cpus=0, max_retries=0, scheduling_strategy=self._on(node))
        return task.remote(needed, options)

    def start(self, node: Node, slot: Slot, arguments: Sequence[Any]) -> tuple[Any, Any]:
        """Start a worker on a node; returns its handle and a reference to its ``WorkerInfo``."""
        gpus = {"num_gpus": slot.gpus} if slot.gpus else {}
        options = {"num_cpus": slot.cpus, "max_restarts": 0, "scheduling_strategy": self._on(node), **gpus}
        worker = self._ray.remote(Worker).options(**options).remote(*arguments)
        return worker, worker.info.remote()

    def _on(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def kill(self, worker: Any) -> None:
        """Kill a worker's process."""
        self._ray.kill(worker, no_restart=True)

    def _dead_processes(self) -> list[str]:
        """Names of Ray's processes on this machine that have ended, if this command started the cluster."""
        node = self._ray._private.worker._global_node
        return [] if node is None else [kind for kind, _ in node.dead_processes()]

    def wait(self, references: list[Any], seconds: float) -> list[Any]:
        """Wait until one of ``references`` is done, at most ``seconds``; returns it in a list, or an empty list.

        Raises:
            Stopped: a process of the cluster that this command started has ended; Ray would kill this one in seconds.
        """
        if dead := self._dead_processes():
            message = f"Ray's {' and '.join(dead)} on this machine ended unexpectedly"
            raise Stopped(Problem(message, hint="check whether it was killed or the machine is out of memory"))
        done, _ = self._ray.wait(references, num_returns=1, timeout=seconds)
        return list(done)

    def get(self, reference: Any) -> Any:
        """The value of a finished reference, or a :class:`Fault`."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.OutOfMemoryError as error:
            return Fault("memory", f"the node ran out of memory: {_first_line(error)}")
        except self._ray.exceptions.RayError as error:
            return Fault("infrastructure", f"{type(error).__name__}: {_first_line(error)}")


def _prepare(needed: Requirements, options: RunOptions) -> list[str]:
    needed.materials.enter()
    return prepare(needed, options.image_cache())


def _first_line(error: Exception) -> str:
    """The most informative line: the last of our own errors raised in a worker, else the first of Ray's message."""
    lines = _plain(error).splitlines() or [type(error).__name__]
    own_errors = [line for line in lines if line.startswith("tta_bench.errors.")]
    return own_errors[-1].partition(": ")[2] if own_errors else lines[0]
