"""CCC: two corruptions at a time, whose severities change continually (RDumb, Press et al. 2023, arXiv 2306.05401).

The walk over pairs and severities is the published one; which images it shows is the harness's own draw, as the
official images are not reproducible. The grid of the paper: baseline 0 (hard), 20 (medium), 40 (easy), speed 1000,
2000, 5000, seed 43, 44, 45. RDumb resets with ``reset: {every: 1000}``. One segment, ``stream``; batches
are cut across steps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tta_bench.protocols.base import Part, Protocol, Source, loaded, refusal
from tta_bench.protocols.config import LONGEST, MEASURE, ONE_OR_MORE, Conflict, ProtocolConfig
from tta_bench.streams import CLEAN, Shift

_NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
           "snow", "frost", "fog", "contrast", "elastic", "pixelate", "jpeg")  # fmt: skip
_HARD = ("gaussian_noise", "shot_noise", "impulse_noise", "contrast")
_BEYOND = 9999999999999.0  # the published cost of leaving the last column
_OF_MEASURING = ("calibration", "calibration_images")
_Pair = tuple[str, str]


def _matrices(value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        raise PydanticCustomError("accuracy", "give an .npz, a mapping of a+b to matrices, or measure")
    return value


class Ccc(Protocol):
    """Pairs of corruptions whose severities change continually; never reset (RDumb)."""

    name = "ccc"
    by_severity: ClassVar[bool] = False

    class Config(ProtocolConfig):
        """The walk.

        Attributes:
            baseline: accuracy in per cent that the calibration network keeps.
            speed: images in a step, after which a severity changes by a quarter.
            images: in the stream.
            accuracy: an ``.npz`` of ``a+b`` to a square matrix (n, n): accuracy in per cent of the calibration network at
                severities 5·i/(n−1) of corruption a and then 5·j/(n−1) of b. The paper's n is 21; 6 has integer
                severities alone. "measure": the run measures the pairs that its walks need before it plans them.
            calibration: source model of the suite that accuracy "measure" is measured with; null: the first.
            calibration_images: clean evaluation images that it is measured on.

        Example:
            {kind: ccc, baseline: 20, speed: 1000, accuracy: measure}
            {kind: ccc, baseline: 20, speed: 1000, accuracy: ccc_accuracy.npz}
        """

        baseline: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], *ONE_OR_MORE]
        speed: Annotated[tuple[Annotated[int, Field(ge=1)], ...], *ONE_OR_MORE]
        images: Annotated[int, Field(ge=1, le=LONGEST)] = 7500000
        accuracy: Annotated[Any, BeforeValidator(_matrices)]
        calibration: str | None = None
        calibration_images: Annotated[int, Field(ge=1)] = 500

        @property
        def measures_accuracy(self) -> bool:
            return bool(self.accuracy == MEASURE)

        def with_accuracy(self, matrices: Mapping[str, Any]) -> ProtocolConfig:
            of_measuring = {name: type(self).model_fields[name].default for name in _OF_MEASURING}
            return self.model_copy(update={**of_measuring, "accuracy": matrices})

        def conflicts(self) -> Iterator[Conflict]:
            yield from super().conflicts()
            for key in ("probe", "shift_order"):
                if getattr(self, key):
                    yield key, "ccc has only the clean images", "leave it out"
            for key in _OF_MEASURING:
                if key in self.model_fields_set and self.accuracy != MEASURE:
                    yield key, "only measured accuracies have a calibration", "leave it out, or write accuracy: measure"

    def parts(self, source: Source) -> Iterator[Part]:
        [speed], images = self.config.speed, self.config.images
        if [shift.id for shift in source.shifts] != [CLEAN.id]:
            raise refusal("kind", "ccc makes its shifts from clean images alone", "write corruptions: [clean]")
        clean = len(source.labels[0])
        if speed > clean:
            raise refusal("speed", f"a step of {speed} images cannot be drawn from {clean}", "lower the speed")
        steps = list(itertools.islice(self._walk(source.seed), -(-images // speed)))
        numbers = {shift: number for number, shift in enumerate(dict.fromkeys(shift for _, shift in steps))}
        if (pairs := steps[-1][0]) > np.iinfo(np.int16).max:
            raise refusal("speed", f"the walk would visit {pairs + 1:,} pairs of corruptions", "raise the speed")
        image = np.empty(len(steps) * speed, dtype=np.int32)
        for step in range(len(steps)):
            image[step * speed : (step + 1) * speed] = source.rng("ccc", step).permutation(clean)[:speed]
        shift = np.repeat(np.array([numbers[shift] for _, shift in steps], dtype=np.int16), speed)
        visits = np.repeat(np.array([pair for pair, _ in steps], dtype=np.int16), speed)
        yield Part("stream", 0, shift, image, visits, compounds=tuple(numbers))[:images]

    def _walk(self, seed: int) -> Iterator[tuple[int, Shift]]:
        """(number of the pair, shift) of each step, without end."""
        [baseline] = self.config.baseline
        noises, path = _noises(baseline), self._paths(baseline)
        draws = random.Random(seed)
        first = draws.choice(noises)
        for number in itertools.count():
            while (second := draws.choice(noises)) == first:
                pass
            for severities in path((first, second)):
                yield number, _compound((first, second), severities)
            first = second

    def _paths(self, baseline: float) -> Callable[[_Pair], list[tuple[float, float]]]:
        """The path of severities of each pair, computed once."""
        accuracy, known = self.config.accuracy, dict[_Pair, list[tuple[float, float]]]()
        if accuracy == MEASURE:
            raise refusal("accuracy", "only a run can measure it", "give an .npz with a matrix for each pair a+b")
        matrices = loaded("accuracy", accuracy) if isinstance(accuracy, str) else accuracy

        def path(pair: _Pair) -> list[tuple[float, float]]:
            if pair not in known:
                matrix = _matrix(matrices, "+".join(pair))
                last = len(matrix) - 1
                known[pair] = [(5 * i / last, 5 * j / last) for i, j in _path(matrix, baseline)]
            return known[pair]

        return path


def _noises(baseline: float) -> tuple[str, ...]:
    """Corruptions that can bring accuracy down to a baseline, and are not too strong for it."""
    if baseline < 20:
        return _HARD
    return _NOISES if baseline >= 40 else _NOISES[:-1]


def _matrix(matrices: Any, name: str) -> np.ndarray:
    """The accuracies of a pair.

    Raises:
        UsageError: there are none, or they are no square matrix.
    """
    if not isinstance(matrices, Mapping) or name not in matrices:
        raise refusal("accuracy", f"there is no matrix {name}", "give an .npz with a matrix for each pair a+b")
    matrix = np.asarray(matrices[name], dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or len(matrix) < 2:
        raise refusal("accuracy", f"{name} must be a square matrix, and has shape {matrix.shape}")
    return matrix


def _path(matrix: np.ndarray, baseline: float) -> list[tuple[int, int]]:
    """Cells from the first column up to the first row whose mean accuracy is nearest to the baseline, greedily."""
    n = len(matrix)
    cost, length = np.full((n, n + 1), _BEYOND), np.ones((n, n + 1))
    cost[0, :n] = matrix[0]
    up = np.zeros((n, n), dtype=bool)
    for i in range(1, n):
        for j in range(n - 1, -1, -1):
            above = (cost[i - 1, j] + matrix[i, j], length[i - 1, j] + 1)
            right = (cost[i, j + 1] + matrix[i, j], length[i, j + 1] + 1)
            up[i, j] = abs(above[0] / above[1] - baseline) < abs(right[0] / right[1] - baseline)
            cost[i, j], length[i, j] = above if up[i, j] else right
    i, j = 1 + int(np.argmin(np.abs(cost[1:, 0] / length[1:, 0] - baseline))), 0
    cells = [(i, j)]
    while i > 0:
        i, j = (i - 1, j) if up[i, j] else (i, j + 1)
        cells.append((i, j))
    return cells


def _compound(pair: _Pair, severities: tuple[float, float]) -> Shift:
    """Both corruptions in turn; those of severity 0 are left out."""
    shifts = [Shift(name, severity) for name, severity in zip(pair, severities, strict=True) if severity]
    return Shift.compound(*shifts) if shifts else CLEAN
