"""Parts to a stream: batches are cut, flags are set; and a stream to the pieces that lie between its resets."""

from __future__ import annotations

import itertools
import json
import numbers
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tta_bench.errors import Problem, UsageError
from tta_bench.protocols.base import Part, Protocol, Source
from tta_bench.registry import PROTOCOLS, Registry, attributed
from tta_bench.streams import Segment, Shift, Stream, StreamSpec, subset

_KEPT = 4  # streams that are held, so that the trials of one are not built one by one


def assembled(protocol: Protocol, source: Source, graded_after: int | None = None) -> Stream:
    """The whole stream of a protocol.

    Args:
        protocol: with single values only in its Config.
        source: what it is made from.
        graded_after: as in :class:`tta_bench.streams.StreamSpec`.

    Raises:
        UsageError: the protocol's rule cannot be followed, gives no image, or gives what is no part of these shifts.
    """
    kind = protocol.config.kind
    _check_source(source)
    with attributed(PROTOCOLS, kind, type(protocol), "make its stream"):
        parts = list(protocol.parts(source))
    if wrong := next(_wrong(protocol, parts, source), None):
        raise UsageError(Problem(f"protocol {kind!r} {wrong}"))
    starts = [np.arange(0, len(part.image), source.batch_size) for part in parts]
    firsts = np.cumsum([0, *(len(s) for s in starts)])
    lengths = np.cumsum([0, *(len(part.image) for part in parts)])
    bounds = np.concatenate([s + offset for s, offset in zip(starts, lengths[:-1], strict=True)] + [lengths[-1:]])
    [adapt_images] = protocol.config.adapt_images
    return Stream(
        shifts=source.shifts,
        shift=np.concatenate([part.shift for part in parts]).astype(np.int16),
        image=np.concatenate([part.image for part in parts]).astype(np.int32),
        bounds=bounds.astype(np.int64),
        reset_before=_resets(protocol, firsts),
        adapt=np.concatenate([s < (adapt_images or len(p.image)) for s, p in zip(starts, parts, strict=True)]),
        segments=tuple(
            Segment(part.name, part.visit, int(first), int(last))
            for part, (first, last) in zip(parts, itertools.pairwise(firsts), strict=True)
        ),
        graded_after=graded_after,
        visits=_visits(parts),
    )


def _check_source(source: Source) -> None:
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


def _wrong(protocol: Protocol, parts: Sequence[Any], source: Source) -> Iterator[str]:
    """What is wrong with what a protocol says: what follows would wrap, break off, or silently mean something else."""
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
    if _outside(part.shift, len(source.shifts)).any():
        yield f"shift must be from 0 to {len(source.shifts) - 1}"
        return
    sizes = np.array([len(labels) for labels in source.labels])[part.shift]
    if (outside := _outside(part.image, sizes)).any():
        bad_one = int(np.argmax(outside))
        yield f"image {part.image[bad_one]} of shift {source.shifts[part.shift[bad_one]].id!r}, which has {sizes[bad_one]}"
    if part.visits is not None and _outside(part.visits, np.iinfo(np.int16).max + 1).any():
        yield f"visits must be from 0 to {np.iinfo(np.int16).max}"


def _whole_numbers(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "iu"


def _outside(values: np.ndarray, end: Any) -> np.ndarray:
    """(n,) bool, whether each value is not in [0, end)."""
    return (values < 0) | (values >= end)


def _resets(protocol: Protocol, firsts: np.ndarray) -> np.ndarray:
    """(batches,) bool; a stream's first batch never has the flag: a trial starts reset."""
    flags = np.zeros(int(firsts[-1]), dtype=bool)
    if protocol.resets == "segment":
        flags[firsts[1:-1]] = True
    return flags


def _visits(parts: Sequence[Part]) -> np.ndarray | None:
    if all(part.visits is None for part in parts):
        return None
    return np.concatenate([np.full(len(p.image), p.visit) if p.visits is None else p.visits for p in parts]).astype(
        np.int16
    )


def pieces(stream: Stream) -> Iterator[Stream]:
    """The stretches between resets, each a stream of the shifts that occur in it, numbered anew."""
    bounds = [0, *np.flatnonzero(stream.reset_before).tolist(), len(stream.adapt)]
    for first, last in itertools.pairwise(bounds):
        images = slice(int(stream.bounds[first]), int(stream.bounds[last]))
        used, shift = np.unique(stream.shift[images], return_inverse=True)
        yield replace(
            stream,
            shifts=tuple(stream.shifts[number] for number in used),
            shift=shift.astype(np.int16),
            image=stream.image[images],
            bounds=stream.bounds[first : last + 1] - stream.bounds[first],
            reset_before=np.concatenate([[False], stream.reset_before[first + 1 : last]]),
            adapt=stream.adapt[first:last],
            segments=tuple(
                replace(s, first=s.first - first, last=s.last - first)
                for s in stream.segments
                if first <= s.first < last
            ),
            visits=None if stream.visits is None else stream.visits[images],
            grades=None if stream.grades is None else stream.grades[images],
        )


class Streams:
    """Builds streams from their specs.

    Args:
        registry: where protocols are found.
        labels: (source model, shift) to the labels (n,) of the shift's images.
    """

    def __init__(self, registry: Registry, labels: Callable[[str, Shift], np.ndarray]):
        self._registry, self._labels = registry, labels
        self._built: OrderedDict[tuple[str, StreamSpec], list[Stream]] = OrderedDict()  # the pieces of each

    def build(self, model: str, spec: StreamSpec) -> Stream:
        """The stream of a spec over a source model's data."""
        return self._pieces(model, spec)[spec.piece]

    def specs(self, model: str, spec: StreamSpec) -> Iterator[tuple[StreamSpec, Stream]]:
        """A spec and a stream for each piece of the whole stream that ``spec`` describes."""
        for number, piece in enumerate(self._pieces(model, spec)):
            yield replace(spec, piece=number, shifts=piece.shifts, length=len(piece.image)), piece

    def _pieces(self, model: str, spec: StreamSpec) -> list[Stream]:
        whole = replace(spec, piece=0, shifts=(), length=0)
        if (model, whole) not in self._built:
            self._built[model, whole] = list(pieces(self._whole(model, whole)))
            if len(self._built) > _KEPT:
                self._built.popitem(last=False)
        return self._built[model, whole]

    def _whole(self, model: str, spec: StreamSpec) -> Stream:
        cls: type[Protocol] = self._registry.load(json.loads(spec.protocol)["kind"], PROTOCOLS)
        protocol = cls(cls.Config.model_validate_json(spec.protocol))
        labels = [self._labels(model, shift) for shift in spec.given]
        chosen = [subset(len(found), spec.subset, spec.data_seed) for found in labels]
        of_chosen = tuple(found[rows] for found, rows in zip(labels, chosen, strict=True))
        stream = assembled(protocol, Source(spec.given, of_chosen, spec.batch_size, spec.seed), spec.graded_after)
        image = np.empty_like(stream.image)
        for number, rows in enumerate(chosen):
            of_shift = stream.shift == number
            image[of_shift] = rows[stream.image[of_shift]]
        return replace(stream, image=image)
