"""Data sets (each kind a plugin in ``kinds``), their corruptions, and the image cache."""

from __future__ import annotations

from tta_bench.data.base import CleanImages, DataConfig, DataRequest, Dataset
from tta_bench.data.generated import Generated
from tta_bench.data.geometry import Geometry
from tta_bench.errors import Problem, UsageError
from tta_bench.registry import DATASETS, Registry, attributed

__all__ = ["CleanImages", "DataConfig", "DataRequest", "Dataset", "Geometry", "corrupted_source", "open_data"]


def open_data(config: DataConfig, request: DataRequest, registry: Registry) -> Dataset:
    """The data set that a suite describes; lists files, decodes nothing.

    Raises:
        UsageError: the data are missing or malformed.
    """
    cls: type[Dataset] = registry.load(config.kind, DATASETS)
    with attributed(DATASETS, config.kind, cls, "be opened"):
        return cls(config, request)  # type: ignore[call-arg]


def corrupted_source(dataset: Dataset, seed: int) -> Generated:
    """A data set's source images, never its test images, under any corruption; for pre-training.

    Raises:
        UsageError: it has no source images.
    """
    if dataset.source is None:
        hint = "name a folder (data: {…, source: PATH}), or hold out part of the images (source_fraction: 0.25)"
        raise UsageError(Problem("the suite names no source images", hint=hint))
    return Generated(dataset.source, None, strengths=dataset.strengths, seed=seed, title=f"{dataset.title}, source")
