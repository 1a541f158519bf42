"""Run trials on this machine without Ray, one after another: in a worker process, as on Ray, so that a driver which has
imported methods for their hyperparameters is not where they are graded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from multiprocessing.connection import Connection

from tta_bench.errors import Problem, Stopped
from tta_bench.run.runner import TrialResult
from tta_bench.run.server import Process, own_server
from tta_bench.schedule.observer import Observer, title
from tta_bench.schedule.options import Options
from tta_bench.schedule.worker import Worker
from tta_bench.suite.plan import Materials, Trial

TICK_S = 0.25  # how often the observer is told that a trial still runs


def run(materials: Materials, trials: Sequence[Trial], options: Options, observer: Observer) -> None:
    """Run ``trials`` in order; see :func:`tta_bench.schedule.scheduler.run`.

    Raises:
        Stopped: the worker process has ended.
    """
    server = own_server()
    worker = server.fork(_work, materials, options, server.address)
    try:
        for trial in trials:
            result = _result(worker, trial, observer)
            observer.finished([(trial, dataclasses.replace(result, facts={**result.facts, "attempts": 1}))])
    finally:
        worker.end()


def _result(worker: Process, trial: Trial, observer: Observer) -> TrialResult:
    state = [f"process {worker.pid}: {title(trial)}"]
    observer.tick(1, state, None)
    try:
        worker.connection.send(trial)
        while not worker.connection.poll(TICK_S):
            observer.tick(1, state, None)
        result: TrialResult = worker.connection.recv()
    except (EOFError, ConnectionError) as error:
        what = f"the process that runs trials ({worker.pid}) has ended, at {title(trial)}"
        raise Stopped(Problem(what, hint="run again to go on; --executor ray replaces processes that end")) from error
    return result


def _work(connection: Connection, materials: Materials, options: Options, address: str) -> None:
    """The worker process."""
    worker = Worker(materials, options, 1.0, None, address)
    while True:
        connection.send(worker.run(connection.recv()))
