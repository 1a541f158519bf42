"""Clean images in a folder (``<root>/<class>/<image>``) or in an array."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tta_bench.data.base import CleanImages, Geometry, decode_file, named_contents
from tta_bench.data.digests import Digests, Extent
from tta_bench.errors import Problem, UsageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@functools.lru_cache(maxsize=256)
def listing(root: pathlib.Path) -> tuple[str, ...]:
    """The images in ``root``'s class folders: sorted relative paths; listed once in each process.

    Raises:
        UsageError: there are none.
    """
    paths = []
    for group in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        for entry in os.scandir(root / group):
            if pathlib.PurePath(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                paths.append(f"{group}/{entry.name}")
    if not paths:
        hint = "expected <root>/<class>/<image>, with images ending in " + ", ".join(sorted(SUFFIXES))
        raise UsageError(Problem("the folder has no images", where=str(root), hint=hint))
    return tuple(sorted(paths))


class FolderImages(CleanImages):
    """A folder of clean images; classes are its sorted subfolders.

    Raises:
        UsageError: the folder has no images, or its first image is not square after the geometry.
    """

    def __init__(self, root: str, geometry: Geometry):
        self.root = pathlib.Path(root).expanduser().resolve()
        self.geometry = geometry
        self.ids = listing(self.root)
        groups = [path.split("/", 1)[0] for path in self.ids]
        classes = {name: number for number, name in enumerate(sorted(set(groups)))}
        self.labels = np.array([classes[group] for group in groups], dtype=np.int64)
        self.num_classes = len(classes)
        self.side = geometry.crop or self._first_side()

    def _first_side(self) -> int:
        path = self.root / self.ids[0]
        try:
            with Image.open(path) as image:
                width, height = image.size
        except OSError as error:
            raise UsageError(
                Problem(f"cannot decode image: {error}", str(path), hint="replace or remove it")
            ) from error
        if width != height:
            hint = "choose preprocess: standard"
            raise UsageError(Problem(f"image is {width}x{height} pixels, not square", str(path), hint=hint))
        return width

    def decode(self, index: int) -> np.ndarray:
        return decode_file(self.root / self.ids[index], self.geometry, self.side)

    def fingerprint(self, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        return file_contents(self.root, [self.ids[i] for i in rows], self.labels[rows], self.geometry, digests)


def file_contents(
    root: pathlib.Path, ids: Sequence[str], labels: np.ndarray, geometry: Geometry, digests: Digests
) -> dict[str, Any]:
    """The fingerprint of image files ``root/id`` with their labels (n,)."""
    sha256 = digests.of([Extent(f"{root}/{path}") for path in ids])
    steps = {name: value for name, value in vars(geometry).items() if value != getattr(Geometry, name)}
    return {**named_contents(ids, sha256, labels), **({"geometry": steps} if steps else {})}


class ArrayImages(CleanImages):
    """Clean images in one uint8 array (N, side, side, 3)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, ids: Sequence[str], num_classes: int):
        self.images, self.ids = images, ids
        self.labels = labels.astype(np.int64)
        self.num_classes, self.side = num_classes, int(images.shape[1])

    def decode(self, index: int) -> np.ndarray:
        return np.asarray(self.images[index])

    def fingerprint(self, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        sha256 = [hashlib.sha256(image.tobytes()).hexdigest() for image in self.images[rows]]
        return named_contents([self.ids[i] for i in rows], sha256, self.labels[rows])
