"""CIFAR-10-C and CIFAR-100-C as published, and CIFAR's binary archive.

``<root>/<corruption>.npy`` holds 50,000 rows, severity by severity; ``<root>/labels.npy`` their labels.
"""

from __future__ import annotations

import pathlib
from typing import Any, Literal

import numpy as np

from tta_bench.data.base import DataConfig, DataRequest, Dataset, FolderPath, digest, no_compounds
from tta_bench.data.digests import Digests, Extent
from tta_bench.data.images import ArrayImages
from tta_bench.errors import Problem, UsageError, near_miss
from tta_bench.streams import CLEAN, COMPOUND, Shift

ROWS = 10_000  # test images of CIFAR: rows of each severity in a published array


def read_archive(folder: str, classes: int, part: Literal["train", "test"]) -> ArrayImages:
    """Read CIFAR's binary archive: records of 1 (CIFAR-100: 2) label bytes and 3,072 pixel bytes, planes R, G, B.

    Raises:
        UsageError: the files are missing or have the wrong size.
    """
    root = pathlib.Path(folder).expanduser()
    pattern = {"test": "test*.bin", "train": "data_batch_*.bin" if classes == 10 else "train.bin"}[part]
    files = sorted(root.glob(pattern))
    if not files:
        hint = "unpack CIFAR's binary version there (not the Python one)"
        raise UsageError(Problem(f"no {pattern} in the archive's folder", where=str(root), hint=hint))
    label_bytes = 1 if classes == 10 else 2
    raw = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files])
    if raw.size % (label_bytes + 3072):
        raise UsageError(
            Problem("the archive is damaged: its size is not a multiple of the record size", where=str(root))
        )
    records = raw.reshape(-1, label_bytes + 3072)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ids = [f"{part}/{i}" for i in range(len(records))]
    return ArrayImages(np.ascontiguousarray(images), records[:, label_bytes - 1], ids, classes)


class CifarC(Dataset):
    """The published CIFAR-10-C and CIFAR-100-C arrays, memory-mapped.

    Raises:
        UsageError: ``labels.npy`` is missing or has the wrong length.
    """

    name = "cifar_c"

    class Config(DataConfig):
        """Attributes:
        root: their folder.
        classes: 10 or 100.
        archive: the folder of CIFAR's binary archive (``cifar-10-batches-bin`` or ``cifar-100-binary``), for ``clean``
            and for methods that use source images.
        """

        root: FolderPath
        classes: Literal[10, 100] = 10
        archive: FolderPath | None = None

    def __init__(self, config: Config, request: DataRequest):
        self.root = pathlib.Path(config.root).expanduser().resolve()
        self.title = f"CIFAR-{config.classes}-C"
        self.num_classes, self.side, self.strengths = config.classes, 32, "cifar"
        self.labels = self._load("labels.npy")[:ROWS].astype(np.int64)
        self.ids = [str(row) for row in range(ROWS)]
        self._clean = read_archive(config.archive, config.classes, "test") if config.archive else None
        self.source = read_archive(config.archive, config.classes, "train") if config.archive else None

    def _load(self, name: str) -> np.ndarray:
        path = self.root / name
        if not path.is_file():
            hint = near_miss(name, sorted(p.name for p in self.root.glob("*.npy")))
            raise UsageError(Problem(f"no {name} in the folder", where=str(self.root), hint=hint))
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise UsageError(Problem(f"not a readable array: {error}", str(path), hint="download it again")) from error
        if len(array) != 5 * ROWS:
            message = f"array has {len(array)} rows, expected {5 * ROWS} (five severities)"
            raise UsageError(Problem(message, where=str(path), hint="download it again"))
        return array

    def missing(self, shift: Shift) -> Problem | None:
        if shift.stored == COMPOUND:
            return no_compounds(self.title)
        if shift == CLEAN:
            hint = "name the folder of CIFAR's binary archive: data: {…, archive: PATH}"
            return None if self._clean else Problem("the arrays hold no clean images", where=str(self.root), hint=hint)
        try:
            self._load(f"{shift.name}.npy")
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
        path, array = self._file(shift), self._load(self._file(shift).name)
        if not isinstance(array, np.memmap) or not array.flags.c_contiguous:  # the severity's rows are not contiguous
            return Extent(str(path))
        size = array[:ROWS].nbytes
        return Extent(str(path), array.offset + (int(shift.severity or 0) - 1) * size, size)

    def array(self, shift: Shift) -> np.ndarray:
        if shift == CLEAN and self._clean:
            return self._clean.images
        start = (int(shift.severity or 0) - 1) * ROWS
        return self._load(self._file(shift).name)[start : start + ROWS]

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.array(shift)[index])
