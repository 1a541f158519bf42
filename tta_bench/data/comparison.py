"""How data on disk differ from the published set, by numbers of images and names of classes; nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tta_bench.data.base import DataConfig, Dataset
from tta_bench.data.matched import listed
from tta_bench.data.reference import PublishedSet
from tta_bench.streams import Shift


def counts(dataset: Dataset, shifts: Iterable[Shift]) -> dict[Shift, int]:
    """The number of images under each shift."""
    return {shift: len(dataset.labels_of(shift)) for shift in shifts}


def class_folders(dataset: Dataset, shift: Shift) -> list[str]:
    """The names of the folders that the images under a shift are in; none where they are flat or in arrays."""
    files = dataset.files(shift)
    return list(dict.fromkeys(name.split("/", 1)[0] for name in files.names if "/" in name)) if files else []


def differences(published: PublishedSet, dataset: Dataset, shifts: Sequence[Shift]) -> Iterator[str]:
    """What is not as published under ``shifts``, a sentence each."""
    yield from _images(published, counts(dataset, shifts))
    known = [*published.class_names()] if published.class_names else []
    told = set[str]()
    for shift in shifts:
        for line in _classes(published, known, dataset, shift):
            if line not in told:
                told.add(line)
                yield line


def _images(published: PublishedSet, found: Mapping[Shift, int]) -> Iterator[str]:
    other: dict[tuple[int, int], list[str]] = {}
    for shift, count in found.items():
        expected = published.images_under(shift)
        if expected is not None and count != expected:
            other.setdefault((count, expected), []).append(shift.id)
    for (count, expected), names in other.items():
        where = names[0] if len(names) == 1 else f"{len(names)} shifts, {names[0]} the first"
        yield f"{count:,} images, published {expected:,} ({where})"


def _classes(published: PublishedSet, known: Sequence[str], dataset: Dataset, shift: Shift) -> Iterator[str]:
    folders = class_folders(dataset, shift)
    if known and folders:
        if absent := sorted({*known} - {*folders}):
            yield f"{len(absent):,} of {len(known):,} classes have no folder: {listed(absent)}"
        if others := sorted({*folders} - {*known}):
            yield f"{len(others):,} folders are classes that {published.title} does not have: {listed(others)}"
        return
    number = len(np.unique(dataset.labels_of(shift)))
    if published.classes is not None and number != published.classes:
        yield f"{number:,} of {published.classes:,} classes have images ({shift.id})"


def unlike_published(config: DataConfig, dataset: Dataset, shifts: Sequence[Shift]) -> Iterator[str]:
    """How a suite's data differ from the published sets, for the start of a run: a line each."""
    sets = config.published(config.model_dump(mode="json"))
    for key in dict.fromkeys(config.key_of(shift) for shift in shifts):
        if published := sets.get(key):
            own = [shift for shift in shifts if config.key_of(shift) == key]
            yield from (
                f"unlike the published {published.title}: {line}" for line in differences(published, dataset, own)
            )
