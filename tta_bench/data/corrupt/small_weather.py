"""Weather for 32×32 images: snow, frost, fog and spatter with CIFAR-10-C's strengths; see :mod:`small_images`."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from tta_bench.data.corrupt.small_tools import clipped_zoom, gaussian, grey, motion_blurred
from tta_bench.errors import Problem, UsageError

SIDE = 32
_FROST_PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
_FROST_SCALE = 0.2


def snow(x: np.ndarray, c: tuple[float, ...], rng: Generator) -> np.ndarray:
    """A layer of noise, zoomed, thresholded and blurred along a falling line, over a whitened image."""
    loc, scale, zoom, threshold, radius, sigma, blend = c
    layer = clipped_zoom(rng.normal(loc, scale, size=(SIDE, SIDE, 1)), zoom)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = motion_blurred(layer, int(radius), sigma, rng.uniform(-135, -45))
    layer = np.round(layer * 255) / 255
    layer = layer[:SIDE, :SIDE]
    x = blend * x + (1 - blend) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return x + layer + np.rot90(layer, 2)


@functools.cache
def _frost_pictures() -> list[np.ndarray]:
    """The six frost pictures of the ``imagecorruptions`` package, scaled by 0.2; float64 (h, w, 3) in [0, 1].

    Raises:
        UsageError: the package is not installed.
    """
    spec = importlib.util.find_spec("imagecorruptions")
    if spec is None or spec.origin is None:
        hint = "pip install imagecorruptions-imaug"
        raise UsageError(Problem("frost needs the pictures of the imagecorruptions package", hint=hint))
    folder = pathlib.Path(spec.origin).parent / "frost"
    pictures = []
    for name in _FROST_PICTURES:
        with Image.open(folder / name) as picture:
            size = tuple(max(SIDE + 1, round(side * _FROST_SCALE)) for side in picture.size)
            scaled = picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
            pictures.append(np.asarray(scaled) / 255.0)
    return pictures


def frost(x: np.ndarray, c: tuple[float, float], rng: Generator) -> np.ndarray:
    """a·x + b·(a random crop of a frost picture)."""
    picture = _frost_pictures()[rng.integers(len(_FROST_PICTURES))]
    top, left = (int(rng.integers(side - SIDE)) for side in picture.shape[:2])
    return c[0] * x + c[1] * picture[top : top + SIDE, left : left + SIDE]


def plasma(rng: Generator, decay: float) -> np.ndarray:
    """A (32, 32) height map in [0, 1] by the diamond–square algorithm; the roughness falls by ``decay`` a level."""
    heights = np.zeros((SIDE, SIDE))
    step, wibble = SIDE, 100.0

    def wibbled(total: np.ndarray) -> np.ndarray:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, size=total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = wibbled(pairs + np.roll(pairs, -1, axis=1))
        centres, corners = heights[half::step, half::step], heights[::step, ::step]
        beside = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = wibbled(beside)
        above = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = wibbled(above)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def fog(x: np.ndarray, c: tuple[float, float], rng: Generator) -> np.ndarray:
    """x + c·plasma, rescaled by max(x) / (max(x) + c)."""
    strength, decay = c
    brightest = x.max()
    return (x + strength * plasma(rng, decay)[..., None]) * brightest / (brightest + strength)


def spatter(x: np.ndarray, c: tuple[float, ...], rng: Generator) -> np.ndarray:
    """Drops of water, or mud, on the lens."""
    loc, scale, sigma, threshold, strength, mud = c
    layer = gaussian(rng.normal(loc, scale, size=(SIDE, SIDE)), sigma)
    layer = np.where(layer < threshold, 0, layer)
    if mud:
        mask = gaussian((layer > threshold).astype(np.float64), strength)
        mask = np.where(mask < 0.8, 0, mask)[..., None]
        return x * (1 - mask) + np.array([63, 42, 20]) / 255.0 * mask
    wet = _water(layer)
    peak = wet.max()
    pale_turquoise = np.array([175, 238, 238]) / 255.0
    return x if peak == 0 else x + np.clip(wet[..., None] / peak * strength * pale_turquoise, 0, 1)


def _water(layer: np.ndarray) -> np.ndarray:
    """Shading (32, 32) of drops: distance to their edges, equalised and embossed."""
    from tta_bench.data.corrupt.corruptions import opencv

    cv2: Any = opencv()
    drops = (layer * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    embossed = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    shaded: np.ndarray = drops * cv2.blur(embossed, (3, 3)).astype(np.float64)
    return shaded
