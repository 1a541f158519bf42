"""One device slot: a supervisor that runs one trial after another, with what it needs around it. Knows nothing of Ray."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from tta_bench.errors import Problem, UsageError
from tta_bench.run import faults, output
from tta_bench.run.runner import Supervisor, TrialResult
from tta_bench.run.server import ForkServer, die_with_parent
from tta_bench.schedule.options import Options
from tta_bench.schedule.preflight import other_code
from tta_bench.suite.plan import Materials, Trial


@dataclass(frozen=True)
class Place:
    """Where a worker is.

    Attributes:
        host: machine.
        pid: process.
        device: the device's identity on that machine: a GPU's UUID, or "cpu".
        logs: folder, on that machine, of the output of trials under way.
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
        share: the part of the device that this worker has; below 1 others use it at the same time.
        expected: the driver's identity.
        server: address of a fork server of this machine; where there is none the worker starts its own.

    Raises:
        UsageError: this machine would run other code than the driver's.
    """

    def __init__(
        self, materials: Materials, options: Options, share: float, expected: Mapping[str, str] | None,
        server: str | None = None,
    ):  # fmt: skip
        die_with_parent()
        torch.set_num_threads(1)  # grading is little work: waking other threads for it took 40 ms now and then
        self._server = ForkServer.at(server)
        if expected is not None and (wrong := other_code(expected)):
            raise UsageError(Problem(wrong))
        materials.enter()
        cache = options.image_cache()
        self._supervisor = Supervisor(materials, cache, options.threads, self._server, options.timeout)
        self._share = share

    def ready(self) -> Place:
        """Where it is, once it can run trials."""
        asked = self._server.fork(_tell_device)  # in a child: this process never touches a GPU
        device = asked.connection.recv()
        asked.end()
        return Place(socket.gethostname(), os.getpid(), device, str(self._server.folder))

    def run_all(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Run trials one after another; those after one that must end this process are left out, not begun."""
        done = list[TrialResult]()
        for trial in trials:
            done.append(self.run(trial))
            if faults.ends_worker(done[-1].facts):
                break
        return done

    def run(self, trial: Trial) -> TrialResult:
        """Run one trial."""
        result = self._supervisor.run(trial)
        return dataclasses.replace(result, facts={**result.facts, "device_share": self._share})


def _tell_device(connection: Connection) -> None:
    connection.send(str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else "cpu")


def left_behind(place: Place, trial: Trial, *, elsewhere: bool = True) -> str:
    """What a trial had printed when its worker died; from another machine, with ``elsewhere``, where it stayed."""
    file = pathlib.Path(place.logs) / f"{trial.key}.log"
    if place.host != socket.gethostname():
        return f"its output stayed on {place.host}: {file}" if elsewhere else ""
    text = output.read(file)
    file.unlink(missing_ok=True)
    return text
