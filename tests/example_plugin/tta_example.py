"""Prior: divide the predicted probabilities by a running average of them, without touching the network."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from tta_bench import adapter


class Prior(adapter.Adapter):
    """Pulls the average prediction towards the uniform distribution; learns nothing in the network."""

    class Config(adapter.Config):
        """Attributes: momentum: share of the past in the running average."""

        momentum: float = Field(0.9, ge=0, lt=1)

    outputs = "probabilities"

    def setup(self) -> None:
        classes = self.context.num_classes
        self.average = torch.full((classes,), 1 / classes, device=self.context.device)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        probabilities = self.model(x).softmax(1)
        self.average.mul_(self.config.momentum).add_(probabilities.mean(0), alpha=1 - self.config.momentum)
        return self._scores(probabilities)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return self._scores(self.model(x).softmax(1))

    def _scores(self, probabilities: Tensor) -> Tensor:
        weighted = probabilities / self.average
        return weighted / weighted.sum(1, keepdim=True)

    def stats(self) -> dict[str, float]:
        return {"largest_share": float(self.average.max())}
