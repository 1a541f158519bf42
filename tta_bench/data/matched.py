"""Data sets whose shifts have lists of images of their own, with classes that are matched to those of a source model."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from tta_bench.data.base import CleanImages, Dataset, Found, no_compounds
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import Geometry, ImageFiles
from tta_bench.data.images import FolderImages
from tta_bench.errors import Problem, UsageError
from tta_bench.streams import COMPOUND, Shift

_NAMED = 3  # folders in a message


class ClassFolders(FolderImages):
    """Images in folders that are named after classes.

    Args:
        root: the folder, ``<root>/<class>/<image>``.
        geometry: how images become square.
        classes: name of a folder to the source model's class, an index of its outputs.
        mending: how to mend folders of other names, from the root and these names; empty where it does not know.

    Attributes:
        labels: (N,) int64, the source model's classes.
        present: those that have images, ascending.

    Raises:
        UsageError: a folder is named after no class, or the folder has no images.
    """

    def __init__(
        self,
        root: str,
        geometry: Geometry,
        classes: Mapping[str, int],
        mending: Callable[[pathlib.Path, Sequence[str]], str] = lambda _root, _names: "",
    ):
        super().__init__(root, geometry)
        folders = [path.split("/", 1)[0] for path in self.ids]
        if unknown := [name for name in dict.fromkeys(folders) if name not in classes]:
            message = f"{len(unknown)} of {len(set(folders))} folders match no class: {listed(unknown)}"
            hint = f"remove or rename them; folders of classes have names such as {next(iter(classes), '')!r}"
            raise UsageError(Problem(message, str(self.root), hint=mending(self.root, unknown) or hint))
        self.labels = np.array([classes[name] for name in folders], dtype=np.int64)
        self.present = tuple(int(number) for number in np.unique(self.labels))
        self._names = tuple(sorted(dict.fromkeys(folders), key=lambda name: classes[name]))

    def found(self) -> list[Found]:
        [folder] = super().found()
        return [replace(folder, classes=self._names, numbers=self.present)]


Images = TypeVar("Images", bound=CleanImages)


class Matched(Dataset, Generic[Images]):
    """A data set of several lists of images, opened when they are needed; subclasses say which, and which classes.

    Args:
        title: its name in tables.
        mask_rule: see :class:`Dataset`.
    """

    def __init__(self, title: str, mask_rule: str = ""):
        self.title, self.mask_rule = title, mask_rule
        self._images: dict[Shift, Images] = {}
        self._labels: dict[Shift, np.ndarray] = {}

    @abc.abstractmethod
    def open_images(self, shift: Shift) -> Images:
        """The images under ``shift``; their labels are the source model's classes, before any mask.

        Raises:
            UsageError: they are missing or malformed.
        """

    def images_of(self, shift: Shift) -> Images:
        """The same, opened once.

        Raises:
            UsageError: they are missing or malformed.
        """
        if shift not in self._images:
            self._images[shift] = self.open_images(shift)
        return self._images[shift]

    def labels_of(self, shift: Shift) -> np.ndarray:
        """The labels (n,) int64 under ``shift``, in data order; indices into its class mask, where it has one."""
        if shift not in self._labels:
            labels, mask = self.images_of(shift).labels, self.mask_of(shift)
            self._labels[shift] = labels if mask is None else np.searchsorted(np.array(mask), labels)
        return self._labels[shift]

    def missing(self, shift: Shift) -> Problem | None:
        if shift.stored == COMPOUND:
            return no_compounds(self.title)
        try:
            self.images_of(shift)
        except UsageError as error:
            return error.problems[0]
        return None

    def found(self) -> list[Found]:
        lists: list[CleanImages] = [*self._images.values()]
        if self.source is not None and self.source not in lists:
            lists.append(self.source)
        return [each for images in lists for each in images.found()]

    def files(self, shift: Shift) -> ImageFiles | None:
        return self.images_of(shift).files()

    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        return {"kind": self.name, "shift": shift.id, **self.images_of(shift).fingerprint(rows, digests)}

    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        images = self.images_of(shift)
        return np.stack([images.decode(int(i)) for i in index])


def mask_of(kept: Sequence[int], classes: int) -> tuple[int, ...] | None:
    """A class mask of some of a model's classes, ascending; None where that is all of them."""
    ascending = tuple(sorted(kept))
    return None if ascending == tuple(range(classes)) else ascending


def positions_of(names: Sequence[str], labels: Sequence[str], where: str) -> tuple[int, ...]:
    """Where the classes ``names`` are among ``labels``, those of a source model.

    Raises:
        UsageError: the model lacks some; ``where`` is the data's folder, or :data:`tta_bench.data.labels.LABELS`.
    """
    known = {name: number for number, name in enumerate(labels)}
    if unknown := [name for name in names if name not in known]:
        message = f"{len(unknown)} of {len(names)} classes of the data are none of the model's: {listed(unknown)}"
        hint = f"its classes have names such as {labels[0]!r}; labels: FILE in the model's entry gives it others"
        raise UsageError(Problem(message, where, hint=hint))
    return tuple(known[name] for name in names)


def listed(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(repr, names[:_NAMED])) + (" …" if names[_NAMED:] else "")
