"""The names of a source model's classes, in the order of its outputs: what class masks are matched by."""

from __future__ import annotations

import functools
import importlib.util
import pathlib

from tta_bench.errors import Problem, UsageError

LABELS = "labels"  # ``where`` of a problem with the names of a model's classes
IMAGENET = "imagenet"  # the word for the 1,000 classes of ImageNet-1k, by WordNet id


def read_labels(labels: str) -> tuple[str, ...]:
    """The names of classes: those of ImageNet for :data:`IMAGENET`, else the lines of the file ``labels``.

    Raises:
        UsageError: there is no such file, or it repeats a name.
    """
    if labels == IMAGENET:
        return imagenet_labels()
    try:
        names = tuple(
            line.strip() for line in pathlib.Path(labels).expanduser().read_text(encoding="utf-8").splitlines()
        )
    except (OSError, ValueError) as error:
        hint = f"write labels: {IMAGENET}, or a text file with the name of a class on each line"
        raise UsageError(Problem(f"the names of the classes cannot be read: {error}", labels, hint=hint)) from error
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        hint = "give each class one line, in the order of the model's outputs"
        raise UsageError(Problem(f"the class {repeated[0]!r} is listed twice", labels, hint=hint))
    return names


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k in the usual order of classes, sorted.

    timm ships them; its file is located without importing it, which takes seconds.

    Raises:
        UsageError: timm is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("timm")
    folder = pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path("timm")
    file = folder / "data" / "_info" / "imagenet_synsets.txt"
    try:
        return tuple(file.read_text(encoding="utf-8").split())
    except OSError as error:
        hint = "pip install 'timm>=1.0'"
        raise UsageError(Problem(f"timm's list of ImageNet's classes cannot be read: {error}", hint=hint)) from error
