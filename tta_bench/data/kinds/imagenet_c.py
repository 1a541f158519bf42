"""The official ImageNet-C tree (``<root>/<corruption>/<severity>/…``): 224 centre crop, no second resize."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from tta_bench.data.base import (
    IMAGENET_C_GEOMETRY,
    IMAGENET_GEOMETRY,
    DataConfig,
    DataRequest,
    Dataset,
    FolderPath,
    Geometry,
    decode_file,
    no_compounds,
)
from tta_bench.data.digests import Digests
from tta_bench.data.images import FolderImages, file_contents, listing
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift


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
        self.root = pathlib.Path(config.root).expanduser().resolve()
        self.source = FolderImages(config.source, IMAGENET_GEOMETRY) if config.source else None
        first = next((shift for shift in request.shifts if shift != CLEAN), None)
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
        if self._folder(shift).is_dir():
            return None
        names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        hint = near_miss(shift.name, names) if names else "expected <root>/<corruption>/<severity>/<wnid>/*.JPEG"
        return Problem(f"no folder for {shift.id}", where=str(self._folder(shift)), hint=hint)

    def missing(self, shift: Shift) -> Problem | None:
        if shift.stored == COMPOUND:
            return no_compounds(self.title)
        folder = self.root
        try:
            if shift == CLEAN:
                clean = self._clean()
                folder, present = clean.root, set(clean.ids)
            else:
                if problem := self._no_folder(shift):
                    return problem
                folder = self._folder(shift)
                present = set(listing(folder))
        except UsageError as error:
            return error.problems[0]
        absent = [path for path in self.ids if path not in present]
        if absent:
            return Problem(
                f"{len(absent)} of {len(self.ids)} images are missing, the first is {absent[0]}", where=str(folder)
            )
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
