"""CIFAR-10-C's corruptions for 32×32 images (Hendrycks and Dietterich 2019, strengths of the data set's generator).

ImageNet-C's strengths destroy images of this size. Every function takes an image x (32, 32, 3), float64 in [0, 1], the
parameters of one severity and a generator, and returns an array of that shape; results are clipped to [0, 1] by
:func:`corrupt`. NumPy, SciPy and Pillow are enough, but for ``spatter``, which needs OpenCV.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from tta_bench.data.corrupt import small_weather as weather
from tta_bench.data.corrupt.small_tools import clipped_zoom, from_hsv, gaussian, motion_blurred, quantised, to_hsv
from tta_bench.data.corrupt.strengths import PARAMETERS

SIDE = 32


def corrupt(image: np.ndarray, corruption: str, severity: float, rng: Generator) -> np.ndarray:
    """Corrupt one image.

    Args:
        image: uint8 (32, 32, 3).
        corruption: a name in :data:`FUNCTIONS`.
        severity: above 0, up to 5.
        rng: every draw comes from it.

    Returns:
        uint8 (32, 32, 3).
    """
    x = FUNCTIONS[corruption](image / 255.0, PARAMETERS["cifar"][corruption].at(severity), rng)
    return (np.clip(x, 0.0, 1.0) * 255.0).astype(np.uint8)


# -- noise -------------------------------------------------------------------------------------------------------------


def gaussian_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """x + N(0, c²)."""
    return x + rng.normal(scale=c, size=x.shape)


def shot_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Poisson(x·c) / c."""
    return rng.poisson(x * c) / c


def impulse_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Salt and pepper, half each, on a fraction c of the values."""
    hit, salt = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
    return np.where(hit, salt, x)


def speckle_noise(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """x + x·N(0, c²)."""
    return x + x * rng.normal(scale=c, size=x.shape)


# -- blur --------------------------------------------------------------------------------------------------------------


def gaussian_blur(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Gaussian of standard deviation c pixels."""
    return gaussian(x, c)


def glass_blur(x: np.ndarray, c: tuple[float, int, int], rng: Generator) -> np.ndarray:
    """Gaussian; then each pixel takes the value of one at a random offset in [−d, d), pass by pass; then Gaussian.

    The data sets' generator means to swap the two pixels. What it does, as does the ``imagecorruptions`` package, is to
    copy one over the other, because NumPy's tuple assignment works on views; the published images are made that way.
    """
    sigma, delta, passes = c
    x = quantised(gaussian(x, sigma))
    rows = range(SIDE - delta, delta, -1)
    offsets = rng.integers(-delta, delta, size=(passes, len(rows), len(rows), 2)).tolist()
    pixels = x.tolist()  # each copy sees the last one's result: there is no vector form
    for per_pass in offsets:
        for h, per_row in zip(rows, per_pass, strict=True):
            for w, (dx, dy) in zip(rows, per_row, strict=True):
                if h < SIDE and w < SIDE:
                    pixels[h][w] = pixels[h + dy][w + dx]
    return gaussian(np.array(pixels), sigma)


def _disk(radius: float, alias_blur: float) -> np.ndarray:
    """Disk kernel (17, 17) smoothed by a 3×3 Gaussian."""
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * alias_blur**2))
    taps /= taps.sum()
    return ndimage.correlate(disk / disk.sum(), np.outer(taps, taps), mode="mirror")


def defocus_blur(x: np.ndarray, c: tuple[float, float], rng: Generator) -> np.ndarray:
    """Convolution with a disk of radius r pixels, itself smoothed with standard deviation a."""
    return ndimage.correlate(x, _disk(*c)[:, :, None], mode="mirror")


def motion_blur(x: np.ndarray, c: tuple[int, float], rng: Generator) -> np.ndarray:
    """Directional Gaussian blur at an angle U(−45°, 45°)."""
    radius, sigma = c
    return motion_blurred(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Mean of x and its centre-cropped zooms by 1, 1.01, … up to, not including, c."""
    zooms = np.arange(1, c, 0.01)
    layers = [clipped_zoom(x, zoom)[:SIDE, :SIDE] for zoom in zooms]
    return (x + sum(layers)) / (len(zooms) + 1)


# -- digital -----------------------------------------------------------------------------------------------------------


def brightness(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """HSV value + c."""
    hue, saturation, value = to_hsv(x)
    return from_hsv(hue, saturation, np.clip(value + c, 0, 1))


def saturate(x: np.ndarray, c: tuple[float, float], rng: Generator) -> np.ndarray:
    """HSV saturation · a + b."""
    hue, saturation, value = to_hsv(x)
    return from_hsv(hue, np.clip(saturation * c[0] + c[1], 0, 1), value)


def contrast(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """(x − mean)·c + mean, the mean over the image for each channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * c + mean


def jpeg_compression(x: np.ndarray, c: int, rng: Generator) -> np.ndarray:
    """A JPEG round trip at quality c."""
    buffer = io.BytesIO()
    Image.fromarray((x * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=c)
    return np.asarray(Image.open(buffer)) / 255.0


def pixelate(x: np.ndarray, c: float, rng: Generator) -> np.ndarray:
    """Box-resize to int(32·c) and back."""
    image = Image.fromarray((x * 255).round().astype(np.uint8))
    small = image.resize((int(SIDE * c), int(SIDE * c)), Image.Resampling.BOX)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255.0


def elastic_transform(x: np.ndarray, c: tuple[float, float, float], rng: Generator) -> np.ndarray:
    """A random affine map, then displacement by smoothed noise; (α, σ, m) in units of the side."""
    alpha, sigma, move = (value * SIDE for value in c)
    x = _random_affine(x, move, rng)
    fields = [gaussian(rng.uniform(-1, 1, size=(SIDE, SIDE)), sigma, truncate=3.0) * alpha for _ in range(2)]
    rows, columns = np.mgrid[:SIDE, :SIDE]
    where = [rows + fields[1], columns + fields[0]]
    return np.stack([ndimage.map_coordinates(x[..., i], where, order=1, mode="reflect") for i in range(3)], axis=-1)


def _random_affine(x: np.ndarray, move: float, rng: Generator) -> np.ndarray:
    """The affine map that moves three corner points, at the centre ± a third of the side, by U(−move, move) pixels."""
    centre, third = SIDE // 2, SIDE // 3
    before = centre + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    after = before + rng.uniform(-move, move, size=before.shape)
    homogeneous = np.column_stack([after, np.ones(3)])
    inverse = np.linalg.solve(homogeneous, before).T  # output point -> input point, both as (x, y)
    matrix, offset = inverse[::-1, [1, 0]], inverse[::-1, 2]  # SciPy wants (row, column)
    return np.stack(
        [ndimage.affine_transform(x[..., i], matrix, offset, order=1, mode="mirror") for i in range(3)], axis=-1
    )


FUNCTIONS: dict[str, Callable[[np.ndarray, Any, Generator], np.ndarray]] = {
    "gaussian_noise": gaussian_noise, "shot_noise": shot_noise, "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise, "gaussian_blur": gaussian_blur, "glass_blur": glass_blur,
    "defocus_blur": defocus_blur, "motion_blur": motion_blur, "zoom_blur": zoom_blur, "snow": weather.snow,
    "frost": weather.frost, "fog": weather.fog, "spatter": weather.spatter, "contrast": contrast,
    "brightness": brightness, "saturate": saturate, "jpeg_compression": jpeg_compression, "pixelate": pixelate,
    "elastic_transform": elastic_transform,
}  # fmt: skip
