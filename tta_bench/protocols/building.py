"""Specs to streams: a protocol's whole stream is assembled once, and cut into pieces where segments begin with a reset."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tta_bench.protocols.assembly import assembled
from tta_bench.protocols.base import Protocol, Source
from tta_bench.registry import PROTOCOLS, Registry
from tta_bench.streams import Shift, Stream, StreamSpec, subset

_KEPT = 4  # streams that are held, so that the trials of one are not built one by one
_LONG = 1_000_000  # images of a stream of which only one is held, and none while another is built


def pieces(stream: Stream, cuts: list[int]) -> Iterator[Stream]:
    """The stretches between some batches, each a stream of the shifts that occur in it, numbered anew."""
    bounds = [0, *cuts, len(stream.adapt)]
    for first, last in itertools.pairwise(bounds):
        images = slice(int(stream.bounds[first]), int(stream.bounds[last]))
        used, renumbered = np.unique(stream.shift[images]), np.zeros(len(stream.shifts), dtype=np.int16)
        renumbered[used] = np.arange(len(used))
        yield replace(
            stream,
            shifts=tuple(stream.shifts[number] for number in used),
            shift=renumbered[stream.shift[images]],
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
            long = [key for key, made in self._built.items() if sum(len(piece.image) for piece in made) > _LONG]
            for key in long:
                del self._built[key]
            self._built[model, whole] = list(self._made(model, whole))
            if len(self._built) > _KEPT:
                self._built.popitem(last=False)
        return self._built[model, whole]

    def _made(self, model: str, spec: StreamSpec) -> Iterator[Stream]:
        cls: type[Protocol] = self._registry.load(json.loads(spec.protocol)["kind"], PROTOCOLS)
        protocol = cls(cls.Config.model_validate_json(spec.protocol))
        stream = self._whole(protocol, model, spec)
        by_segment = protocol.reset == "segment"  # other resets are within a trial, whose random draws go on
        return pieces(stream, np.flatnonzero(stream.reset_before).tolist() if by_segment else [])

    def _whole(self, protocol: Protocol, model: str, spec: StreamSpec) -> Stream:
        labels = [self._labels(model, shift) for shift in spec.given]
        chosen = [subset(len(found), spec.subset, spec.data_seed) for found in labels]
        of_chosen = tuple(found[rows] for found, rows in zip(labels, chosen, strict=True))
        stream = assembled(protocol, Source(spec.given, of_chosen, spec.batch_size, spec.seed), spec.graded_after)
        if stream.shifts != spec.given:  # compounds, made from the images of the only shift
            return replace(stream, image=chosen[0][stream.image])
        image = np.empty_like(stream.image)
        for number, rows in enumerate(chosen):
            of_shift = stream.shift == number
            image[of_shift] = rows[stream.image[of_shift]]
        return replace(stream, image=image)
