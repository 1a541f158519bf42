"""What protocols get and give is checked: anything wrong in it would wrap, break off, or silently mean something else."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_bench.errors import Problem, UsageError
from tta_bench.protocols.base import Batches, Part, Protocol, Source


def check_source(source: Source) -> None:
    """Refuse what no protocol can make a stream from.

    Raises:
        UsageError: there is no shift, one has no images or no labels of them, or a batch has no image.
    """
    if not source.shifts:
        raise UsageError(Problem("there is no shift to make a stream from"))
    if not isinstance(source.batch_size, numbers.Integral) or source.batch_size < 1:
        raise UsageError(Problem(f"the batch size must be a whole number from 1 on, it is {source.batch_size!r}"))
    for shift, labels in zip(source.shifts, source.labels, strict=True):
        if not len(labels):
            raise UsageError(Problem(f"shift {shift.id!r} has no images"))
        if not _whole_numbers(labels):
            raise UsageError(Problem(f"the labels of shift {shift.id!r} must be a row of whole numbers"))


def check_parts(protocol: Protocol, parts: Sequence[Any], source: Source) -> None:
    """Refuse parts that no stream can be assembled from.

    Raises:
        UsageError: what is wrong, and with which part.
    """
    for wrong in _wrong(protocol, parts, source):
        raise UsageError(Problem(f"protocol {protocol.config.kind!r} {wrong}"))


def _wrong(protocol: Protocol, parts: Sequence[Any], source: Source) -> Iterator[str]:
    if protocol.resets not in ("segment", "never"):
        yield f"resets {protocol.resets!r}: it must be 'segment' or 'never'"
    seen = Counter[str]()
    for number, part in enumerate(parts):
        if not isinstance(part, Part):
            yield f"yields {type(part).__name__} in place of part {number}"
            return
        yield from (f"yields a wrong part {number} ({part.name!r}): {what}" for what in _wrong_in(part, source))
        if part.visit != seen[part.name]:
            before = f"{seen[part.name]} parts before it have its name"
            yield f"says visit {part.visit!r} of part {number} ({part.name!r}), but {before}"
        seen[part.name] += 1
    if len(parts) > 1 and any(part.compounds for part in parts):
        yield "makes compounds in several parts: they must be in one"
    if not parts or not all(len(part.image) for part in parts):
        yield "makes a stream without images"


def _wrong_in(part: Part, source: Source) -> Iterator[str]:
    if not isinstance(part.name, str):
        yield "its name is no text"
    arrays = {"shift": part.shift, "image": part.image} | ({} if part.visits is None else {"visits": part.visits})
    if bad := [name for name, array in arrays.items() if not _whole_numbers(array)]:
        yield f"{bad[0]} must be a one-dimensional array of whole numbers"
        return
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        yield "of unequal length: " + ", ".join(f"{name} {length}" for name, length in lengths.items())
        return
    shifts = part.compounds or source.shifts
    if _outside(part.shift, len(shifts)).any():
        yield f"shift must be from 0 to {len(shifts) - 1}"
        return
    sizes = np.array([len(source.labels[0 if part.compounds else number]) for number in range(len(shifts))])[part.shift]
    if (outside := _outside(part.image, sizes)).any():
        bad_one = int(np.argmax(outside))
        yield f"image {part.image[bad_one]} of shift {shifts[part.shift[bad_one]].id!r}, which has {sizes[bad_one]}"
    if part.visits is not None and _outside(part.visits, np.iinfo(np.int16).max + 1).any():
        yield f"visits must be from 0 to {np.iinfo(np.int16).max}"
    if part.batches is not None:
        yield from _wrong_batches(part.batches, len(part.image))


def _wrong_batches(batches: Batches, images: int) -> Iterator[str]:
    starts = batches.starts
    if not (len(starts) and starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < images):
        yield f"its batches must rise from 0 within its {images} images"
    expected = {"reset_before": len(starts), "adapt": len(starts), "graded": images}
    if bad := [n for n, length in expected.items() if getattr(batches, n).shape != (length,)]:
        yield f"{bad[0]} of its batches must have {expected[bad[0]]} values"


def _whole_numbers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iu"


def _outside(values: np.ndarray, end: Any) -> np.ndarray:
    """(n,) bool, whether each value is not in [0, end)."""
    return (values < 0) | (values >= end)
