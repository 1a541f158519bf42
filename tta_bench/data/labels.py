"""The names of a source model's classes, in the order of its outputs: what class masks are matched by."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import re
from collections.abc import Mapping

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
def imagenet_labels(variant: str = IMAGENET) -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k in the usual order of classes, sorted; or of a variant, "imagenet_r" or "imagenet_a".

    timm ships them; its file is located without importing it, which takes seconds.

    Raises:
        UsageError: timm is not installed, or lacks the file.
    """
    return tuple(_timms(f"{variant}_synsets.txt").split())


@functools.cache
def imagenet_names() -> Mapping[str, str]:
    """The WordNet id of each name of ImageNet's classes, in small letters with blanks; ambiguous ones are left out.

    Raises:
        UsageError: timm is not installed, or lacks the file.
    """
    ids: dict[str, set[str]] = {}
    known = {*imagenet_labels()}
    for line in _timms("imagenet_synset_to_lemma.txt").splitlines():
        wnid, _, lemmas = line.partition("\t")
        for lemma in lemmas.split(",") if wnid in known else ():
            ids.setdefault(plain(lemma), set()).add(wnid)
    return {name: min(wnids) for name, wnids in ids.items() if len(wnids) == 1}


def plain(name: str) -> str:
    """A class's name in small letters, with blanks in place of other separators."""
    return " ".join(re.split(r"[\s_-]+", name.strip().lower()))


def _timms(name: str) -> str:
    """A file on ImageNet's classes that timm ships.

    Raises:
        UsageError: timm is not installed, or lacks it.
    """
    spec = importlib.util.find_spec("timm")
    folder = pathlib.Path(spec.origin).parent if spec and spec.origin else pathlib.Path("timm")
    try:
        return (folder / "data" / "_info" / name).read_text(encoding="utf-8")
    except OSError as error:
        hint = "pip install 'timm>=1.0'"
        raise UsageError(Problem(f"timm's list of ImageNet's classes cannot be read: {error}", hint=hint)) from error
