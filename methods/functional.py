"""Small functions that several methods share: entropies, and which parameters are adapted."""

from __future__ import annotations

from torch import Tensor, nn

from tta_bench.models import SourceModel


def softmax_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) in nats: (B, C) -> (B,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def norm_layers(model: SourceModel) -> list[nn.Module]:
    """All normalisation layers (batch, group, layer; by type, so subclasses count), in ``named_modules`` order."""
    return [module for module in model.net.modules() if SourceModel.norm_kind(module)]


def use_batch_statistics(model: SourceModel) -> None:
    """Let every BatchNorm2d normalise with the batch's own mean and biased variance, in any mode, tracking nothing."""
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = None
            module.running_var = None


def adapt_norm_affine(model: SourceModel) -> list[nn.Parameter]:
    """Freeze the model but for the weight and bias of its normalisation layers; returns those, in module order."""
    model.requires_grad_(False)
    adapted = [p for layer in norm_layers(model) for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter)]
    for parameter in adapted:
        parameter.requires_grad_(True)
    return adapted
