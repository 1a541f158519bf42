"""The interface of a data set. Nothing here imports torch, so that processes that decode images start quickly."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from tta_bench.data import trees
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.digests import Digests
from tta_bench.data.geometry import Geometry, ImageFiles
from tta_bench.data.listing import counted, order_remark
from tta_bench.data.reference import PublishedSet
from tta_bench.errors import Problem
from tta_bench.files import is_file
from tta_bench.registry import Portable
from tta_bench.streams import CLEAN, Shift


def _existing_folder(path: str) -> str:
    if path and not trees.is_folder(path):  # empty: an unset variable, reported separately
        raise ValueError(f"no such folder: {path}")
    return path


def _existing_file(path: str) -> str:
    if path and not is_file(path):
        raise ValueError(f"no such file: {path}")
    return path


FolderPath = Annotated[str, AfterValidator(_existing_folder)]
FilePath = Annotated[str, AfterValidator(_existing_file)]


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Of the type of a field, which may also be optional."""
    yield from field.metadata
    for part in get_args(field.annotation):
        yield from getattr(part, "__metadata__", ())


class DataConfig(Portable, BaseModel):
    """The ``data`` of a suite; each kind of data adds its own fields.

    Attributes:
        kind: the registered name.
        max_images: size of the seeded subset of each shift's images, or None for all.
        seed: draws the subset and seeds generated corruptions; independent of the trials' seeds.
        source_key: the key that names the folder of the source images.
    """

    source_key: ClassVar[str] = "source"

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    max_images: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    @property
    def by_weights(self) -> bool:
        """Whether images get the size and crop published with a model's weights."""
        return False

    @property
    def by_labels(self) -> bool:
        """Whether labels depend on the names of a model's classes."""
        return False

    def shift_names(self) -> Sequence[str]:
        """What a suite may list under ``corruptions``: by default clean images, and the 19 corruptions."""
        return (CLEAN.name, *NAMES)

    def shift(self, name: str, severity: int) -> Shift:
        """The shift that is one of these names, at a severity where it has any: by default all but clean images."""
        return CLEAN if name == CLEAN.name else Shift(name, severity)

    def shift_named(self, id: str) -> Shift | None:
        """The shift with this id, or None: ``clean``, ``fog-5``."""
        name, _, severity = id.rpartition("-")
        for known, at in ((id, 1), (name, int(severity) if severity in set("12345") else 0)):
            if known in self.shift_names() and at and (shift := self.shift(known, at)).id == id:
                return shift
        return None

    @classmethod
    def path_keys(cls, *types: Any) -> list[str]:
        """The keys that name a folder or a file; of ``types`` alone, such as :data:`FilePath`, where these are given."""
        marks = [mark for kind in types or (FolderPath, FilePath) for mark in get_args(kind)[1:]]
        return [key for key, field in cls.model_fields.items() if any(each in marks for each in _metadata(field))]

    @classmethod
    def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
        """The published data set of each key that names a folder or file, where it is one; of none by default.

        Args:
            given: the values of the suite's ``data``, of which some may be missing.
        """
        return {}

    def key_of(self, shift: Shift) -> str:
        """The key that names the folder of the images under ``shift``."""
        return "root"

    def usual_labels(self) -> Sequence[str] | None:
        """The names of the classes of the usual source models, for a look at the data without a model; or None."""
        return None


