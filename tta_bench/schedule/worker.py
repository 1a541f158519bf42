"""One device slot: a process that runs one trial after another and keeps what they share. Knows nothing of Ray."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import os
import pathlib
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tta_bench.errors import Problem, UsageError
from tta_bench.run import faults
from tta_bench.run.runner import TrialResult, Workbench, run_trial
from tta_bench.schedule.options import Options
from tta_bench.schedule.preflight import other_code
from tta_bench.store import runlog
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


def _die_with_parent() -> None:
    """Have the kernel end this process with Ray's node manager, which started it; a method that hangs would outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


class Worker:
    """Runs trials for a driver.

    Args:
        materials: what all trials share.
        options: of the run.
        share: the part of the device that this worker has; below 1 others use it at the same time.
        expected: the driver's identity.

    Raises:
        UsageError: this machine would run other code than the driver's.
    """

    def __init__(self, materials: Materials, options: Options, share: float, expected: Mapping[str, str]):
        if wrong := other_code(expected):
            raise UsageError(Problem(wrong))
        _die_with_parent()
        materials.enter()
        importlib.import_module("timm")  # takes seconds, which are no trial's
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bench = Workbench(materials, options.image_cache(), device, options.threads)
        self._share = share
        self._logs = pathlib.Path(tempfile.mkdtemp(prefix="tta-bench-logs-"))

    def ready(self) -> Place:
        """Where it is, once it can run trials."""
        device = self._bench.device
        name = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
        return Place(socket.gethostname(), os.getpid(), name, str(self._logs))

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
        file = self._logs / f"{trial.key}.log"
        with runlog.captured(file):
            result = run_trial(trial, self._bench)
        text = runlog.read(file)
        file.unlink()
        return dataclasses.replace(result, log=text, facts={**result.facts, "device_share": self._share})


def left_behind(place: Place, trial: Trial, *, elsewhere: bool = True) -> str:
    """What a trial had printed when its worker died; from another machine, with ``elsewhere``, where it stayed."""
    file = pathlib.Path(place.logs) / f"{trial.key}.log"
    if place.host != socket.gethostname():
        return f"its output stayed on {place.host}: {file}" if elsewhere else ""
    text = runlog.read(file)
    file.unlink(missing_ok=True)
    return text
