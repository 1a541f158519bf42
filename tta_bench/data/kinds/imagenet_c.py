"""The official ImageNet-C tree (``<root>/<corruption>/<severity>/…``): 224 centre crop, no second resize."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from tta_bench.data import trees
from tta_bench.data.base import (
    IMAGENET_C_GEOMETRY,
    IMAGENET_GEOMETRY,
    DataConfig,
    DataRequest,
    Dataset,
    FolderPath,
    Found,
    Geometry,
    decode_file,
    no_compounds,
)
from tta_bench.data.digests import Digests
from tta_bench.data.images import FolderImages, file_contents
from tta_bench.data.listing import folders, listing, unpacking
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift

ARCHIVES = {  # as they are published
    "noise.tar": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur.tar": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather.tar": ("frost", "snow", "fog", "brightness"),
    "digital.tar": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra.tar": ("speckle_noise", "spatter", "gaussian_blur", "saturate"),
}


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

    def __init__(self, config: Config, request: DataRequest):
        self.title = "ImageNet-C"
        self.root = trees.resolved(config.root)
        self.source = FolderImages(config.source, IMAGENET_GEOMETRY) if config.source else None
        self._shifts = tuple(shift for shift in request.shifts if shift != CLEAN)
        first = self._shifts[0] if self._shifts else None
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
        return self.root / shift.name / str(shift.severity)

    def _no_folder(self, shift: Shift) -> Problem | None:
        if trees.is_folder(self._folder(shift)):
            return None
        return Problem(f"no folder for {shift.id}", where=str(self._folder(shift)), hint=self._mending(shift))

    def _mending(self, shift: Shift) -> str:
        """How to mend a tree without a shift's folder, by the usual causes."""
        if not self.root.is_dir():
            return trees.WITHOUT
        names = folders(self.root)
        archive = next((name for name, held in ARCHIVES.items() if shift.name in held), "")
        if (self.root / archive).is_file():
            return unpacking(self.root, [archive])
        deeper = [name for name in names if (self.root / name / shift.name).is_dir()]
        if deeper:
            inside, root = shlex.quote(str(self.root / deeper[0])), shlex.quote(str(self.root))
            return f"it lies in {deeper[0]}: name that folder if all do, or move them up: mv {inside}/* {root}"
        if {"1", "2", "3", "4", "5"} & set(names):
            return f"this is the folder of one corruption: name the folder above, {self.root.parent}"
        return near_miss(shift.name, names) if names else "expected <root>/<corruption>/<severity>/<wnid>/*.JPEG"

    def found(self) -> list[Found]:
        """The folder whose images and classes count, the clean images, and those where files were left out."""
        found = [*self._index.found(), *(self.source.found() if isinstance(self.source, FolderImages) else [])]
        known = {each.folder for each in found}
        for folder in [self._folder(shift) for shift in self._shifts]:
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
                if problem := self._no_folder(shift):
                    return problem
                folder = self._folder(shift)
                present = listing(folder).paths
        except UsageError as error:
            return error.problems[0]
        if self._shifts and shift == self._shifts[0]:
            return self._incomplete_first()
        return _absent(self.ids, present, folder)

    def _incomplete_first(self) -> Problem | None:
        """Where another shift has images that the first, whose images count, lacks: all must have the same."""
        first = self._folder(self._shifts[0])
        for other in self._shifts[1:]:
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

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        folder, geometry = self._files(shift)
        contents = file_contents(folder, [self.ids[i] for i in rows], self.labels[rows], geometry, digests)
        return {"kind": "imagenet_c", "shift": shift.id, **contents}

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        folder, geometry = self._files(shift)
        return np.stack([decode_file(folder / self.ids[i], geometry, self.side) for i in index])


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