@dataclass(frozen=True)
class Found:
    """What opening a folder of images found; ``run.json`` has it.

    Attributes:
        folder: the folder.
        images: number of images in it.
        classes: names of the classes, in the order of their numbers; empty where another folder's count.
        left_out: how many files and folders are neither image nor class, by kind.
        numbers: the source model's class that each of ``classes`` is, where these are matched by name; else 0, 1, ….
        remembered: where the folder is absent here, the date of its listing, else empty.
    """

    folder: str
    images: int
    classes: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    numbers: Sequence[int] = ()
    remembered: str = ""

    def lines(self) -> list[str]:
        """In words, for the start of a run: the classes, and what was left out."""
        lines, folder = [], self.folder if self.folder.isprintable() else repr(self.folder)
        if self.classes:
            lines.append(f"{folder}: {len(self.classes)} classes, {self.order()}")
        if self.left_out:
            total = sum(self.left_out.values())
            lines.append(f"{folder}: {total:,} of {total + self.images:,} files left out: {counted(self.left_out)}")
        return lines

    def order(self, most: int = 2) -> str:
        """Which class the folders became, ``most`` of them: ``0 is 'cat', 9 is 'dog', matched by name``."""
        pairs = [*zip(self.numbers or range(len(self.classes)), self.classes, strict=True)]
        shown = pairs if len(pairs) <= most else [*pairs[: most - 1], pairs[-1]]
        remark = "matched by name" if self.numbers else order_remark(self.classes)
        return ", ".join([*(f"{number} is {name!r}" for number, name in shown), *([remark] if remark else [])])


def absent_lines(found: Sequence[Found]) -> list[str]:
    """In words, for the start of a run: which folders are absent here, in one line."""
    absent = [each for each in found if each.remembered]
    if not absent:
        return []
    more = f" and {len(absent) - 1} more folders" if absent[1:] else ""
    date = max(each.remembered for each in absent)
    return [f"not on this machine, taken from the image cache as listed on {date}: {absent[0].folder}{more}"]


