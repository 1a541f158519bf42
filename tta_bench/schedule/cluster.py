"""What the pool asks of Ray: nodes, workers, results, faults. The only file that imports Ray."""

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
from tta_bench.schedule.options import Options
from tta_bench.schedule.preflight import Requirements, prepare
from tta_bench.schedule.worker import Worker

REFRESH_S = 2.0  # how often the list of nodes is asked for
_LONGEST_FOLDER = 40  # characters of a folder in which the paths of Ray's sockets, of 65 more, are short enough


@dataclass(frozen=True)
class Slot:
    """What one worker gets.

    Attributes:
        cpus: CPU cores, and threads of torch.
        gpus: share of a GPU; 0 where the run is on CPUs.
    """

    cpus: int
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many such workers a node with ``resources`` holds."""
        by_cpu = int(resources.get("CPU", 0) // self.cpus)
        if not self.gpus:
            return by_cpu
        whole = resources.get("GPU", 0)
        by_gpu = int(whole // self.gpus)
        if self.gpus < 1:  # a share is of one GPU, and the part of one that is free counts, too
            by_gpu = int(whole) * int(1 / self.gpus + 1e-9) + int((whole % 1) / self.gpus + 1e-9)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        host: its name.
        resources: all it has.
        free: what nobody uses, this run included.
    """

    id: str
    host: str
    resources: Mapping[str, float]
    free: Mapping[str, float]


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
def connected(address: str | None, cpus: int) -> Iterator[Cluster]:
    """A cluster: the one at ``address``, or one of this machine that lives and dies with this command.

    Ray is started from an empty folder: it puts the driver's working directory first on its workers' path.

    Raises:
        UsageError: there is none at the address.
        Stopped: Ray cannot be started on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # a cluster that lives and dies with this command needs no advice on its access token
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False}
        if len(tempfile.gettempdir()) > _LONGEST_FOLDER:
            options["_temp_dir"] = "/tmp/ray"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as empty:  # its workers stay in it
        try:
            with contextlib.chdir(empty):
                ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises that class itself where a start takes too long
            raise _no_cluster(error, address) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        try:
            yield Cluster(ray)
        finally:
            ray.shutdown()


def _no_cluster(error: Exception, address: str | None) -> Exception:
    if address is None:
        hint = "run again to go on; or use --executor local, which needs no Ray"
        return Stopped(Problem(f"Ray cannot be started on this machine: {_plain(error)}", hint=hint))
    hint = "is it running? 'ray status' on its head node says so"
    return UsageError(Problem(f"cannot use the Ray cluster: {_plain(error)}", f"--address {address}", hint=hint))


def _plain(error: Exception) -> str:
    """What Ray says, without the colours that it says it in."""
    return click.unstyle(str(error)).strip()


class Cluster:
    """A connected Ray cluster. References are Ray's; what goes wrong comes back as a :class:`Fault`."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._nodes: dict[str, Node] = {}
        self._asked = float("-inf")

    def nodes(self) -> dict[str, Node]:
        """Nodes that are alive, by id; asked for at most every two seconds."""
        if time.monotonic() - self._asked > REFRESH_S:
            alive = {n["NodeID"]: n for n in self._ray.nodes() if n["Alive"]}
            free = self._ray._private.state.available_resources_per_node()
            self._nodes = {
                id: Node(id, n["NodeManagerHostname"], n["Resources"], free.get(id, {})) for id, n in alive.items()
            }
            self._asked = time.monotonic()
        return self._nodes

    def share(self, value: Any) -> Any:
        """Put a value where all workers can read it, once."""
        return self._ray.put(value)

    def prepare(self, node: Node, needed: Any, options: Options) -> Any:
        """A reference to what the node lacks (texts), once its image cache is made."""
        task = self._ray.remote(_prepare).options(num_cpus=0, max_retries=0, scheduling_strategy=self._on(node))
        return task.remote(needed, options)

    def start(self, node: Node, slot: Slot, arguments: Sequence[Any]) -> tuple[Any, Any]:
        """(a worker on the node, a reference to its place)."""
        gpus = {"num_gpus": slot.gpus} if slot.gpus else {}
        options = {"num_cpus": slot.cpus, "max_restarts": 0, "scheduling_strategy": self._on(node), **gpus}
        worker = self._ray.remote(Worker).options(**options).remote(*arguments)
        return worker, worker.ready.remote()

    def _on(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def kill(self, worker: Any) -> None:
        """End a worker's process, whatever it is doing."""
        self._ray.kill(worker, no_restart=True)

    def _lost(self) -> list[str]:
        """The processes of a cluster that was started here which have ended, by Ray's names for them."""
        node = self._ray._private.worker._global_node
        return [] if node is None else [kind for kind, _ in node.dead_processes()]

    def wait(self, references: list[Any], seconds: float) -> list[Any]:
        """Those of ``references`` that are done, as soon as one is, at the latest after ``seconds``.

        Raises:
            Stopped: a process of the cluster that was started here has ended; Ray would end this one in a few seconds.
        """
        if lost := self._lost():
            what = f"Ray's {' and '.join(lost)} on this machine ended unexpectedly"
            raise Stopped(Problem(what, hint="was it killed, or the memory used up? Run again to go on"))
        done, _ = self._ray.wait(references, num_returns=1, timeout=seconds)
        return list(done)

    def get(self, reference: Any) -> Any:
        """What a finished reference came to: its value, or a :class:`Fault`."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.OutOfMemoryError as error:
            return Fault("memory", f"the node ran out of memory: {_first_line(error)}")
        except self._ray.exceptions.RayError as error:
            return Fault("infrastructure", f"{type(error).__name__}: {_first_line(error)}")


def _prepare(needed: Requirements, options: Options) -> list[str]:
    needed.materials.enter()
    return prepare(needed, options.image_cache())


def _first_line(error: Exception) -> str:
    """The sentence that says most: the last line of an error raised in a worker, else Ray's first."""
    lines = _plain(error).splitlines() or [type(error).__name__]
    named = [line for line in lines if line.startswith("tta_bench.errors.")]
    return named[-1].partition(": ")[2] if named else lines[0]
