"""The 19 corruptions of ImageNet-C and CIFAR-10-C, each image with a seed derived from its id.

ImageNet-C's come from the ``imagecorruptions`` package, CIFAR-10-C's from ``small_images``; severities between the
published ones have parameters interpolated between theirs (:mod:`tta_bench.data.corrupt.strengths`). Most functions of
the package draw from NumPy's global generator, of which a process has one: use processes, not threads. torch is not
imported, OpenCV only when a corruption needs it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from tta_bench.data.corrupt.strengths import Strengths
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import COMPOUND

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
BENCHMARK = tuple(name for group, names in GROUPS.items() if group != "extra" for name in names)
EXTRA = GROUPS["extra"]
NAMES = (*BENCHMARK, *EXTRA)
OF_CCC = {"elastic": "elastic_transform", "jpeg": "jpeg_compression"}  # names of corruptions within its compounds

_OWN_SEED = ("glass_blur", "impulse_noise")  # these ignore the global generator and take seed=; the others reject it
_SMALL_NEEDS = {
    "spatter": ("opencv",),
    "frost": ("imagecorruptions-imaug",),
    COMPOUND.name: ("imagecorruptions-imaug",),  # frost may be in it
}


def image_seed(image_id: str, corruption: str, severity: float, data_seed: int) -> int:
    """A 32-bit seed from the SHA-256 of image id, corruption, severity and data seed."""
    exact = int(severity) if severity == int(severity) else severity  # 3.0 is 3
    text = json.dumps([image_id, corruption, exact, data_seed], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def corrupt(image: np.ndarray, corruption: str, severity: float, *, strengths: Strengths, seed: int) -> np.ndarray:
    """One corrupted image.

    Args:
        image: uint8 (H, W, 3); 32×32 for "cifar", 32×32 or larger for "imagenet".
        corruption: one of :data:`NAMES`.
        severity: a multiple of 0.25 up to 5.
        strengths: the parameters of ImageNet-C or of CIFAR-10-C.
        seed: determines every draw; the global NumPy generator is restored afterwards.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: an argument is out of range.
        UsageError: a library that this corruption needs cannot be loaded.
    """
    _check(image, corruption, severity, strengths)
    if strengths == "cifar":
        from tta_bench.data.corrupt import small_images

        return small_images.corrupt(image, corruption, severity, np.random.default_rng(seed))
    options = {"seed": seed} if corruption in _OWN_SEED else {}
    package = _imagecorruptions()
    with _global_seed(seed), contextlib.redirect_stdout(io.StringIO()):  # it prints a warning for some sizes
        if severity != int(severity):
            from tta_bench.data.corrupt import large_images

            return large_images.corrupt(image, corruption, severity, options)
        corrupted: np.ndarray = package.corrupt(image, severity=int(severity), corruption_name=corruption, **options)
    return corrupted


def _check(image: np.ndarray, corruption: str, severity: float, strengths: str) -> None:
    if corruption not in NAMES:
        raise ValueError(f"unknown corruption {corruption!r}; {near_miss(corruption, NAMES)}")
    if not (0 < severity <= 5 and severity * 4 == int(severity * 4)):
        raise ValueError(f"severity must be 1 to 5, or quarters between, not {severity}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if strengths == "cifar" and image.shape != (32, 32, 3):
        raise ValueError(f"strengths 'cifar' are for 32x32 images, this one is {image.shape[1]}x{image.shape[0]}")
    if min(image.shape[:2]) < 32:
        raise ValueError(f"images must be 32x32 or larger, this one is {image.shape[1]}x{image.shape[0]}")


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@functools.cache
def opencv() -> Any:
    """The ``cv2`` module, limited to one thread so that results do not depend on the number of cores.

    Raises:
        UsageError: it cannot be loaded; the message names the missing library.
    """
    try:
        import cv2
    except ImportError as error:
        hint = "pip uninstall -y opencv-python && pip install opencv-python-headless"
        raise UsageError(Problem(f"OpenCV cannot be loaded: {error}", where="import cv2", hint=hint)) from error
    cv2.setNumThreads(1)
    return cv2


@functools.cache
def _imagecorruptions() -> Any:
    opencv()
    try:
        import imagecorruptions
    except ImportError as error:
        hint = "pip install imagecorruptions-imaug"
        raise UsageError(Problem(f"imagecorruptions cannot be loaded: {error}", hint=hint)) from error
    return imagecorruptions


def library_versions(strengths: Strengths, corruption: str) -> dict[str, str]:
    """Versions of the libraries that a corruption's pixels depend on; imports none of them."""
    names: tuple[str, ...] = ("numpy", "scipy", "pillow")
    if strengths == "imagenet":
        names += ("imagecorruptions-imaug", "scikit-image", "opencv", "numba")
    else:
        names += _SMALL_NEEDS.get(corruption, ())
    return {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str:
    for distribution in ("opencv-python", "opencv-python-headless") if name == "opencv" else (name,):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return "absent"
