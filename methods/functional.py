"""Small functions that several methods share: entropies, and which parameters are adapted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tta_bench.adapter import Context
from tta_bench.models import SourceModel


def default_margin(model: SourceModel, margin: float | None) -> float:
    """E0 in nats: ``margin``, or 0.4·ln(classes) where it is None (EATA, section 4.1)."""
    return 0.4 * math.log(model.num_classes) if margin is None else margin


def softmax_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) in nats: (B, C) -> (B,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def mean_of(values: Tensor, selected: Tensor) -> Tensor:
    """Mean over the batch of the selected values, without waiting for the device to count them.

    Args:
        values: (B, …); those that are not selected have gradients of zero.
        selected: a mask (B, …) that broadcasts over them; of nothing, the mean is NaN and all gradients are zero.
    """
    return values.masked_fill(~selected, 0).sum(0) / selected.sum(0)


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


@torch.no_grad()
def no_statistics(model: SourceModel, context: Context) -> str | None:
    """Why BatchNorm cannot normalise with batch statistics here, or None: one value a channel has no variance."""
    layers = [m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)]
    if context.batch_size > 1 or not layers:
        return None
    sizes: list[int] = []
    hooks = [m.register_forward_pre_hook(lambda _m, inputs: sizes.append(inputs[0][0, 0].numel())) for m in layers]
    size = context.image_size
    model(torch.zeros(1, 3, size, size, device=model.mean.device, dtype=model.mean.dtype))
    for hook in hooks:
        hook.remove()
    return "batch statistics at batch 1 need normalised maps larger than 1x1" if min(sizes) == 1 else None


def small_batch_lr_vit(batch_size: int) -> float:
    """1e-3·batch/64"""
    return 1e-3 * batch_size / 64


def small_batch_lr_resnet(batch_size: int) -> float:
    """2.5e-4 from batch 32 on, 2.5e-4·batch/32 below"""
    return 2.5e-4 * min(1.0, batch_size / 32)
