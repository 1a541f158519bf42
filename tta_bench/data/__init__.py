"""Where images come from: image folders, ImageNet-C trees, CIFAR arrays, the embedded digits; and their cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field

from tta_bench.data.arrays import CifarC, CifarCPart, DigitsPart, embedded_digits
from tta_bench.data.base import IMAGENET_GEOMETRY, CleanImages, DataPart, Dataset, Geometry, SomeImages
from tta_bench.data.folder import FolderImages, FolderPart, ImageNetC, ImageNetCPart
from tta_bench.data.generated import Generated
from tta_bench.errors import Problem, UsageError
from tta_bench.streams import CLEAN, Shift, derived_seed

__all__ = ["CleanImages", "DataSpec", "Dataset", "Geometry", "corrupted_source", "open_data"]

DataSpec = Annotated[FolderPart | ImageNetCPart | CifarCPart | DigitsPart, Field(discriminator="kind")]


def open_data(part: DataPart, shifts: Iterable[Shift], weights_geometry: Geometry | None = None) -> Dataset:
    """The data set that a suite describes; lists files, decodes nothing.

    Args:
        part: the suite's ``data``.
        shifts: the shifts that will be asked for.
        weights_geometry: size and crop published with a model's weights, for ``preprocess: weights``.

    Raises:
        UsageError: the data are not there, or not of the expected form.
    """
    if isinstance(part, DigitsPart):
        test, source = embedded_digits()
        return Generated(test, source, strengths=part.strengths, seed=part.seed, name="digits-C")
    if isinstance(part, CifarCPart):
        return CifarC(part)
    if isinstance(part, ImageNetCPart):
        return ImageNetC(part, next((shift for shift in shifts if shift != CLEAN), None))
    assert isinstance(part, FolderPart)
    geometry = {"standard": IMAGENET_GEOMETRY, "none": Geometry(), "weights": weights_geometry or IMAGENET_GEOMETRY}
    test_images, source_images = _folders(part, geometry[part.preprocess])
    return Generated(
        test_images,
        source_images,
        strengths=part.strengths,
        seed=part.seed,
        name="ImageNet-C (generated)" if part.strengths == "imagenet" else "CIFAR-10-C (generated)",
        recompress_jpeg=part.recompress_jpeg,
    )


def _folders(part: FolderPart, geometry: Geometry) -> tuple[CleanImages, CleanImages | None]:
    """(test images, source images): two folders, or two parts of one."""
    images = FolderImages(part.root, geometry)
    if part.source:
        return images, FolderImages(part.source, geometry)
    if part.source_fraction is None:
        return images, None
    order = np.random.default_rng(derived_seed("source_fraction", part.seed)).permutation(len(images.ids))
    apart = round(part.source_fraction * len(order))
    return SomeImages(images, np.sort(order[apart:])), SomeImages(images, np.sort(order[:apart]))


def corrupted_source(dataset: Dataset, seed: int) -> Generated:
    """A data set's source images under any corruption, for pre-training; never its test images.

    Raises:
        UsageError: it has no source images.
    """
    if dataset.source is None:
        hint = "name a folder (data: {…, source: PATH}), or set a part of the images apart (source_fraction: 0.25)"
        raise UsageError(Problem("the suite names no source images", hint=hint))
    return Generated(dataset.source, None, strengths=dataset.strengths, seed=seed, name=f"{dataset.name}, source")
