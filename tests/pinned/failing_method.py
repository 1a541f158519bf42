"""A method that fails, so that a failed trial's row is pinned, too."""

from __future__ import annotations

from torch import Tensor

from tta_bench.adapter import Adapter


class Failing(Adapter):
    """Predicts the first batch of a trial and raises at the second."""

    name = "failing"

    def setup(self) -> None:
        self.batches = 0

    def step(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == 2:
            raise ValueError("the second batch is refused")
        return self.predict(x)
