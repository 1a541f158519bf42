"""The random augmentation of CoTTA (arXiv 2203.13591) and RoTTA (arXiv 2303.13899), and the lighter one of ROID and CMF.

Steps: colour jitter in random order, padding, a random affine map, Gaussian blur (CoTTA and RoTTA only), centre crop,
horizontal flip, Gaussian noise (CoTTA and RoTTA only). All images of a batch share the draws, except the noise. The
translation is up to a sixteenth of the padded side. The input is not normalised: clipping to [0, 1] is the first step.

All draws are float32 or int64 on the CPU, so that equal seeds give equal draws on every device and in every precision.
Hue is always adjusted in float32, which torchvision does itself.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

import tta_bench.torchvision_repair  # noqa: F401  (before torchvision)
from tta_bench.methods.transfer import normal, to_device

# isort: split
from torchvision.transforms import functional as F

_PADDING = {"cotta": "edge", "roid": "reflect"}
_NOISE = 0.005  # standard deviation


@torch.no_grad()
def augment(x: Tensor, generator: torch.Generator, kind: Literal["cotta", "roid"]) -> Tensor:
    """One random augmentation of a batch.

    Args:
        x: images (B, 3, n, n) in [0, 1], on any device; left unchanged.
        generator: a CPU generator.
        kind: "cotta" (CoTTA, RoTTA) or "roid" (ROID, CMF).

    Returns:
        The augmented images (B, 3, n, n) in [0, 1].
    """
    side = x.shape[-1]
    x = _jitter_colours(x.clamp(0, 1), generator)
    x = F.pad(x, [side // 2], padding_mode=_PADDING[kind])
    x = _affine(x, generator)
    if kind == "cotta":
        sigma = _uniform(0.001, 0.5, generator)
        x = F.gaussian_blur(x, [5, 5], [sigma, sigma])
    x = F.center_crop(x, [side, side])
    if torch.rand(1, generator=generator).item() < 0.5:
        x = F.hflip(x)
    if kind == "cotta":
        x = x + normal(x.shape, generator, x.device) * _NOISE
    return x.clamp(0, 1)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def _jitter_colours(x: Tensor, generator: torch.Generator) -> Tensor:
    for operation in torch.randperm(5, generator=generator).tolist():
        match operation:
            case 0:
                x = F.adjust_brightness(x, _uniform(0.6, 1.4, generator))
            case 1:
                x = F.adjust_contrast(x, _uniform(0.7, 1.3, generator))
            case 2:
                x = F.adjust_saturation(x, _uniform(0.5, 1.5, generator))
            case 3:
                x = F.adjust_hue(x, _uniform(-0.06, 0.06, generator))
            case 4:
                x = F.adjust_gamma(x.clamp(1e-8, 1), _uniform(0.7, 1.3, generator))
    return x


def _affine(x: Tensor, generator: torch.Generator) -> Tensor:
    side = x.shape[-1]
    angle = _uniform(-15, 15, generator)
    right, down = (round(_uniform(-side / 16, side / 16, generator)) for _ in range(2))
    scale = _uniform(0.9, 1.1, generator)
    return _transformed(x, math.radians(angle), right, down, scale)


def _transformed(x: Tensor, angle: float, right: int, down: int, scale: float) -> Tensor:
    """Rotated by an angle, scaled, moved by so many pixels, black outside: torchvision's ``affine``, bit for bit on a CPU.

    That copies numbers to the device three times, and waits for each.
    """
    side = x.shape[-1]
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    inverse = [[cosine, sine, -cosine * right - sine * down], [-sine, cosine, sine * right - cosine * down]]
    to_unit = to_device(torch.tensor(inverse, dtype=x.dtype).T / (0.5 * side), x.device)
    centres = torch.linspace(0.5 - 0.5 * side, 0.5 * side - 0.5, side, device=x.device).to(x.dtype)
    pixels = torch.stack([*torch.meshgrid(centres, centres, indexing="xy"), x.new_ones(side, side)], 2)
    grid = (pixels.view(1, -1, 3) @ to_unit).view(1, side, side, 2)
    inside = _sampled(x.new_ones(1, 1, side, side), grid)
    return _sampled(x, grid.expand(len(x), -1, -1, -1)) * inside


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
