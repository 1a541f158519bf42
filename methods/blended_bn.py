"""BatchNorm with a blend of the source's and the batch's statistics (Schneider et al. 2020, arXiv 2006.16971, equation 1).

In each forward pass in evaluation mode a layer normalises with μ = (1 − α)·μ_s + α·μ_b and σ² = (1 − α)·σ²_s + α·σ²_b.
μ_s, σ²_s are its running statistics; μ_b and the unbiased σ²_b are those of its input in this same pass, so that earlier
layers are already blended. No gradient flows through μ and σ², but through the normalisation itself.

The layers stay as they are, so that a subclass keeps the activation fused into it (timm's BatchNormAct2d;
mariodoebler/test-time-adaptation replaces the layer and loses it). While a layer runs, it holds the blend as its running
statistics; then it holds its own tensors again, which are never written to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tta_bench.models import MissingPart


def blend_statistics(net: nn.Module, alpha: Callable[[int], float]) -> int:
    """Let every BatchNorm2d of a network blend its statistics; returns the number of layers.

    Args:
        net: the network, in evaluation mode.
        alpha: the weight of the batch, in [0, 1], for a batch of so many images.

    Raises:
        MissingPart: a layer has no running statistics.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        blend = _Blend(layer, alpha)
        layer.register_forward_pre_hook(blend.before)
        layer.register_forward_hook(blend.after, always_call=True)
    return len(layers)


class _Blend:
    """Exchanges a layer's running statistics for the blend, before the layer runs, and puts them back after it."""

    def __init__(self, layer: nn.BatchNorm2d, alpha: Callable[[int], float]):
        if layer.running_mean is None or layer.running_var is None:
            raise MissingPart("a BatchNorm2d layer has no running statistics to blend")
        self.mean, self.variance = layer.running_mean, layer.running_var
        self.alpha = alpha

    def before(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        """Raises: ValueError: there is one value a channel, which has no unbiased variance."""
        x = inputs[0].detach()
        if x[:, 0].numel() == 1:
            raise ValueError(f"one value a channel has no unbiased variance: input of shape {tuple(x.shape)}")
        variance, mean = torch.var_mean(x.to(self.mean.dtype), (0, 2, 3), correction=1)
        alpha = self.alpha(len(x))
        layer.running_mean, layer.running_var = self.mean.lerp(mean, alpha), self.variance.lerp(variance, alpha)

    def after(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layer.running_mean, layer.running_var = self.mean, self.variance
