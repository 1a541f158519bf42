"""AugMix views of one image (Hendrycks et al. 2020, arXiv 1912.02781), with the operations and severity of MEMO's code.

A view is m·x₀ + (1 − m)·Σ_k w_k·chain_k(x₀): x₀ is a random crop and flip of the image, w ~ Dirichlet(1, 1, 1), m ~
Beta(1, 1), and each of the three chains applies one to three operations, chosen uniformly from nine, to x₀. The image
and the results of all operations have 8 bits a channel; mixing is in float32.

The operations are Pillow's. Filling is (128, 0, 0), a dark red, which is how Pillow read the published fill colour 128
in RGB images; mariodoebler/test-time-adaptation fills with black. The published sizes 32 and 224 are the image's side
here: the width for ``translate_x``, the height for ``translate_y``.

All draws are on the CPU, those of a view before the next one's, and in each in the order of this file: equal seeds give
equal views on every device and in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor

PreAugmentation = Literal["crop", "resized_crop"]
Picture = Image.Image
Box = tuple[int, int, int, int]  # left, top, right, bottom

_BILINEAR = Image.Resampling.BILINEAR
_FILL = (128, 0, 0)
_CHAINS = 3


def _affine(image: Picture, *coefficients: float) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, _BILINEAR, fillcolor=_FILL)


OPERATIONS: Mapping[str, Callable[[Picture, float], Picture]] = {  # by number; u is the level with its sign
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": lambda image, u: image.rotate(int(u * 30 / 10), _BILINEAR, fillcolor=_FILL),
    "solarize": lambda image, u: ImageOps.solarize(image, 256 - int(u * 256 / 10)),
    "shear_x": lambda image, u: _affine(image, 1, u * 0.3 / 10, 0, 0, 1, 0),
    "shear_y": lambda image, u: _affine(image, 1, 0, 0, u * 0.3 / 10, 1, 0),
    "translate_x": lambda image, u: _affine(image, 1, 0, int(u * (image.width / 3) / 10), 0, 1, 0),
    "translate_y": lambda image, u: _affine(image, 1, 0, 0, 0, 1, int(u * (image.height / 3) / 10)),
    "posterize": lambda image, u: ImageOps.posterize(image, 4 - int(u * 4 / 10)),
}
_NAMES = tuple(OPERATIONS)
_WITHOUT_LEVEL = ("autocontrast", "equalize")
_SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@dataclass(frozen=True)
class View:
    """What was drawn for a view.

    Attributes:
        box: the crop, in pixels; parts outside the image are black.
        flipped: whether the crop is flipped horizontally.
        weights: w, rounded to float32.
        share: m, rounded to float32.
        chains: for each chain the names of its operations, with their level and its sign.
    """

    box: Box
    flipped: bool
    weights: list[float]
    share: float
    chains: list[list[tuple[str, float]]]


@torch.no_grad()
def augmix(x: Tensor, count: int, pre_augmentation: PreAugmentation, generator: Generator) -> Tensor:
    """Random views of an image.

    Args:
        x: one image (3, H, W) in [0, 1], on the CPU.
        count: number of views V.
        pre_augmentation: "crop" (after zero padding by 4 pixels) or "resized_crop" (to the image's own size).
        generator: a CPU generator.

    Returns:
        Views (V, 3, H, W) in [0, 1], float32, on the CPU.
    """
    image = Image.fromarray((255 * x.double()).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    views = [draw_view(image.size, pre_augmentation, generator) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([_pictures(image, view) for view in views]))
    return torch.stack([_mixed(*pair) for pair in zip(pictures, views, strict=True)])


def _pictures(image: Picture, view: View) -> np.ndarray:
    """x₀ and the end of each chain: (4, H, W, 3) uint8."""
    start = image.crop(view.box)
    if start.size != image.size:
        start = start.resize(image.size, _BILINEAR)
    if view.flipped:
        start = start.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ends = [start]
    for chain in view.chains:
        end = start
        for name, level in chain:
            end = OPERATIONS[name](end, level)
        ends.append(end)
    return np.stack([np.asarray(end) for end in ends])


def _mixed(pictures: Tensor, view: View) -> Tensor:
    """The view (3, H, W) from x₀ and the ends of the chains (4, H, W, 3)."""
    start, *ends = (pictures / 255).permute(0, 3, 1, 2)
    mixture = torch.zeros_like(start)
    for weight, end in zip(view.weights, ends, strict=True):
        mixture += weight * end
    return view.share * start + (1 - view.share) * mixture


# -- draws -------------------------------------------------------------------------------------------------------------


def draw_view(size: tuple[int, int], pre_augmentation: PreAugmentation, generator: Generator) -> View:
    """Draw a view of an image of (width, height) pixels."""
    box = (_crop if pre_augmentation == "crop" else _resized_crop)(*size, generator)
    flipped = torch.rand(1, generator=generator).item() < 0.5
    exponentials = -torch.log1p(-torch.rand(_CHAINS, dtype=torch.float64, generator=generator))
    weights = (exponentials / exponentials.sum()).float().tolist()
    share = torch.rand(1, dtype=torch.float64, generator=generator).float().item()
    chains = [[_operation(generator) for _ in range(_integer(1, 4, generator))] for _ in range(_CHAINS)]
    return View(box, flipped, weights, share, chains)


def _operation(generator: Generator) -> tuple[str, float]:
    name = _NAMES[_integer(0, len(_NAMES), generator)]
    if name in _WITHOUT_LEVEL:
        return name, 0.0
    level = 0.1 + 0.9 * _uniform(generator)
    return name, -level if name in _SIGNED and _uniform(generator) > 0.5 else level


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))


def _uniform(generator: Generator) -> float:
    return torch.rand(1, dtype=torch.float64, generator=generator).item()


def _crop(width: int, height: int, generator: Generator, padding: int = 4) -> Box:
    top, left = (_integer(0, 2 * padding + 1, generator) - padding for _ in range(2))
    return left, top, left + width, top + height


def _resized_crop(width: int, height: int, generator: Generator) -> Box:
    """As torchvision's RandomResizedCrop: a crop of 8 to 100 % of the area whose sides have a ratio of 3/4 to 4/3."""
    low, high = torch.tensor([3 / 4, 4 / 3]).log().tolist()
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1, generator=generator).item()
        ratio = torch.empty(1).uniform_(low, high, generator=generator).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = _integer(0, height - h + 1, generator), _integer(0, width - w + 1, generator)
            return left, top, left + w, top + h
    w, h = min(width, round(height * (4 / 3))), min(height, round(width / (3 / 4)))  # the middle; of a square all
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
