"""Labels of a flat folder's images, from a file.

A file with one column has a label a line, in the order of the sorted file names. One with two has ``image,label`` (or tabs
or spaces between them), with or without a header, in any order. A label is a class's number or its name.
"""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from tta_bench.data.listing import class_order
from tta_bench.errors import Problem, UsageError

_HEADERS = {"image", "images", "file", "filename", "file_name", "path", "name", "image_id", "imageid", "id", "img"}
_DEVKIT = ["490", "361", "171", "822", "297"]  # how the ground truth of ILSVRC 2012's development kit begins
_MOST = 1_000_000  # classes


def read_labels(
    file: pathlib.Path, images: Sequence[str], first: int | None, classes: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels (N,) int64 of ``images``, and the names of the classes.

    Args:
        file: the labels.
        images: (N,) sorted names of the images.
        first: the number of the first class, 0 or 1; None: where the file's numbers leave no doubt.
        classes: number of classes; None: as many as the file has.

    Raises:
        UsageError: the file cannot be read, an image has no label or two, or the numbers leave a doubt.
    """
    rows = _rows(file)
    texts = [row[0] for _, row in rows] if len(rows[0][1]) == 1 else _by_image(file, rows, images)
    if len(texts) != len(images):
        message = f"{len(texts):,} labels for {len(images):,} images"
        raise UsageError(Problem(message, str(file), hint="a list needs one line for each image, in sorted order"))
    if all(re.fullmatch(r"[+-]?\d+", text) for text in texts):
        return _numbered(file, texts, first, classes)
    names = class_order(set(texts), str(file))
    if classes is not None and len(names) != classes:
        raise UsageError(Problem(f"the labels name {len(names)} classes, not {classes}", str(file)))
    if first is not None:
        raise UsageError(Problem(f"labels_from is for numbers, these are names such as {texts[0]!r}", str(file)))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[text] for text in texts], dtype=np.int64), names


def _rows(file: pathlib.Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not empty, with one or two cells, the same number in all."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise UsageError(Problem(f"cannot read labels: {error}", str(file), hint="save it as UTF-8 text")) from error
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise UsageError(Problem("the file has no labels", str(file)))
    separator = next((mark for mark in ",\t" if mark in kept[0][1]), None)
    rows = [(number, _cells(line, separator)) for number, line in kept]
    width = len(rows[0][1])
    for number, cells in rows:
        if len(cells) != width or width > 2 or not all(cells):
            message = f"line {number} has {len(cells)} columns: expected image,label in every line, or one label a line"
            raise UsageError(Problem(message, str(file)))
    return rows


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.rsplit(None, 1)  # a file's name may have spaces
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]


def _by_image(file: pathlib.Path, rows: list[tuple[int, list[str]]], images: Sequence[str]) -> list[str]:
    """The label of each image, in the order of ``images``, of a file that names them."""
    known = {image: image for image in images}
    stems: dict[str, list[str]] = {}
    for image in images:
        stems.setdefault(pathlib.PurePath(image).stem, []).append(image)
    known |= {stem: named[0] for stem, named in stems.items() if len(named) == 1 and stem not in known}
    labels: dict[str, str] = {}
    for position, (number, (name, label)) in enumerate(rows):
        if name not in known:
            if position == 0 and name.lower() in _HEADERS:
                continue
            raise UsageError(Problem(f"line {number} names {name!r}, which is no image of the folder", str(file)))
        image = known[name]
        if image in labels:
            raise UsageError(Problem(f"line {number} gives image {name!r} a second label", str(file)))
        labels[image] = label
    if absent := [image for image in images if image not in labels]:
        message = f"{len(absent):,} of {len(images):,} images have no label, the first is {absent[0]!r}"
        raise UsageError(Problem(message, str(file)))
    return [labels[image] for image in images]


def _numbered(
    file: pathlib.Path, texts: Sequence[str], first: int | None, classes: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if list(texts[:5]) == _DEVKIT or "validation_ground_truth" in file.name:
        message = "the numbers of ILSVRC's development kit are not in the order of the networks' classes"
        hint = "give the classes' names (wnids) in place of numbers, or sort the images into folders of these names"
        raise UsageError(Problem(message, str(file), hint=hint))
    numbers = [int(text) for text in texts]
    low, high, distinct = min(numbers), max(numbers), len(set(numbers))
    starts = [first] if first is not None else _starts(low, high, distinct, classes)
    if len(starts) != 1:
        message = (
            f"numbers from {low} to {high}, {distinct} different ones, do not tell whether classes count from 0 or 1"
        )
        hint = "say it, and how many classes there are: data: {…, labels_from: 0, classes: N}"
        raise UsageError(Problem(message, str(file), hint=hint))
    [start] = starts
    count = classes or high - start + 1
    for number in (low, high):
        if not start <= number < start + min(count, _MOST):
            hint = f"classes count from {start} to {start + count - 1}"
            raise UsageError(Problem(f"label {number} is no class", str(file), hint=hint))
    names = tuple(str(start + number) for number in range(count))
    return np.array(numbers, dtype=np.int64) - start, names


def _starts(low: int, high: int, distinct: int, classes: int | None) -> list[int]:
    """The numbers that the first class may have: those where all classes occur, or all numbers fit ``classes``."""
    if classes is not None:
        return [start for start in (0, 1) if start <= low and high < start + classes]
    return [start for start in (0, 1) if start == low and high == start + distinct - 1]
