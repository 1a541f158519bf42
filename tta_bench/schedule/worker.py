"""A worker: a supervisor on one device slot, which runs one trial after another. Knows nothing of Ray."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from tta_bench.errors import Problem, UsageError
from tta_bench.run import output
from tta_bench.run.runner import Supervisor, TrialResult
from tta_bench.run.server import ForkServer, die_with_parent
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.preflight import code_mismatch
from tta_bench.suite.plan import Materials, Trial


@dataclass(frozen=True)
class WorkerInfo:
    """A started worker.

    Attributes:
        host: name of its machine.
        pid: its process.
        device: a GPU's UUID, or "cpu".
        logs: folder on its machine with the output of running trials.
    """

    host: str
    pid: int
    device: str
    logs: str


class Worker:
    """Runs trials for a driver.

    Args:
        materials: what all trials share.
        options: of the run.
        share: fraction of the device that this worker uses; below 1 the device is shared.
        expected: code identity of the driver.
        server: address of a fork server on this machine; if none is there, the worker starts one.

    Raises:
        UsageError: this machine has another version of the code than the driver.
    """

    def __init__(
        self, materials: Materials, options: RunOptions, share: float, expected: Mapping[str, str] | None,
        server: str | None = None,
    ):  # fmt: skip
        die_with_parent()
        torch.set_num_threads(1)  # grading is cheap; waking other threads for it sometimes took 40 ms
        self._server = ForkServer.at(server)
        if expected is not None and (mismatch := code_mismatch(expected)):
            raise UsageError(Problem(mismatch))
        materials.enter()
        cache = options.image_cache()
        self._supervisor = Supervisor(materials, cache, options.threads, self._server, options.timeout)
        self._share = share

    def info(self) -> WorkerInfo:
        """Host, process, device and log folder; also signals that the worker can run trials."""
        child = self._server.fork(_send_device)  # in a child: this process never initialises a GPU
        device = child.connection.recv()
        child.end()
        return WorkerInfo(socket.gethostname(), os.getpid(), device, str(self._server.folder))

    def run(self, trial: Trial) -> TrialResult:
        """Run one trial."""
        result = self._supervisor.run(trial)
        return dataclasses.replace(result, facts={**result.facts, "device_share": self._share})


def _send_device(connection: Connection) -> None:
    connection.send(str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else "cpu")


def orphaned_log(worker: WorkerInfo, trial: Trial) -> str:
    """What a trial had printed when its worker died, or, on another machine, where that output is."""
    file = pathlib.Path(worker.logs) / f"{trial.key}.log"
    if worker.host != socket.gethostname():
        return f"the output is on {worker.host}: {file}"
    text = output.read(file)
    file.unlink(missing_ok=True)
    return text
