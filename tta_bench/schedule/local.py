"""Run trials one after another on this machine without Ray.

Trials run in a worker process, as on Ray: the driver imports methods for their hyperparameters and must not grade them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

from tta_bench.errors import Problem, Stopped
from tta_bench.run.runner import TrialResult
from tta_bench.run.server import Process, own_server
from tta_bench.schedule.observer import Observer, title
from tta_bench.schedule.options import RunOptions
from tta_bench.schedule.worker import Worker
from tta_bench.suite.plan import Materials, Trial

TICK_S = 0.25  # between reports on a running trial


def run(materials: Materials, trials: Sequence[Trial], options: RunOptions, observer: Observer) -> None:
    """Run ``trials`` in order; see :func:`tta_bench.schedule.scheduler.run`.

    Raises:
        Stopped: the worker process ended unexpectedly.
    """
    with _worker(materials, options) as worker:
        for trial in trials:
            tick = functools.partial(observer.tick, 1, [f"process {worker.pid}: {title(trial)}"], None)
            result = _result(worker, trial, tick)
            observer.finished(trial, dataclasses.replace(result, facts={**result.facts, "attempts": 1}))


def run_alone(materials: Materials, trial: Trial, options: RunOptions) -> TrialResult:
    """Run one trial in a worker process of its own and return its result.

    Raises:
        Stopped: the worker process ended unexpectedly.
    """
    with _worker(materials, options) as worker:
        return _result(worker, trial, lambda: None)


@contextlib.contextmanager
def _worker(materials: Materials, options: RunOptions) -> Iterator[Process]:
    server = own_server()
    worker = server.fork(_serve, materials, options, server.address)
    try:
        yield worker
    finally:
        worker.end()


def _result(worker: Process, trial: Trial, tick: Callable[[], None]) -> TrialResult:
    tick()
    try:
        worker.connection.send(trial)
        while not worker.connection.poll(TICK_S):
            tick()
        result: TrialResult = worker.connection.recv()
    except (EOFError, ConnectionError) as error:
        message = f"worker process {worker.pid} ended unexpectedly while running {title(trial)}"
        raise Stopped(Problem(message, hint="--executor ray replaces workers that end")) from error
    return result


def _serve(connection: Connection, materials: Materials, options: RunOptions, address: str) -> None:
    """The worker process: run each trial that is received."""
    worker = Worker(materials, options, 1.0, None, address)
    while True:
        connection.send(worker.run(connection.recv()))
