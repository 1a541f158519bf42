"""Processes that make the images of a stream ahead of their use.

Corruption functions draw from a process's global generator, so makers are processes, not threads. Each is forked by the
fork server, serves one trial and makes whole batches.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np

from tta_bench.data import Dataset
from tta_bench.errors import Problem, UsageError
from tta_bench.run.server import ForkServer, Process
from tta_bench.streams import Batch, Shift


@contextlib.contextmanager
def makers(server: ForkServer, dataset: Dataset, shifts: Sequence[Shift], number: int) -> Iterator[list[Process]]:
    """Makers of the images of ``dataset`` under a stream's shifts, which end with the ``with`` block.

    Args:
        server: forks them.
        dataset: the data set.
        shifts: of the stream.
        number: of makers.
    """
    with contextlib.ExitStack() as started:
        processes = list[Process]()
        for _ in range(number):
            processes.append(server.fork(_serve, dataset, shifts))
            started.callback(processes[-1].end)
        yield processes


def batches(processes: Sequence[Process], stream: Iterable[Batch]) -> Iterator[np.ndarray]:
    """The pixels of each batch, uint8 (B, side, side, 3), in order; each maker is always one batch ahead.

    Raises:
        UsageError: an image cannot be decoded.
        OSError: a maker has ended.
    """
    busy = deque[Process]()
    for batch, process in zip(stream, itertools.cycle(processes), strict=False):
        pixels = _answer(busy.popleft()) if len(busy) == len(processes) else None
        process.connection.send((batch.shift, batch.image))
        busy.append(process)
        if pixels is not None:
            yield pixels
    while busy:
        yield _answer(busy.popleft())


def _answer(process: Process) -> np.ndarray:
    try:
        answer = process.connection.recv()
    except EOFError as error:
        raise OSError("a process that makes images has ended, perhaps for lack of memory") from error
    if isinstance(answer, Exception):
        raise answer
    pixels: np.ndarray = answer
    return pixels


def _serve(connection: Connection, dataset: Dataset, shifts: Sequence[Shift]) -> None:
    """Make batches until the connection is closed.

    Raises:
        EOFError: it is.
    """
    while True:
        numbers, images = connection.recv()
        try:
            connection.send(np.concatenate([dataset.read(shifts[n], images[i : i + 1]) for i, n in enumerate(numbers)]))
        except (UsageError, OSError) as error:
            connection.send(error)
        except Exception as error:  # of a plugin's read(): the trial's reason, instead of a lost process
            connection.send(UsageError(Problem(f"the data set's read() raised {type(error).__name__}: {error}")))
