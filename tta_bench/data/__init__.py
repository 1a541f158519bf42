"""Where images come from: image folders, ImageNet-C trees, CIFAR arrays, the embedded digits; and their cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from tta_bench.data.arrays import CifarC, CifarCPart, DigitsPart, embedded_digits
from tta_bench.data.base import IMAGENET_GEOMETRY, CleanImages, DataPart, Dataset, Geometry
from tta_bench.data.folder import FolderImages, FolderPart, ImageNetC, ImageNetCPart
from tta_bench.data.generated import Generated
from tta_bench.streams import CLEAN, Shift

__all__ = ["CleanImages", "DataSpec", "Dataset", "Geometry", "open_data"]

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
    test_images = FolderImages(part.root, geometry[part.preprocess])
    source_images = FolderImages(part.source, geometry[part.preprocess]) if part.source else None
    return Generated(
        test_images,
        source_images,
        strengths=part.strengths,
        seed=part.seed,
        name="ImageNet-C (generated)" if part.strengths == "imagenet" else "CIFAR-10-C (generated)",
        recompress_jpeg=part.recompress_jpeg,
    )
