"""Accuracy of a network under pairs of corruptions, measured pair by pair as a stream asks for them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch

from tta_bench.data import Dataset
from tta_bench.errors import Problem, Stopped, UsageError
from tta_bench.files import write_atomically
from tta_bench.models import Network, SourceModel
from tta_bench.run.global_state import set_global_state
from tta_bench.run.loading import to_tensor
from tta_bench.run.server import ForkServer, Process
from tta_bench.streams import CLEAN, Shift

_BATCH = 100
GRIDS = (21, 6)  # severities i/4, or integers alone
Measure = Callable[[Sequence[Sequence[Shift]]], list[list[float]]]  # from rows of shifts to their accuracies, per cent


class MeasuredAccuracy(Mapping[str, np.ndarray]):
    """Accuracy matrices (n, n) in per cent by pair ``a+b``, each measured when it is first looked up.

    Args:
        measure: measures accuracies.
        dataset: of the images, which says at which severities it can show pairs.
        file: ``.npz`` that holds the matrices, written after each.
        say: reports progress.
        known: matrices that were measured before.
    """

    def __init__(
        self, measure: Measure, dataset: Dataset, file: pathlib.Path, say: Callable[[str], None],
        known: Mapping[str, np.ndarray],
    ):  # fmt: skip
        self._measure, self._dataset, self._file, self._say = measure, dataset, file, say
        self.matrices = dict(known)

    def __getitem__(self, pair: str) -> np.ndarray:
        if pair not in self.matrices:
            self._say(f"accuracy under {pair}")
            self.matrices[pair] = self._measured(pair)
            self.save()
        return self.matrices[pair]

    def __contains__(self, pair: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)

    def save(self) -> None:
        """Write all matrices to the file."""
        write_atomically(self._file, lambda stream: np.savez(stream, **self.matrices))  # type: ignore[arg-type]

    def _measured(self, pair: str) -> np.ndarray:
        first, _, second = pair.partition("+")
        severities = np.linspace(0, 5, self._size(first, second)).tolist()
        return np.array(self._measure([[_under((first, i), (second, j)) for j in severities] for i in severities]))

    def _size(self, first: str, second: str) -> int:
        """Number of severities that the data can show, 0 included.

        Raises:
            UsageError: they cannot show two corruptions in turn.
        """
        for size in GRIDS:
            finest = 5 / (size - 1)
            if (problem := self._dataset.missing(_under((first, finest), (second, finest)))) is None:
                return size
        assert problem is not None
        raise UsageError(problem)


@torch.no_grad()
def accuracy(model: SourceModel, dataset: Dataset, rows: np.ndarray, shift: Shift) -> float:
    """Accuracy in per cent on images ``rows`` (N,) under a shift."""
    labels, correct = dataset.labels_of(CLEAN)[rows], 0
    for start in range(0, len(rows), _BATCH):
        pixels = dataset.read(shift, rows[start : start + _BATCH])
        predicted = model(to_tensor(pixels, model.mean.device, model.mean.dtype)).argmax(1).cpu().numpy()
        correct += int((predicted == labels[start : start + _BATCH]).sum())
    return 100 * correct / len(rows)


@contextlib.contextmanager
def measuring(
    server: ForkServer, network: Network, dataset: Dataset, rows: np.ndarray, number: int
) -> Iterator[Measure]:
    """Measures in processes of their own, which make images and grade with labels, as trials' supervisors do.

    Args:
        server: forks them when the first matrix is measured.
        network: the calibration network.
        dataset: of the images.
        rows: (N,) indices of the clean images.
        number: of processes, of one CPU thread each.
    """
    with contextlib.ExitStack() as started:

        @functools.cache
        def processes() -> list[Process]:
            forked = []
            for _ in range(number):
                forked.append(server.fork(_serve, network, dataset, rows))
                started.callback(forked[-1].end)
            return forked

        def measure(matrix: Sequence[Sequence[Shift]]) -> list[list[float]]:
            pairs = [*zip(matrix, itertools.cycle(processes()), strict=False)]
            for shifts, process in pairs:
                process.connection.send(shifts)
            return [_answer(process) for _, process in pairs]

        yield measure


def _answer(process: Process) -> list[float]:
    try:
        answer = process.connection.recv()
    except EOFError as error:
        hint = "its error stands above; run again, which goes on after the last pair that was measured"
        raise Stopped(Problem("a process that measures accuracies has ended", hint=hint)) from error
    if isinstance(answer, UsageError):
        raise answer
    accuracies: list[float] = answer
    return accuracies


def _serve(connection: Connection, network: Network, dataset: Dataset, rows: np.ndarray) -> None:
    """Measure rows of shifts until the connection is closed, in the numeric mode of trials.

    Raises:
        EOFError: it is.
    """
    set_global_state(threads=1)
    model = network.load().to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    while True:
        shifts = connection.recv()
        try:
            connection.send([accuracy(model, dataset, rows, shift) for shift in shifts])
        except UsageError as error:
            connection.send(error)


def _under(*parts: tuple[str, float]) -> Shift:
    """Corruptions in turn at their severities; those of severity 0 are left out."""
    shown = [Shift(name, severity) for name, severity in parts if severity]
    return Shift.compound(*shown) if shown else CLEAN
