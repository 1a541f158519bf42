"""Networks whose head averages maps over their positions and classifies them with one linear layer."""

from __future__ import annotations

import abc

from torch import Tensor, nn


class PooledNetwork(nn.Module, abc.ABC):
    """Subclasses have the maps and the classifier, under the names of the published checkpoint."""

    @abc.abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, D, h, w) of normalised images (B, 3, H, W)."""

    @abc.abstractmethod
    def get_classifier(self) -> nn.Module:
        """The linear layer."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (B, C) from the maps."""
        logits: Tensor = self.get_classifier()(features.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.forward_head(self.forward_features(x))
