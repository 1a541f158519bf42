"""The random augmentation that CoTTA, RoTTA, ROID and CMF share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import tta_bench.torchvision_repair  # noqa: F401


@torch.no_grad()
def augment(x: Tensor, generator: torch.Generator, kind: Literal["cotta", "roid"]) -> Tensor:
    """One random augmentation of a batch (B, 3, n, n) in [0, 1]."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    def uniform(low: float, high: float) -> float:
        return torch.empty(1, dtype=torch.float32).uniform_(low, high, generator=generator).item()

    colour = [
        (F.adjust_brightness, 0.6, 1.4), (F.adjust_contrast, 0.7, 1.3), (F.adjust_saturation, 0.5, 1.5),
        (F.adjust_hue, -0.06, 0.06), (lambda x, gamma: F.adjust_gamma(x.clamp(1e-8, 1), gamma), 0.7, 1.3),
    ]  # fmt: skip
    n, x = x.shape[-1], x.clamp(0, 1)
    for index in torch.randperm(5, generator=generator).tolist():
        adjust, low, high = colour[index]
        x = adjust(x, uniform(low, high))
    x = F.pad(x, [n // 2] * 4, padding_mode="edge" if kind == "cotta" else "reflect")
    padded = x.shape[-1]
    angle = uniform(-15, 15)
    shift = [round(uniform(-padded / 16, padded / 16)) for _ in range(2)]
    scale = uniform(0.9, 1.1)
    x = F.affine(x, angle, shift, scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR, fill=[0.0, 0.0, 0.0])
    if kind == "cotta":
        sigma = uniform(0.001, 0.5)
        x = F.gaussian_blur(x, [5, 5], [sigma, sigma])
    x = F.center_crop(x, [n, n])
    if torch.rand(1, generator=generator).item() < 0.5:
        x = x.flip(-1)
    if kind == "cotta":
        x = x + (torch.randn(x.shape, generator=generator) * 0.005).to(x)
    return x.clamp(0, 1)
