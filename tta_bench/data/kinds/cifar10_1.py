"""CIFAR-10.1: new test images for CIFAR-10's classes, in two versions, beside CIFAR-10 itself and CIFAR-10-C."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tta_bench.data import mending
from tta_bench.data.base import CleanImages, DataConfig, DataRequest, FolderPath
from tta_bench.data.images import ArrayImages
from tta_bench.data.kinds.cifar_c import archive_set, image_fault, plain_labels, read_archive
from tta_bench.data.matched import Matched
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, Shift

CLASSES = 10
VERSIONS = {"cifar10_1_v4": "v4", "cifar10_1_v6": "v6"}
SET = PublishedSet(
    "CIFAR-10.1",
    "https://github.com/modestyachts/CIFAR-10.1/tree/master/datasets",
    "cifar10.1_<version>_data.npy and cifar10.1_<version>_labels.npy",
    images={"cifar10_1_v4": 2021, "cifar10_1_v6": 2000},
    classes=CLASSES,
    steps=("download the two files of a version (v6, v4) into DIR/CIFAR-10.1",),
    folder="CIFAR-10.1",
    get="cifar10_1",
)


class Cifar101(Matched[CleanImages]):
    """The published arrays of CIFAR-10.1, ``cifar10.1_<version>_data.npy`` and ``cifar10.1_<version>_labels.npy``."""

    name = "cifar10_1"

    class Config(DataConfig):
        """Attributes:
        root: the folder of the arrays.
        archive: the folder of CIFAR-10's binary archive (``cifar-10-batches-bin``), for ``clean`` and for methods that use
            source images.
        """

        source_key = "archive"
        root: FolderPath
        archive: FolderPath | None = None

        def shift_names(self) -> Sequence[str]:
            return (CLEAN.name, *VERSIONS)

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            return {"root": SET, "archive": archive_set(CLASSES)}

        def key_of(self, shift: Shift) -> str:
            return "archive" if shift == CLEAN else "root"

        def shift(self, name: str, severity: int) -> Shift:
            return CLEAN if name == CLEAN.name else Shift(name, None, "natural")

    def __init__(self, config: Config, request: DataRequest):
        super().__init__("CIFAR-10.1")
        self.config = config
        self.num_classes, self.side, self.strengths = CLASSES, 32, "cifar"
        self.source = read_archive(config.archive, CLASSES, "train") if config.archive else None

    def open_images(self, shift: Shift) -> CleanImages:
        root = pathlib.Path(self.config.root).expanduser().resolve()
        if shift == CLEAN:
            if self.config.archive is None:
                hint = "name the folder of CIFAR's binary archive: data: {…, archive: PATH}"
                raise UsageError(Problem("the arrays hold no clean images", where=str(root), hint=hint))
            return read_archive(self.config.archive, CLASSES, "test")
        stem = f"cifar10.1_{VERSIONS[shift.name]}"
        images, labels = (_array(root / f"{stem}_{part}.npy") for part in ("data", "labels"))
        if fault := image_fault(images, len(images), root / f"{stem}_data.npy"):
            raise UsageError(fault)
        labels = plain_labels(labels, CLASSES, root / f"{stem}_labels.npy", len(images))
        return ArrayImages(images, labels, [f"{stem}/{row}" for row in range(len(images))], CLASSES)


def _array(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        there = [name for name in mending.names(path.parent) if name.endswith(".npy")]
        hint = mending.misplaced(path.parent, path.name) or near_miss(path.name, there)
        raise UsageError(Problem(f"no {path.name} in the folder", str(path.parent), hint=hint))
    try:
        array: np.ndarray = np.atleast_1d(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(Problem(f"not a readable array: {error}", str(path), hint="download it again")) from error
    return array