class CleanImages(Portable, abc.ABC):
    """A list of labelled, uncorrupted images of one size.

    Attributes:
        ids: (N,) names that do not depend on the data's location.
        labels: (N,) int64 class indices.
        num_classes: number of classes.
        side: height and width in pixels.
    """

    ids: Sequence[str]
    labels: np.ndarray
    num_classes: int
    side: int

    @abc.abstractmethod
    def decode(self, index: int) -> np.ndarray:
        """Image ``index``: uint8 (side, side, 3).

        Raises:
            UsageError: the file is damaged or of another size; the message names it.
        """

    @abc.abstractmethod
    def fingerprint(self, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        """The identity of images ``rows`` (n,): ids, contents and labels; no absolute path.

        Raises:
            UsageError: a file cannot be read.
        """

    def found(self) -> list[Found]:
        """What opening the images found in folders; nothing by default."""
        return []

    def files(self) -> ImageFiles | None:
        """The files that the images are in, one each; None where they are in arrays."""
        return None

    def all_rows(self) -> np.ndarray:
        """The indices of all images, (N,) int32."""
        return np.arange(len(self.ids), dtype=np.int32)


class ImageSubset(CleanImages):
    """A subset of clean images.

    Args:
        clean: the images.
        rows: (n,) indices of the subset.
    """

    def __init__(self, clean: CleanImages, rows: np.ndarray):
        self.clean, self.rows = clean, rows
        self.ids = [clean.ids[i] for i in rows]
        self.labels = clean.labels[rows]
        self.num_classes, self.side = clean.num_classes, clean.side

    def found(self) -> list[Found]:
        return self.clean.found()

    def files(self) -> ImageFiles | None:
        files = self.clean.files()
        return files and replace(files, names=self.ids)

    def decode(self, index: int) -> np.ndarray:
        return self.clean.decode(int(self.rows[index]))

    def fingerprint(self, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        return self.clean.fingerprint(self.rows[rows], digests)


@dataclass(frozen=True)
class DataRequest:
    """What a data set is opened for.

    Attributes:
        shifts: the shifts it will be read under.
        geometry: size and crop published with a model's weights, where ``Config.by_weights`` is set.
        labels: the names of a model's classes, in the order of its outputs, where they are known and ``Config.by_labels``
            is set.
    """

    shifts: tuple[Shift, ...]
    geometry: Geometry | None = None
    labels: tuple[str, ...] | None = None


class Dataset(Portable, abc.ABC):
    """Labelled images under the shifts of a suite; opening one lists files and decodes nothing.

    Subclass it with a ``name``, a ``Config`` and ``__init__(self, config, request)``, which raises UsageError where the
    data are missing or malformed.

    Attributes:
        name: the registered name, which a suite gives as ``kind``.
        title: its name in tables.
        source_note: how its source images were held out, or empty.
        note: a remark shown with the table ("generated, not ImageNet-C"), or empty.
        source: clean unlabelled images for methods that use source images, or None.
        mask_rule: the class mask where the suite asks for another than each shift's own classes: "none"; else empty.
        num_classes: of the source model, before any class mask.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[DataConfig]] = DataConfig
    title: str
    strengths: Literal["imagenet", "cifar"] = "imagenet"  # of corruptions generated from its source images
    note: str = ""
    source_note: str = ""
    mask_rule: str = ""
    ids: Sequence[str]
    labels: np.ndarray
    num_classes: int
    side: int
    source: CleanImages | None = None

    def labels_of(self, shift: Shift) -> np.ndarray:
        """The labels (n,) int64 of the images under ``shift``, in data order; the same for all by default."""
        return self.labels

    def found(self) -> list[Found]:
        """What opening the data found in folders, each once; for the start of a run and ``run.json``."""
        return []

    def files(self, shift: Shift) -> ImageFiles | None:
        """The files that the images under ``shift`` are made from, one each; None where they are in arrays."""
        return None

    def mask_of(self, shift: Shift) -> tuple[int, ...] | None:
        """The class mask under ``shift``: the model's classes that labels are indices of, (kept,); None: all of them."""
        return None

    @abc.abstractmethod
    def missing(self, shift: Shift) -> Problem | None:
        """Why ``shift`` is not available, or None; :data:`tta_bench.streams.COMPOUND` asks for any compound at all."""

    @abc.abstractmethod
    def fingerprint(self, shift: Shift, rows: np.ndarray, digests: Digests) -> dict[str, Any]:
        """The identity of images ``rows`` (n,) under ``shift``: ids, contents, labels, generator settings, libraries.

        Settings at their default are left out, so that a new setting does not change existing keys. That of
        :data:`tta_bench.streams.COMPOUND` covers all compounds, whose ids are in the stream's digest.

        Raises:
            UsageError: a file cannot be read.
        """

    @abc.abstractmethod
    def read(self, shift: Shift, index: np.ndarray) -> np.ndarray:
        """Decode and corrupt images ``index`` under ``shift``: uint8 (B, side, side, 3)."""

    def array(self, shift: Shift) -> np.ndarray | None:
        """All images under ``shift`` where they are on disk as one array; None: they go through the cache."""
        return None


def no_compounds(title: str) -> Problem:
    """The problem that stored images of one corruption cannot be given another at a fine severity."""
    hint = "choose a kind of data that makes its corruptions from clean images, such as folder or digits"
    return Problem(f"{title} has one published corruption at a time, the stream needs two in turn", hint=hint)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def named_contents(ids: Sequence[str], sha256: Sequence[str], labels: np.ndarray) -> dict[str, str]:
    """The part of a fingerprint with the ids, contents and labels of images (n,)."""
    return {"images": digest(list(zip(ids, sha256, strict=True))), "labels": digest(labels.tolist())}


def label_fault(labels: Any, num_classes: int) -> str:
    """What is wrong with labels, which should be (N,) whole numbers from 0 to ``num_classes`` − 1; or empty."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return f"labels must be an array of whole numbers, not {getattr(labels, 'dtype', type(labels).__name__)}"
    if labels.ndim != 1:
        return f"labels have shape {labels.shape}, expected one number for each image"
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if not len(outside):
        return ""
    first = int(outside[0])
    return f"label {labels[first]} of image {first} is no class: {num_classes} classes are 0 to {num_classes - 1}"
