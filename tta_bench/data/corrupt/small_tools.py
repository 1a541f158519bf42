"""Blurs, zoom and color spaces shared by the corruptions of small images, which are float64 in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def quantised(x: np.ndarray) -> np.ndarray:
    """x rounded down to 256 levels, like an image stored as uint8."""
    return np.floor(np.clip(x, 0, 1) * 255.0) / 255.0


def gaussian(x: np.ndarray, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Gaussian blur with standard deviation sigma in pixels over the first two axes, edges repeated."""
    if sigma == 0:
        return x
    widths = (sigma, sigma, 0)[: x.ndim]
    return ndimage.gaussian_filter(x, widths, mode="nearest", truncate=truncate)


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of x, (H, W, C), zoomed bilinearly by ``factor`` back to about (H, W), never smaller."""
    size = math.ceil(x.shape[0] / factor)
    top = (x.shape[0] - size) // 2
    return ndimage.zoom(x[top : top + size, top : top + size], (factor, factor, 1), order=1)


def motion_blurred(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blur along a line: one-sided Gaussian weights, 2·radius + 1 taps, ``angle`` in degrees, edges repeated."""
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    rise, run = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    height, breadth = x.shape[:2]
    blurred = np.zeros_like(x)
    for i, weight in enumerate(weights):
        dy, dx = -math.ceil(i * rise - 0.5), -math.ceil(i * run - 0.5)
        if abs(dy) >= height or abs(dx) >= breadth:
            break  # the rest of the line is outside the image
        rows = np.clip(np.arange(height) - dy, 0, height - 1)
        columns = np.clip(np.arange(breadth) - dx, 0, breadth - 1)
        blurred += weight * x[rows[:, None], columns]
    return blurred


def to_hsv(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB (H, W, 3) to hue in [0, 6), saturation and value in [0, 1], each (H, W)."""
    value, low = x.max(axis=-1), x.min(axis=-1)
    spread = value - low
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = np.moveaxis(x, -1, 0)
    hue = np.select(
        [spread == 0, value == red, value == green],
        [np.zeros_like(value), ((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return hue, np.where(value > 0, spread / np.where(value > 0, value, 1), 0), value


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_hsv`: (H, W, 3)."""

    def channel(n: int) -> np.ndarray:
        k = (n + hue) % 6
        return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)

    return np.stack([channel(5), channel(3), channel(1)], axis=-1)


def grey(x: np.ndarray) -> np.ndarray:
    """Luma (H, W, 1) of an RGB image (ITU-R BT.601)."""
    return (x @ np.array([0.299, 0.587, 0.114]))[..., None]
