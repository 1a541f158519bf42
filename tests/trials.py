"""Methods whose trials the ``run`` fixture (conftest.py) runs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tta_bench.adapter import Adapter
from tta_bench.run.runner import TrialResult

Runner = Callable[..., TrialResult]


class Plain(Adapter):
    """The source model."""

    def step(self, x: Tensor) -> Tensor:
        return self.predict(x)


class Counting(Adapter):
    """The source model; says how many batches it has adapted on."""

    def setup(self) -> None:
        self.count = 0

    def step(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.predict(x)

    def stats(self) -> dict[str, float]:
        return {"count": float(self.count)}
