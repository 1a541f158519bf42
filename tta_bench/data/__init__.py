"""Where images come from: data sets, of which each kind is a plugin in ``kinds``, their corruptions, and their cache."""

from __future__ import annotations

from tta_bench.data.base import CleanImages, DataConfig, DataRequest, Dataset, Geometry
from tta_bench.data.generated import Generated
from tta_bench.errors import Problem, UsageError
from tta_bench.registry import DATASETS, Registry, blamed

__all__ = ["CleanImages", "DataConfig", "DataRequest", "Dataset", "Geometry", "corrupted_source", "open_data"]


def open_data(config: DataConfig, request: DataRequest, registry: Registry) -> Dataset:
    """The data set that a suite describes; lists files, decodes nothing.

    Raises:
        UsageError: the data are not there, or not of the expected form.
    """
    cls: type[Dataset] = registry.load(config.kind, DATASETS)
    with blamed(DATASETS, config.kind, cls, "be opened"):
        return cls(config, request)  # type: ignore[call-arg]


def corrupted_source(dataset: Dataset, seed: int) -> Generated:
    """A data set's source images under any corruption, for pre-training; never its test images.

    Raises:
        UsageError: it has no source images.
    """
    if dataset.source is None:
        hint = "name a folder (data: {…, source: PATH}), or set a part of the images apart (source_fraction: 0.25)"
        raise UsageError(Problem("the suite names no source images", hint=hint))
    return Generated(dataset.source, None, strengths=dataset.strengths, seed=seed, title=f"{dataset.title}, source")
