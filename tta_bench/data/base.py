"""The interface of a data set. Nothing here imports torch, so that processes that decode images start quickly."""

from __future__ import annotations

import abc
import hashlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tta_bench.data import trees
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.data.decoding import opened, rgb
from tta_bench.data.digests import Digests
from tta_bench.data.listing import counted, order_remark
from tta_bench.errors import Problem, UsageError
from tta_bench.registry import Portable
from tta_bench.streams import CLEAN, Shift


def _existing_folder(path: str) -> str:
    if path and not trees.is_folder(path):  # empty: an unset variable, reported separately
        raise ValueError(f"no such folder: {path}")
    return path


def _existing_file(path: str) -> str:
    if path and not pathlib.Path(path).expanduser().is_file():
        raise ValueError(f"no such file: {path}")
    return path


FolderPath = Annotated[str, AfterValidator(_existing_folder)]
FilePath = Annotated[str, AfterValidator(_existing_file)]


class DataConfig(Portable, BaseModel):
    """The ``data`` of a suite; each kind of data adds its own fields.

    Attributes:
        kind: the registered name.
        max_images: size of the seeded subset of each shift's images, or None for all.
        seed: draws the subset and seeds generated corruptions; independent of the trials' seeds.
    """

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


@dataclass(frozen=True)
class Geometry:
    """How a clean image becomes square: resize the shorter side to ``resize``, then take the centre ``crop``, in pixels.

    None skips that step. ``interpolation`` is Pillow's name for it.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def apply(self, image: Image.Image) -> Image.Image:
        """The square image, equal to that of torchvision's Resize and CenterCrop."""
        if self.resize is not None:
            short = min(image.size)
            width, height = (int(self.resize * side / short) if side != short else self.resize for side in image.size)
            if (width, height) != image.size:  # resize() would copy it
                image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop is not None:
            left, top = (round((side - self.crop) / 2.0) for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image


IMAGENET_C_GEOMETRY = Geometry(crop=224)
IMAGENET_GEOMETRY = Geometry(resize=256, crop=224)


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
            numbers = self.numbers or range(len(self.classes))
            remark = "matched by name" if self.numbers else order_remark(self.classes)
            ends = f"{numbers[0]} is {self.classes[0]!r}, {numbers[-1]} is {self.classes[-1]!r}"
            lines.append(f"{folder}: {len(self.classes)} classes, {ends}{f', {remark}' if remark else ''}")
        if self.left_out:
            total = sum(self.left_out.values())
            lines.append(f"{folder}: {total:,} of {total + self.images:,} files left out: {counted(self.left_out)}")
        return lines


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


def decode_file(path: pathlib.Path, geometry: Geometry, side: int | None) -> np.ndarray:
    """Decode one image file to uint8 (H, W, 3); see :mod:`tta_bench.data.decoding` for what is converted.

    Raises:
        UsageError: the file is missing or damaged, has pixels of 32 bits, is smaller than a crop of unresized images, or
            not ``side`` pixels square after the geometry; the message names it.
    """
    with opened(path) as image:
        width, height = image.size
        pixels = np.asarray(geometry.apply(rgb(image, path)))
    if geometry.crop is not None and geometry.resize is None and min(width, height) < geometry.crop:
        message = f"image is {width}x{height} pixels, smaller than its crop of {geometry.crop}x{geometry.crop}"
        raise UsageError(Problem(message, where=str(path), hint="these data are of another size: check the folder"))
    if side is not None and pixels.shape != (side, side, 3):
        hint = "resize or remove it, or choose a preprocess that gives all images one size"
        message = f"image is {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {side}x{side}"
        raise UsageError(Problem(message, where=str(path), hint=hint))
    return pixels


def recompress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """The image after a JPEG round trip at ``quality``, uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
