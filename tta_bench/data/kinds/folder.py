"""A clean image folder, ``<root>/<class>/<image>`` or flat with a file of labels, corrupted on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tta_bench.data.base import CleanImages, DataConfig, DataRequest, FilePath, FolderPath, ImageSubset
from tta_bench.data.generated import Generated
from tta_bench.data.geometry import IMAGENET_GEOMETRY, Geometry
from tta_bench.data.images import FlatImages, FolderImages
from tta_bench.data.reference import OWN, PublishedSet
from tta_bench.streams import derived_seed


class Folder(Generated):
    """Images of a folder under generated corruptions."""

    name = "folder"

    class Config(DataConfig):
        """Attributes:
        root: test images, ``<root>/<class>/<image>``; class folders with numbers as names count in the order of these
            numbers, others in the order of their texts.
        labels: a file of labels where ``root`` holds the images directly: lines ``image,label``, or a label for each
            image in sorted order. A label is a number, or a name, whose classes are in the order of ``root``'s.
        labels_from: 0 or 1, the number of the first class there; needed where the file's numbers leave it open.
        classes: number of classes, where some have no image in ``labels``.
        source: clean images for methods that use source images, same layout; their labels are not used.
        source_fraction: without such a folder: the fraction of ``root`` to hold out as source images, drawn by the data
            seed; only the rest is tested on.
        strengths: "imagenet" (ImageNet-C's, for images of 32 pixels or more) or "cifar" (CIFAR-10-C's, 32×32).
        preprocess: "standard" (Resize 256, CenterCrop 224), "weights" (the size and crop that timm publishes with the
            model's weights), or "none" (images unchanged).
        recompress_jpeg: quality of a JPEG round trip after the corruption (ImageNet-C itself: 85), or None.
        """

        root: FolderPath
        labels: FilePath | None = None
        labels_from: Literal[0, 1] | None = None
        classes: Annotated[int, Field(ge=1)] | None = None
        source: FolderPath | None = None
        source_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
        strengths: Literal["imagenet", "cifar"] = "imagenet"
        preprocess: Literal["standard", "weights", "none"] = "standard"
        recompress_jpeg: Annotated[int, Field(ge=1, le=100)] | None = None

        @model_validator(mode="after")
        def _one_source(self) -> Folder.Config:
            if self.source is not None and self.source_fraction is not None:
                raise PydanticCustomError("source", "give source: (a folder) or source_fraction:, not both")
            return self

        @model_validator(mode="after")
        def _of_labels(self) -> Folder.Config:
            if self.labels is None and (self.labels_from is not None or self.classes is not None):
                raise PydanticCustomError("labels", "labels_from: and classes: need labels: (a file)")
            return self

        @classmethod
        def published(cls, given: Mapping[str, Any]) -> Mapping[str, PublishedSet]:
            return {
                "root": PublishedSet("test images", OWN, "<class>/<image>, or flat with labels: FILE"),
                "labels": PublishedSet("labels of the test images", OWN, "lines image,label"),
                "source": PublishedSet("source images", OWN, "<class>/<image>"),
            }

        @property
        def by_weights(self) -> bool:
            return self.preprocess == "weights"

    def __init__(self, config: Config, request: DataRequest):
        published = request.geometry or IMAGENET_GEOMETRY
        geometry = {"standard": IMAGENET_GEOMETRY, "none": Geometry(), "weights": published}[config.preprocess]
        test, source = _folders(config, geometry)
        super().__init__(
            test,
            source,
            strengths=config.strengths,
            seed=config.seed,
            title="ImageNet-C (generated)" if config.strengths == "imagenet" else "CIFAR-10-C (generated)",
            recompress_jpeg=config.recompress_jpeg,
        )
        if config.source_fraction:
            self.source_note = f"a seeded part ({config.source_fraction}) of the folder whose rest is tested on"


def _folders(config: Folder.Config, geometry: Geometry) -> tuple[CleanImages, CleanImages | None]:
    """(test images, source images): two folders, or two parts of one folder."""
    images: CleanImages = (
        FolderImages(config.root, geometry)
        if config.labels is None
        else FlatImages(config.root, config.labels, config.labels_from, config.classes, geometry)
    )
    if config.source:
        return images, FolderImages(config.source, geometry)
    if config.source_fraction is None:
        return images, None
    order = np.random.default_rng(derived_seed("source_fraction", config.seed)).permutation(len(images.ids))
    held_out = round(config.source_fraction * len(order))
    return ImageSubset(images, np.sort(order[held_out:])), ImageSubset(images, np.sort(order[:held_out]))
