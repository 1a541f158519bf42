"""Accuracy of a network under pairs of corruptions, measured pair by pair as a stream asks for them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from tta_bench.data import Dataset
from tta_bench.errors import UsageError
from tta_bench.files import write_atomically
from tta_bench.models import SourceModel
from tta_bench.run.loading import to_tensor
from tta_bench.streams import CLEAN, Shift

_BATCH = 100
GRIDS = (21, 6)  # severities i/4, or integers alone


class MeasuredAccuracy(Mapping[str, np.ndarray]):
    """Accuracy matrices (n, n) in per cent by pair ``a+b``, each measured when it is first looked up.

    Args:
        model: the calibration network, in eval mode, on its device.
        dataset: of the images.
        rows: (N,) indices of the clean images.
        file: ``.npz`` that holds the matrices, written after each.
        say: reports progress.
        known: matrices that were measured before.
    """

    def __init__(
        self, model: SourceModel, dataset: Dataset, rows: np.ndarray, file: pathlib.Path, say: Callable[[str], None],
        known: Mapping[str, np.ndarray],
    ):  # fmt: skip
        self._model, self._dataset, self._rows, self._file, self._say = model, dataset, rows, file, say
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
        return np.array([[self._accuracy(_under((first, i), (second, j))) for j in severities] for i in severities])

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
    def _accuracy(self, shift: Shift) -> float:
        labels, correct = self._dataset.labels_of(CLEAN)[self._rows], 0
        for start in range(0, len(self._rows), _BATCH):
            pixels = self._dataset.read(shift, self._rows[start : start + _BATCH])
            x = to_tensor(pixels, self._model.mean.device, self._model.mean.dtype)
            predicted = self._model(x).argmax(1).cpu().numpy()
            correct += int((predicted == labels[start : start + _BATCH]).sum())
        return 100 * correct / len(self._rows)


def _under(*parts: tuple[str, float]) -> Shift:
    """Corruptions in turn at their severities; those of severity 0 are left out."""
    shown = [Shift(name, severity) for name, severity in parts if severity]
    return Shift.compound(*shown) if shown else CLEAN
