"""Clean images in files (``<root>/<class>/<image>``, or flat with a file of labels) or in an array."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tta_bench.data import trees
from tta_bench.data.base import CleanImages, Found, named_contents
from tta_bench.data.decoding import opened
from tta_bench.data.digests import Digests, Extent
from tta_bench.data.geometry import Geometry, ImageFiles, decode_file
from tta_bench.data.label_files import read_labels
from tta_bench.data.listing import Listing, flat_listing, listing
from tta_bench.errors import Problem, UsageError

__all__ = ["ArrayImages", "FlatImages", "FolderImages", "file_contents", "listing"]


class FileImages(CleanImages):
    """Clean images in files below a folder.

    Args:
        root: the folder.
        found: the images in it.
        labels: (N,) their classes.
        classes: names of the classes.
        geometry: how an image becomes square.

    Raises:
        UsageError: the first image is not square after the geometry.
    """

    def __init__(
        self, root: pathlib.Path, found: Listing, labels: np.ndarray, classes: Sequence[str], geometry: Geometry
    ):
        self.root, self.geometry, self.classes = root, geometry, tuple(classes)
        self.ids, self.labels, self.num_classes = found.paths, labels, len(classes)
        self._left_out, self._remembered = found.left_out, found.remembered
        self.side = geometry.crop or self._first_side()

    def _first_side(self) -> int:
        path = self.root / self.ids[0]
        if self._remembered and (known := trees.recall("size", path)):
            width, height = known[0]
        else:
            with opened(path) as image:
                width, height = image.size
            trees.remember("size", path, [width, height])
        if width != height:
            hint = "choose preprocess: standard"
            raise UsageError(Problem(f"image is {width}x{height} pixels, not square", str(path), hint=hint))
        return width

    def found(self) -> list[Found]:
        return [Found(str(self.root), len(self.ids), self.classes, self._left_out, remembered=self._remembered)]

    def files(self) -> ImageFiles:
        return ImageFiles(self.root, self.ids, self.geometry, self.side)

    def decode(self, index: int) -> np.ndarray:
        return decode_file(self.root / self.ids[index], self.geometry, self.side)

    def fingerprint(self, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        return file_contents(self.root, [self.ids[i] for i in rows], self.labels[rows], self.geometry, digests)


class FolderImages(FileImages):
    """A folder of clean images; classes are its subfolders: numbered ones by number, others by name.

    Raises:
        UsageError: the layout is another, a class is empty, or the first image is not square after the geometry.
    """

    def __init__(self, root: str, geometry: Geometry):
        folder = trees.resolved(root)
        found = listing(folder)
        number = {name: index for index, name in enumerate(found.classes)}
        labels = np.array([number[path.split("/", 1)[0]] for path in found.paths], dtype=np.int64)
        super().__init__(folder, found, labels, found.classes, geometry)


class FlatImages(FileImages):
    """A folder that holds clean images directly, whose labels are in a file (:mod:`tta_bench.data.label_files`).

    Args:
        root: the folder.
        labels: the file.
        first: number of the first class, 0 or 1, or None where the file shows it.
        classes: number of classes, or None for those of the file.
        geometry: how an image becomes square.

    Raises:
        UsageError: there are no images, or the labels are not theirs.
    """

    def __init__(self, root: str, labels: str, first: int | None, classes: int | None, geometry: Geometry):
        folder = trees.resolved(root)
        found = flat_listing(folder)
        numbers, names = read_labels(trees.resolved(labels), found.paths, first, classes)
        super().__init__(folder, found, numbers, names, geometry)


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
