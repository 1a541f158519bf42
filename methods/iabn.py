"""Instance-aware batch normalisation (IABN; NOTE, Gong et al. 2022, arXiv 2208.05117).

Each image is normalised with the reference statistics μ_B, σ²_B (in evaluation mode the running ones, in training mode the
batch's), moved towards the image's own μ, σ² by what these differ beyond k standard errors. With n = h·w positions, the
soft shrinkage S(a; λ) = max(a − λ, 0) − max(−a − λ, 0), and the layer's eps:

    μ'  = μ_B + S(μ − μ_B; k·√((σ²_B + eps)/n))
    σ'² = max(σ²_B + S(σ² − σ²_B; k·(σ²_B + eps)·√(2/(n − 1))), 0)

Every variance is the unbiased one, that of the running statistics included. Gradients flow through all of it. Maps of at
most ``skip_threshold`` positions are normalised with the reference statistics as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class InstanceAwareBN(nn.BatchNorm2d):
    """Replaces a BatchNorm2d; shares its weight, bias and statistics.

    Args:
        layer: a layer with running statistics, weight and bias.
        k: standard errors by which an image's statistics must differ before they count.
        skip_threshold: positions up to which a map is too small to have statistics of its own; at least 1.
        momentum: ρ, the weight of the batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: nn.BatchNorm2d, k: float, skip_threshold: int, momentum: float):
        super().__init__(layer.num_features, layer.eps, momentum, affine=False)
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.k, self.skip_threshold, self.rho = k, skip_threshold, momentum
        self.train(layer.training)

    def forward(self, given: Tensor) -> Tensor:
        x = given.to(self.running_mean.dtype)  # under autocast its statistics would be rounded
        mean, variance = self._reference(x)
        if x.shape[2] * x.shape[3] > self.skip_threshold:
            mean, variance = self._corrected(x, mean, variance)
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean[..., None, None]) * scale[..., None, None] + self.bias[:, None, None]).to(given.dtype)

    def _reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ_B and σ²_B, both (C,); in training mode the batch's, which also move the running statistics."""
        if not self.training:
            return self.running_mean, self.running_var
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=1)
        self.running_mean.lerp_(mean.detach(), self.rho)
        self.running_var.lerp_(variance.detach(), self.rho)
        return mean, variance

    def _corrected(self, x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """μ' and σ'², both (B, C)."""
        n = x.shape[2] * x.shape[3]
        own_variance, own_mean = torch.var_mean(x, (2, 3), correction=1)
        errors = ((variance + self.eps) / n).sqrt(), (variance + self.eps) * math.sqrt(2 / (n - 1))
        corrected = variance + _soft_shrink(own_variance - variance, self.k * errors[1])
        return mean + _soft_shrink(own_mean - mean, self.k * errors[0]), corrected.relu()


def _soft_shrink(a: Tensor, threshold: Tensor) -> Tensor:
    """torch's own takes no tensor of thresholds."""
    return (a - threshold).relu() - (-a - threshold).relu()


def use_instance_aware_statistics(
    net: nn.Module, k: float, skip_threshold: int, momentum: float
) -> list[InstanceAwareBN]:
    """Replace every BatchNorm2d in ``net``, whose fused activations are kept; returns the new layers, in module order."""
    for parent in [*net.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                fused = [*layer.children()]  # timm's BatchNormAct2d holds dropout and activation, in this order
                aware = InstanceAwareBN(layer, k, skip_threshold, momentum)
                setattr(parent, name, nn.Sequential(aware, *fused) if fused else aware)
    return [layer for layer in net.modules() if isinstance(layer, InstanceAwareBN)]
