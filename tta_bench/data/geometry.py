"""How an image file becomes square pixels: size, crop, and what is refused. Nothing here imports torch."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from tta_bench.data.decoding import opened, rgb
from tta_bench.errors import Problem, UsageError


@dataclass(frozen=True)
class Geometry:
    """How a clean image becomes square: resize the shorter side to ``resize``, then take the centre ``crop``, in pixels.

    None skips that step. ``interpolation`` is Pillow's name for it.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of an image of ``size`` before the crop."""
        if self.resize is None:
            return size
        short = min(size)
        width, height = (int(self.resize * side / short) if side != short else self.resize for side in size)
        return width, height

    def apply(self, image: Image.Image) -> Image.Image:
        """The square image, equal to that of torchvision's Resize and CenterCrop."""
        if (size := self.resized(image.size)) != image.size:  # resize() would copy it
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        if self.crop is not None:
            left, top = (round((side - self.crop) / 2.0) for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image


IMAGENET_C_GEOMETRY = Geometry(crop=224)
IMAGENET_GEOMETRY = Geometry(resize=256, crop=224)


@dataclass(frozen=True)
class ImageFiles:
    """The files of some images, ``folder/name``, and what they become: ``side`` pixels square after ``geometry``."""

    folder: pathlib.Path
    names: Sequence[str]
    geometry: Geometry
    side: int


def decode_file(path: pathlib.Path, geometry: Geometry, side: int | None) -> np.ndarray:
    """Decode one image file to uint8 (H, W, 3); see :mod:`tta_bench.data.decoding` for what is converted.

    Raises:
        UsageError: the file is missing or damaged, has pixels of 32 bits, is smaller than a crop of unresized images, or
            not ``side`` pixels square after the geometry; the message names it.
    """
    with opened(path) as image:
        if fault := size_fault(image.size, geometry, side):
            raise UsageError(replace(fault, where=str(path)))
        return np.asarray(geometry.apply(rgb(image, path)))


def size_fault(size: tuple[int, int], geometry: Geometry, side: int | None) -> Problem | None:
    """The problem with an image of ``size`` (width, height) that is to become one of ``side``, or None."""
    width, height = geometry.resized(size)
    if geometry.crop is not None and geometry.resize is None and min(width, height) < geometry.crop:
        message = f"image is {width}x{height} pixels, smaller than its crop of {geometry.crop}x{geometry.crop}"
        return Problem(message, hint="these data are of another size: check the folder")
    if geometry.crop is None and side is not None and (width, height) != (side, side):
        hint = "resize or remove it, or choose a preprocess that gives all images one size"
        return Problem(f"image is {width}x{height} pixels, expected {side}x{side}", hint=hint)
    return None


def recompress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """The image after a JPEG round trip at ``quality``, uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
