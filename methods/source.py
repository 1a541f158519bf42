"""Source: the pretrained network as it is, the row that every method is compared with."""

from __future__ import annotations

from torch import Tensor

from tta_bench.adapter import Adapter


class Source(Adapter):
    """No adaptation: evaluation mode, running statistics of the source data, no gradient, no state."""

    def step(self, x: Tensor) -> Tensor:
        return self.predict(x)
