"""Opening image files, and their conversion to 8-bit RGB as torchvision's published loader has it.

Pillow's ``convert("RGB")`` repeats a grey channel, looks palettes up, converts CMYK and drops an alpha channel; the
orientation in a file's EXIF data is ignored. Two things differ from it, since it would clip them to white: 16-bit grey is
scaled to 8 bits (divided by 257), and pixels of 32 bits, which have no agreed scale, are refused. What was converted is
counted, for whoever asks with :func:`counted`.
"""

from __future__ import annotations

import contextlib
import pathlib
import warnings
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
from PIL import ExifTags, Image

from tta_bench.errors import Problem, UsageError

_NAMES = {
    "1": "black-and-white",
    "L": "greyscale",
    "LA": "greyscale, alpha channel dropped",
    "RGBA": "alpha channel dropped",
    "P": "palette",
    "PA": "palette, alpha channel dropped",
}
_GREY_16 = {"I;16", "I;16L", "I;16B", "I;16N"}
_counter: ContextVar[Counter[str] | None] = ContextVar("conversions", default=None)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the conversions of images that are decoded inside the ``with`` block, by kind."""
    counter = Counter[str]()
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """An image file, for a ``with`` block that reads it.

    Raises:
        UsageError: it is missing, damaged, or announces more pixels than Pillow takes; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except UsageError:
        raise
    except FileNotFoundError as error:
        hint = "copy the images here, or the whole image cache of a machine that has prepared this suite"
        raise UsageError(Problem("the image is neither here nor in the image cache", str(path), hint=hint)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        hint = "replace, shrink or remove the file"
        raise UsageError(Problem(f"image is too large: {error}", where=str(path), hint=hint)) from error
    except Exception as error:  # Pillow's decoders raise many types for damaged and unknown files
        hint = "replace or remove the file"
        raise UsageError(Problem(f"cannot decode image: {error}", where=str(path), hint=hint)) from error


def conversions(image: Image.Image, path: pathlib.Path) -> list[str]:
    """What :func:`rgb` converts in an image, of which only the header need be read.

    Raises:
        UsageError: its pixels are integers or fractions of 32 bits.
    """
    found = []
    if image.info.get("exif") and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        found.append("EXIF orientation ignored")
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "fractions"
        message = f"image has pixels of mode {image.mode} ({kind} of 32 bits), with no agreed scale to 8 bits"
        raise UsageError(Problem(message, where=str(path), hint="convert the file to 8-bit RGB"))
    if image.mode in _GREY_16:
        found.append("16-bit grey scaled to 8 bits")
    elif image.mode != "RGB":
        found.append(_NAMES.get(image.mode, image.mode))
    return found


def rgb(image: Image.Image, path: pathlib.Path) -> Image.Image:
    """The image in 8-bit RGB.

    Raises:
        UsageError: its pixels are integers or fractions of 32 bits.
    """
    kinds = conversions(image, path)
    if (counter := _counter.get()) is not None:
        counter.update(kinds)
    if image.mode in _GREY_16:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
