"""Robust batch normalisation (RoTTA, Yuan et al. 2023, arXiv 2303.13899, section 3.2).

In training mode a layer first moves its running statistics towards the batch's, μ ← (1 − α)·μ + α·mean and V ← (1 − α)·V +
α·var (biased), and then normalises with them; the gradient flows through the batch's part. In evaluation mode it is an
ordinary BatchNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RobustBN(nn.BatchNorm2d):
    """Replaces a BatchNorm1d or BatchNorm2d; shares its weight, bias and statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, alpha: float):
        super().__init__(layer.num_features, layer.eps, affine=False)
        self.weight, self.bias, self.alpha = layer.weight, layer.bias, alpha
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        mean = (1 - self.alpha) * self.running_mean + self.alpha * mean
        variance = (1 - self.alpha) * self.running_var + self.alpha * variance
        self.running_mean.copy_(mean.detach())
        self.running_var.copy_(variance.detach())
        scale = self.weight / (variance + self.eps).sqrt()
        channels = (1, -1, *(1,) * (x.dim() - 2))
        return (x - mean.view(channels)) * scale.view(channels) + self.bias.view(channels)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape (B, C, …)."""


def use_robust_statistics(net: nn.Module, alpha: float) -> None:
    """Replace every BatchNorm1d and BatchNorm2d in ``net``; activations fused into them are kept."""
    for parent in [*net.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                fused = [*layer.children()]  # timm's BatchNormAct2d holds dropout and activation, in this order
                robust = RobustBN(layer, alpha)
                setattr(parent, name, nn.Sequential(robust, *fused) if fused else robust)
