"""Image folders (``<root>/<class>/<image>``) and the official ImageNet-C tree (``<root>/<corruption>/<severity>/…``)."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tta_bench.data.base import (
    IMAGENET_C_GEOMETRY,
    IMAGENET_GEOMETRY,
    CleanImages,
    DataPart,
    Dataset,
    Folder,
    Geometry,
    decode_file,
    named_contents,
)
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.digests import Digests, Extent
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, Shift

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


class FolderPart(DataPart):
    """A clean image folder, corrupted on the fly.

    Attributes:
        root: test images, ``<root>/<class>/<image>``.
        source: clean images for methods that ask for some, same layout; labels are not used.
        source_fraction: where there is no such folder: set this part of ``root`` apart as source images, drawn by the data
            seed; only the rest is tested on.
        strengths: "imagenet" (ImageNet-C's, for images of 32 pixels or more) or "cifar" (CIFAR-10-C's, 32×32).
        preprocess: "standard" (Resize 256, CenterCrop 224), "weights" (the size and crop that timm publishes with the
            model's weights), or "none" (images are used as they are).
        recompress_jpeg: JPEG quality of a last round trip after the corruption (ImageNet-C itself: 85), or None.
    """

    kind: Literal["folder"]
    root: Folder
    source: Folder | None = None
    source_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    strengths: Literal["imagenet", "cifar"] = "imagenet"
    preprocess: Literal["standard", "weights", "none"] = "standard"
    recompress_jpeg: Annotated[int, Field(ge=1, le=100)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> FolderPart:
        if self.source is not None and self.source_fraction is not None:
            raise PydanticCustomError("source", "give source: (a folder) or source_fraction:, not both")
        return self


class ImageNetCPart(DataPart):
    """The official ImageNet-C tree: 224 centre crop, no second resize.

    Attributes:
        root: ``<root>/<corruption>/<severity>/<wnid>/<image>``.
        source: the clean ImageNet validation folder, for ``clean`` and for methods that ask for source images.
    """

    kind: Literal["imagenet_c"]
    root: Folder
    source: Folder | None = None


@functools.lru_cache(maxsize=256)
def listing(root: pathlib.Path) -> tuple[str, ...]:
    """The images below ``root``'s class folders: relative paths, sorted; read once a process.

    Raises:
        UsageError: there are none.
    """
    found = []
    for group in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        for entry in os.scandir(root / group):
            if pathlib.PurePath(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                found.append(f"{group}/{entry.name}")
    if not found:
        hint = "expected <root>/<class>/<image>, with images ending in " + ", ".join(sorted(SUFFIXES))
        raise UsageError(Problem("the folder holds no images", where=str(root), hint=hint))
    return tuple(sorted(found))


class FolderImages(CleanImages):
    """A clean image folder. Classes are the sorted folder names.

    Raises:
        UsageError: the folder holds no images, or its first image is not square after the geometry.
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


class ImageNetC(Dataset):
    """The official tree. Every shift must hold the same relative paths; clean images come from ``source``."""

    name = "ImageNet-C"

    def __init__(self, part: ImageNetCPart, first: Shift | None):
        self.root = pathlib.Path(part.root).expanduser().resolve()
        self.source = FolderImages(part.source, IMAGENET_GEOMETRY) if part.source else None
        if first is not None and (problem := self._no_folder(first)):
            raise UsageError(problem)
        self._index = FolderImages(str(self._folder(first)), IMAGENET_C_GEOMETRY) if first else self._clean()
        self.ids, self.labels = self._index.ids, self._index.labels
        self.num_classes, self.side = self._index.num_classes, self._index.side

    def _clean(self) -> FolderImages:
        if not isinstance(self.source, FolderImages):
            hint = "name the ImageNet validation folder: data: {…, source: PATH}"
            raise UsageError(Problem("the ImageNet-C tree has no clean images", str(self.root), hint=hint))
        return self.source

    def _folder(self, shift: Shift) -> pathlib.Path:
        return self.root / shift.corruption / str(shift.severity)

    def _no_folder(self, shift: Shift) -> Problem | None:
        if self._folder(shift).is_dir():
            return None
        there = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        hint = near_miss(shift.corruption, there) if there else "expected <root>/<corruption>/<severity>/<wnid>/*.JPEG"
        return Problem(f"no folder for {shift.id}", where=str(self._folder(shift)), hint=hint)

    def missing(self, shift: Shift) -> Problem | None:
        folder = self.root
        try:
            if shift == CLEAN:
                clean = self._clean()
                folder, there = clean.root, set(clean.ids)
            else:
                if problem := self._no_folder(shift):
                    return problem
                folder = self._folder(shift)
                there = set(listing(folder))
        except UsageError as error:
            return error.problems[0]
        lost = [path for path in self.ids if path not in there]
        if lost:
            return Problem(
                f"{len(lost)} of {len(self.ids)} images are missing, the first is {lost[0]}", where=str(folder)
            )
        return None

    def _files(self, shift: Shift) -> tuple[pathlib.Path, Geometry]:
        """The folder of a shift's images, and what is done to them."""
        if shift == CLEAN:
            return self._clean().root, IMAGENET_GEOMETRY
        return self._folder(shift), IMAGENET_C_GEOMETRY

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        folder, geometry = self._files(shift)
        contents = file_contents(folder, [self.ids[i] for i in rows], self.labels[rows], geometry, digests)
        return {"kind": "imagenet_c", "shift": shift.id, **contents}

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        folder, geometry = self._files(shift)
        return np.stack([decode_file(folder / self.ids[i], geometry, self.side) for i in index])


def corruption_known(shift: Shift) -> Problem | None:
    """A problem where ``shift`` is none of the 19 corruptions, nor clean."""
    if shift == CLEAN or shift.corruption in NAMES:
        return None
    return Problem(f"unknown corruption {shift.corruption!r}", hint=near_miss(shift.corruption, ["clean", *NAMES]))
