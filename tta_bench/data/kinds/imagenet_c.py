"""The official ImageNet-C tree (``<root>/<corruption>/<severity>/…``): 224 centre crop, no second resize."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_bench.data import mending, trees
from tta_bench.data.base import DataConfig, DataRequest, Dataset, FolderPath, Found, no_compounds
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import IMAGENET_C_GEOMETRY, IMAGENET_GEOMETRY, Geometry, ImageFiles, decode_file
from tta_bench.data.images import FolderImages, file_contents
from tta_bench.data.labels import imagenet_labels
from tta_bench.data.listing import SORTING, listing
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift

ARCHIVES = {  # as they are published
    "noise.tar": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur.tar": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather.tar": ("frost", "snow", "fog", "brightness"),
    "digital.tar": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra.tar": ("speckle_noise", "spatter", "gaussian_blur", "saturate"),
}
VALIDATION = PublishedSet(
    "ImageNet validation set",
    "https://image-net.org/download.php (needs an account)",
    "<wnid>/<image>",
    images=50_000,
    classes=1000,
    size="6.7 GB",
    steps=(
        "download ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into DIR",
        SORTING,
    ),
    folder="val",
    class_names=imagenet_labels,
)
CORRUPTED = PublishedSet(
    "ImageNet-C",
    "https://zenodo.org/records/2235448",
    "<corruption>/<severity>/<wnid>/<image>",
    images=50_000,
    classes=1000,
    steps=(
        "download noise.tar, blur.tar, weather.tar and digital.tar (extra.tar has 4 further corruptions)",
        "mkdir -p DIR/ImageNet-C && for f in noise blur weather digital; do tar -xf $f.tar -C DIR/ImageNet-C; done",
    ),
    folder="ImageNet-C",
    get="imagenet_c",
    class_names=imagenet_labels,
)


class ImageNetC(Dataset):
    """The official ImageNet-C tree; all shifts have the same relative paths, and clean images come from ``source``."""

    name = "imagenet_c"

    class Config(DataConfig):
        """Attributes:
        root: ``<root>/<corruption>/<severity>/<wnid>/<image>``.
        source: the clean ImageNet validation folder, for ``clean`` and for methods that use source images.
        """

        root: FolderPath
        source: FolderPath | None = None

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            return {"root": CORRUPTED, "source": VALIDATION}

        def key_of(self, shift: Shift) -> str:
            return "source" if shift == CLEAN else "root"

    def __init__(self, config: Config, request: DataRequest):
        self.title = "ImageNet-C"
        self.root = trees.resolved(config.root)
        self.source = FolderImages(config.source, IMAGENET_GEOMETRY) if config.source else None
        self._shifts = tuple(shift for shift in request.shifts if shift != CLEAN)
        there = [shift for shift in self._shifts if trees.is_folder(self._folder(shift))]
        if self._shifts and not there:
            raise UsageError(no_folder(self.root, self._shifts[0]))
        self._first = there[0] if there else None
        self._index = FolderImages(str(self._folder(there[0])), IMAGENET_C_GEOMETRY) if there else self._clean()
        self.ids, self.labels = self._index.ids, self._index.labels
        self.num_classes, self.side = self._index.num_classes, self._index.side

    def _clean(self) -> FolderImages:
        if not isinstance(self.source, FolderImages):
            hint = "name the ImageNet validation folder: data: {…, source: PATH}"
            raise UsageError(Problem("the ImageNet-C tree has no clean images", str(self.root), hint=hint))
        return self.source

    def _folder(self, shift: Shift) -> pathlib.Path:
        return self.root / shift.name / str(shift.severity)

    def found(self) -> list[Found]:
        """The folder whose images and classes count, the clean images, and those where files were left out."""
        found = [*self._index.found(), *(self.source.found() if isinstance(self.source, FolderImages) else [])]
        known = {each.folder for each in found}
        for folder in [each for shift in self._shifts if trees.is_folder(each := self._folder(shift))]:
            listed = listing(folder)
            if (listed.left_out or listed.remembered) and str(folder) not in known:
                found.append(Found(str(folder), len(listed.paths), (), listed.left_out, remembered=listed.remembered))
        return [each for i, each in enumerate(found) if each not in found[:i]]

    def missing(self, shift: Shift) -> Problem | None:
        if shift.stored == COMPOUND:
            return no_compounds(self.title)
        folder = self.root
        try:
            if shift == CLEAN:
                clean = self._clean()
                folder, present = clean.root, clean.ids
            else:
                folder = self._folder(shift)
                if not trees.is_folder(folder):
                    return no_folder(self.root, shift)
                present = listing(folder).paths
        except UsageError as error:
            return error.problems[0]
        if self._first is not None and shift == self._first:
            return self._incomplete_first(shift)
        return _absent(self.ids, present, folder)

    def _incomplete_first(self, shift: Shift) -> Problem | None:
        """Where another shift has images that the first, whose images count, lacks: all must have the same."""
        first = self._folder(shift)
        for other in [each for each in self._shifts if each != shift]:
            try:
                present = listing(self._folder(other)).paths
            except UsageError:  # reported as the other's problem
                continue
            if problem := _absent(present, self.ids, first):
                hint = f"{other.id} has them: complete the folder, or remove them from all corruptions for a subset"
                return dataclasses.replace(problem, hint=hint)
        return None

    def _files(self, shift: Shift) -> tuple[pathlib.Path, Geometry]:
        """The folder of a shift's images, and their geometry."""
        if shift == CLEAN:
            return self._clean().root, IMAGENET_GEOMETRY
        return self._folder(shift), IMAGENET_C_GEOMETRY

    def files(self, shift: Shift) -> ImageFiles:
        folder, geometry = self._files(shift)
        return ImageFiles(folder, self.ids, geometry, self.side)

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        folder, geometry = self._files(shift)
        contents = file_contents(folder, [self.ids[i] for i in rows], self.labels[rows], geometry, digests)
        return {"kind": "imagenet_c", "shift": shift.id, **contents}

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        folder, geometry = self._files(shift)
        return np.stack([decode_file(folder / self.ids[i], geometry, self.side) for i in index])


def no_folder(root: pathlib.Path, shift: Shift) -> Problem:
    """The problem that a tree lacks a shift's folder, and how to mend it by the usual causes."""
    hint = mending.corruption(root, shift.name, shift.severity, ARCHIVES) if root.is_dir() else trees.WITHOUT
    hint = hint or near_miss(shift.name, [name for name in mending.names(root) if (root / name).is_dir()])
    return Problem(f"no folder for {shift.id}", where=str(root / shift.name / str(shift.severity)), hint=hint)


def _absent(wanted: Sequence[str], present: Sequence[str], folder: pathlib.Path) -> Problem | None:
    """The problem that a folder lacks images of ``wanted``, or None."""
    if wanted == present:  # usual, and quick
        return None
    there = set(present)
    absent = [path for path in wanted if path not in there]
    if not absent:
        return None
    message = f"{len(absent)} of {len(wanted)} images are missing, the first is {absent[0]}"
    return Problem(message, where=str(folder))
