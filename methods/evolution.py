"""CMA-ES, by the package ``cma`` of its author, one generation at a time and with draws of its own.

The package draws from NumPy's global generator, which it seeds: the candidates, and from 300 dimensions on, where
two-point adaptation sets the step size, also two numbers in every ``tell`` after the third (cma 4.5.0). Its option
``randn`` redirects only the former; the candidates would then differ from the fifth generation on from those of code that
seeds the package. So here the global generator is in the strategy's state during a call, and gets its own state back.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np


def import_cma() -> ModuleType:
    """The package ``cma``, an optional extra; importing it leaves the warnings' filters as they were.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with warnings.catch_warnings():
        import cma
    return cma


class EvolutionStrategy:
    """CMA-ES from the origin with step size 1, minimising.

    Args:
        size: N, dimensions.
        popsize: candidates of a generation.
        seed: of its draws; 0 to 2³² − 1.
    """

    def __init__(self, size: int, popsize: int, seed: int):
        self._random = np.random.RandomState(seed)
        options = {"seed": math.nan, "popsize": popsize, "maxiter": -1, "verbose": -1}  # nan: it seeds nothing itself
        self._strategy = import_cma().CMAEvolutionStrategy(np.zeros(size), 1, options)
        self._generation: np.ndarray | None = None

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._strategy.sigma)

    def ask(self) -> np.ndarray:
        """The candidates of the present generation, (popsize, N) float64; the same until :meth:`tell`.

        The package itself may not be asked twice for one generation: two-point adaptation would miss its points.
        """
        if self._generation is None:
            with self._own_draws():
                self._generation = np.stack(self._strategy.ask())
        return self._generation

    def tell(self, vectors: Sequence[np.ndarray], fitness: Sequence[float]) -> None:
        """End the generation: the candidates first, in order, then any other vectors (N,), and the fitness of each."""
        with self._own_draws():
            self._strategy.tell(list(vectors), list(fitness))
        self._generation = None

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Within it, NumPy's global generator goes on where this strategy's draws have ended."""
        outside = np.random.get_state()
        np.random.set_state(self._random.get_state())
        try:
            yield
        finally:
            self._random.set_state(np.random.get_state())
            np.random.set_state(outside)
