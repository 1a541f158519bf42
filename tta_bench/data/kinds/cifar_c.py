"""CIFAR-10-C and CIFAR-100-C as published, and CIFAR's binary archive.

``<root>/<corruption>.npy`` holds 50,000 rows, severity by severity; ``<root>/labels.npy`` their labels.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tta_bench.data.base import DataConfig, DataRequest, Dataset, FolderPath, digest, label_fault, no_compounds
from tta_bench.data.digests import Digests, Extent
from tta_bench.data.images import ArrayImages
from tta_bench.data.mending import misplaced, rewriting
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift

SIDE = 32
ROWS = 10_000  # test images of CIFAR: rows of each severity in a published array


def image_fault(array: np.ndarray, rows: int, path: pathlib.Path) -> Problem | None:
    """The problem with an array that should be uint8 (rows, 32, 32, 3), or None."""
    expected = (rows, SIDE, SIDE, 3)
    if array.shape != expected:
        planes = array.shape == (rows, 3, SIDE, SIDE)
        mend = f"its planes come first: {rewriting(path, 'a.transpose(0, 2, 3, 1)')}"
        message = f"images have shape {array.shape}, expected {expected}"
        return Problem(message, str(path), hint=mend if planes else "download it again")
    if array.dtype != np.uint8:
        expression = "(a * 255).round().astype(np.uint8)" if array.dtype.kind == "f" else "a.astype(np.uint8)"
        scale = "fractions in [0, 1]" if array.dtype.kind == "f" else "whole numbers from 0 to 255"
        hint = f"if they are {scale}: {rewriting(path, expression)}"
        return Problem(f"images are of {array.dtype}, expected uint8 from 0 to 255", str(path), hint=hint)
    return None


def plain_labels(labels: np.ndarray, classes: int, path: pathlib.Path, rows: int) -> np.ndarray:
    """Labels (rows,) as whole numbers; a column (rows, 1) and whole floats are read as such.

    Raises:
        UsageError: they are one-hot, of another length, or not classes from 0 to ``classes`` − 1.
    """
    again = "download it again"
    if labels.shape == (len(labels), 1):
        labels = labels[:, 0]
    if labels.shape != (rows,):
        message = f"labels have shape {labels.shape}, expected {(rows,)}: the number of a class in each row"
        one_hot = labels.shape == (rows, classes)
        mend = f"one-hot rows become numbers: {rewriting(path, 'a.argmax(1)')}"
        raise UsageError(Problem(message, str(path), hint=mend if one_hot else again))
    if labels.dtype.kind == "f" and not (wrong := np.flatnonzero(labels != np.round(labels))).size:
        labels = labels.astype(np.int64)
    elif labels.dtype.kind == "f":
        message = f"label {labels[wrong[0]]} of row {wrong[0]} is no whole number"
        raise UsageError(Problem(message, str(path), hint=again))
    if fault := label_fault(labels, classes):
        from_one = labels.min() == 1 and labels.max() == classes
        hint = f"labels count from 0: subtract 1: {rewriting(path, 'a - 1')}" if from_one else again
        raise UsageError(Problem(fault, str(path), hint=hint))
    return labels


def corrupted_set(classes: int) -> PublishedSet:
    """CIFAR-10-C or CIFAR-100-C."""
    name = f"CIFAR-{classes}-C"
    return PublishedSet(
        name,
        f"https://zenodo.org/records/{2535967 if classes == 10 else 3555552}",
        "<corruption>.npy, 10,000 rows for each <severity>, and labels.npy",
        images=ROWS,
        classes=classes,
        steps=(f"tar -xf {name}.tar -C DIR",),
        folder=name,
        get=f"cifar{classes}_c",
    )


def archive_set(classes: int) -> PublishedSet:
    """CIFAR-10 or CIFAR-100, the binary version."""
    archive = f"cifar-{classes}-binary.tar.gz"
    return PublishedSet(
        f"CIFAR-{classes}, binary version",
        f"https://www.cs.toronto.edu/~kriz/{archive}",
        "data_batch_1.bin … data_batch_5.bin, test_batch.bin" if classes == 10 else "train.bin, test.bin",
        images=ROWS,
        classes=classes,
        steps=(f"tar -xf {archive} -C DIR",),
        folder="cifar-10-batches-bin" if classes == 10 else "cifar-100-binary",
        get=f"cifar{classes}",
    )


def read_archive(folder: str, classes: int, part: Literal["train", "test"]) -> ArrayImages:
    """Read CIFAR's binary archive: records of 1 (CIFAR-100: 2) label bytes and 3,072 pixel bytes, planes R, G, B.

    Raises:
        UsageError: the files are missing, have the wrong size, or hold a label that is no class.
    """
    root = pathlib.Path(folder).expanduser()
    pattern = {"test": "test*.bin", "train": "data_batch_*.bin" if classes == 10 else "train.bin"}[part]
    files = sorted(root.glob(pattern))
    if not files:
        hint = misplaced(root, pattern) or "unpack CIFAR's binary version there (not the Python one)"
        raise UsageError(Problem(f"no {pattern} in the archive's folder", where=str(root), hint=hint))
    label_bytes = 1 if classes == 10 else 2
    raw = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files])
    if raw.size % (label_bytes + 3072):
        raise UsageError(
            Problem("the archive is damaged: its size is not a multiple of the record size", where=str(root))
        )
    records = raw.reshape(-1, label_bytes + 3072)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ids, labels = [f"{part}/{i}" for i in range(len(records))], records[:, label_bytes - 1]
    if fault := label_fault(labels, classes):
        raise UsageError(Problem(f"the archive is damaged or another one: {fault}", where=str(root)))
    return ArrayImages(np.ascontiguousarray(images), labels, ids, classes)


class CifarC(Dataset):
    """The published CIFAR-10-C and CIFAR-100-C arrays, memory-mapped.

    Raises:
        UsageError: ``labels.npy`` is missing or holds anything but a class for each row, or the archive's test images
            are others.
    """

    name = "cifar_c"

    class Config(DataConfig):
        """Attributes:
        root: their folder.
        classes: 10 or 100.
        archive: the folder of CIFAR's binary archive (``cifar-10-batches-bin`` or ``cifar-100-binary``), for ``clean``
            and for methods that use source images.
        """

        source_key = "archive"
        root: FolderPath
        classes: Literal[10, 100] = 10
        archive: FolderPath | None = None

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            classes = 100 if given.get("classes") == 100 else 10
            return {"root": corrupted_set(classes), "archive": archive_set(classes)}

        def key_of(self, shift: Shift) -> str:
            return "archive" if shift == CLEAN else "root"

    def __init__(self, config: Config, request: DataRequest):
        self.root = pathlib.Path(config.root).expanduser().resolve()
        self.title = f"CIFAR-{config.classes}-C"
        self.num_classes, self.side, self.strengths = config.classes, SIDE, "cifar"
        self.labels = self._read_labels()
        self.ids = [str(row) for row in range(ROWS)]
        self._clean = read_archive(config.archive, config.classes, "test") if config.archive else None
        self.source = read_archive(config.archive, config.classes, "train") if config.archive else None
        if self._clean and not np.array_equal(self._clean.labels, self.labels):
            hint = "the arrays are of CIFAR's test images, in their order: check both folders"
            message = "the labels of the archive's test images are not those of labels.npy"
            raise UsageError(Problem(message, str(config.archive), hint=hint))

    def _read_labels(self) -> np.ndarray:
        """The class (10,000,) int64 of each test image, which ``labels.npy`` repeats for each severity."""
        path = self.root / "labels.npy"
        labels = plain_labels(self._load("labels.npy"), self.num_classes, path, 5 * ROWS)
        if self.num_classes == 100 and labels.max() < 10:
            hint = "classes: 10, or the folder of CIFAR-100-C"
            raise UsageError(Problem(f"labels go up to {labels.max()}: those of CIFAR-10-C?", str(path), hint=hint))
        severities = labels.reshape(5, ROWS)
        if other := [s for s in range(5) if not np.array_equal(severities[s], severities[0])]:
            message = f"the labels of severity {other[0] + 1} are not those of severity 1"
            raise UsageError(Problem(message, str(path), hint="download it again"))
        return severities[0].astype(np.int64)

    def _load(self, name: str) -> np.ndarray:
        path = self.root / name
        if not path.is_file():
            hint = misplaced(self.root, name) or near_miss(name, sorted(p.name for p in self.root.glob("*.npy")))
            raise UsageError(Problem(f"no {name} in the folder", where=str(self.root), hint=hint))
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:  # cut short, empty, or no array at all
            message = f"not a readable array: {str(error) or type(error).__name__} ({path.stat().st_size:,} bytes)"
            raise UsageError(Problem(message, str(path), hint="download it again")) from error
        if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) != 5 * ROWS:
            size = f"has {len(array):,} rows" if getattr(array, "ndim", 0) else "is none of rows"
            message = f"array {size}, expected {5 * ROWS:,} (five severities)"
            raise UsageError(Problem(message, where=str(path), hint="download it again"))
        return array

    def _load_images(self, name: str) -> np.ndarray:
        """The array of a corruption, uint8 (50,000, 32, 32, 3)."""
        array, path = self._load(name), self.root / name
        if fault := image_fault(array, 5 * ROWS, path):
            raise UsageError(fault)
        return array

    def missing(self, shift: Shift) -> Problem | None:
        if shift.stored == COMPOUND:
            return no_compounds(self.title)
        if shift == CLEAN:
            hint = "name the folder of CIFAR's binary archive: data: {…, archive: PATH}"
            return None if self._clean else Problem("the arrays hold no clean images", where=str(self.root), hint=hint)
        try:
            self._load_images(f"{shift.name}.npy")
        except UsageError as error:
            return error.problems[0]
        return None

    def _file(self, shift: Shift) -> pathlib.Path:
        return self.root / f"{shift.name}.npy"

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        if shift == CLEAN and self._clean:
            return self._clean.fingerprint(rows, digests)
        [array] = digests.of([self._extent(shift)])
        return {
            "kind": "cifar_c",
            "shift": shift.id,
            "array": array,
            "rows": digest(rows.tolist()),
            "labels": digest(self.labels[rows].tolist()),
        }

    def _extent(self, shift: Shift) -> Extent:
        """The bytes of a severity's images in the corruption's file."""
        path, array = self._file(shift), self._load_images(self._file(shift).name)
        if not isinstance(array, np.memmap) or not array.flags.c_contiguous:  # the severity's rows are not contiguous
            return Extent(str(path))
        size = array[:ROWS].nbytes
        return Extent(str(path), array.offset + (int(shift.severity or 0) - 1) * size, size)

    def array(self, shift: Shift) -> np.ndarray:
        if shift == CLEAN and self._clean:
            return self._clean.images
        start = (int(shift.severity or 0) - 1) * ROWS
        return self._load_images(self._file(shift).name)[start : start + ROWS]

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.array(shift)[index])
