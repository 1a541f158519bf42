"""Streams: a protocol becomes an ordered list of batches, hashed and shared by all methods.

A batch is a list of (shift, image index), with two flags: ``reset_before`` and ``adapt``. A segment is a named run of
batches that is reported; no batch crosses its end, so its last batch may be short, as in the published loaders.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, order=True)
class Shift:
    """What was done to the images: nothing ("clean"), a corruption at a severity, a natural variant, or a compound.

    Attributes:
        name: of the corruption or variant.
        severity: 1 to 5, in quarters within a compound; None where the shift has none.
        family: "clean", "corruption", "compound", or what a kind of data calls its own: "natural", "domain", "C-bar", …
            Tables and means are of one family.
        parts: of a compound, in the order in which they are applied; its images are made from clean ones as they are
            needed, and are never cached.
    """

    name: str
    severity: int | float | None = None
    family: str = "corruption"
    parts: tuple[Shift, ...] = ()

    @classmethod
    def compound(cls, *parts: Shift) -> Shift:
        """One corruption or several, one after another."""
        return cls("+".join(part.name for part in parts), None, "compound", parts)

    @property
    def stored(self) -> Shift:
        """The shift whose digest covers its images: itself, or for a compound :data:`COMPOUND`."""
        return COMPOUND if self.parts else self

    @property
    def id(self) -> str:
        """``clean``, or for example ``contrast-5``, or ``gaussian_noise-2.25+fog-1.5``."""
        if self.parts:
            return "+".join(part.id for part in self.parts)
        return self.name if self.severity is None else f"{self.name}-{self.severity:g}"


CLEAN = Shift("clean", None, "clean")
COMPOUND = Shift("compound", None, "compound")  # stands for every compound: one digest covers the images of all


def shift_of(id: str) -> Shift:
    """The shift that an id names: what follows its last ``-`` is the severity, where it is a number."""
    if id == CLEAN.id:
        return CLEAN
    name, _, severity = id.rpartition("-")
    return Shift(name, int(severity)) if name and severity.isdigit() else Shift(id, None, "variant")


def derived_seed(*axes: object) -> int:
    """A 63-bit seed from named axes, such as ("order", seed, shift): equal axes give equal draws, anything else others."""
    text = json.dumps(axes, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class StreamSpec:
    """How a stream is made; :class:`tta_bench.protocols.Streams` makes it.

    Attributes:
        protocol: canonical JSON of the protocol's Config, of which ``kind`` names the plugin.
        given: the shifts that the protocol gets, in order.
        subset: how many images of each shift are used, or None for all; drawn by ``data_seed``, so that trial seeds share
            them.
        data_seed: the data's seed.
        batch_size: images in a batch; a segment's last may be smaller.
        seed: the trial's seed, which orders the images.
        graded_after: images of a segment before the part that ``error_after_pct`` is over; None where there is none.
        piece: which stretch of the protocol's whole stream, where it is reset before each segment.
        shifts: those that occur, in the order of their numbers in the stream.
        length: images in the stream.
    """

    protocol: str
    given: tuple[Shift, ...]
    subset: int | None
    data_seed: int
    batch_size: int
    seed: int
    graded_after: int | None = None
    piece: int = 0
    shifts: tuple[Shift, ...] = ()
    length: int = 0

    @property
    def cached(self) -> tuple[Shift, ...]:
        """The shifts whose images are cached: none in a stream of compounds, which are made as they are needed."""
        return () if any(shift.parts for shift in self.shifts) else self.shifts


@dataclass(frozen=True)
class Batch:
    """Attributes: shift: (B,) index into ``Stream.shifts``; image: (B,) image index; and the two flags."""

    shift: np.ndarray
    image: np.ndarray
    reset_before: bool
    adapt: bool


@dataclass(frozen=True)
class Segment:
    """A named run of batches, [first, last) in the stream; ``visit`` counts earlier segments of the same name.

    ``role`` is "stream", or "probe" for one that only asks how well earlier shifts are still recognised.
    """

    name: str
    visit: int
    first: int
    last: int
    role: str = "stream"


class Cell(NamedTuple):
    """What a row of the results is of: positions of a segment and of a shift in the stream, and the shift's visit."""

    segment: int
    shift: int
    visit: int


@dataclass(frozen=True)
class Stream:
    """An ordered list of batches, stored flat.

    Attributes:
        shifts: the shifts that occur.
        shift: (N,) int16, index into ``shifts`` of each image in stream order.
        image: (N,) int32, image index in stream order.
        bounds: (batches + 1,) int64, where each batch starts.
        reset_before, adapt: (batches,) bool.
        segments: in order, covering all batches.
        graded_after: as in the spec.
        visits: (N,) int16, how often each image's shift has been entered before; None where it is its segment's visit.
        grades: (N,) bool, false for images that are only context; None where all are graded.
    """

    shifts: tuple[Shift, ...]
    shift: np.ndarray
    image: np.ndarray
    bounds: np.ndarray
    reset_before: np.ndarray
    adapt: np.ndarray
    segments: tuple[Segment, ...]
    graded_after: int | None = None
    visits: np.ndarray | None = None
    grades: np.ndarray | None = None

    @functools.cached_property
    def segment(self) -> np.ndarray:
        """(batches,) int16, position of each batch's segment."""
        sizes = [s.last - s.first for s in self.segments]
        return np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)

    @functools.cached_property
    def visit(self) -> np.ndarray:
        """(N,) int16, how often the shift of each image has been entered before."""
        return self._visit_of_segments() if self.visits is None else self.visits

    @functools.cached_property
    def graded(self) -> np.ndarray:
        """(N,) bool, whether each image is graded."""
        return np.ones(len(self.image), dtype=bool) if self.grades is None else self.grades

    def _visit_of_segments(self) -> np.ndarray:
        """(N,) int16, the visit of each image's segment."""
        visits = np.array([s.visit for s in self.segments], dtype=np.int16)
        return np.repeat(visits[self.segment], np.diff(self.bounds))

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The rows of the results: by segment, then shift, then visit; those of graded images alone."""
        columns = [np.repeat(self.segment, np.diff(self.bounds)), self.shift, self.visit]
        starts = range(0, len(self.image), _PIECE)  # piece by piece, as sorting takes many times the memory
        pieces = [np.stack([c[i : i + _PIECE] for c in columns], axis=1)[self.graded[i : i + _PIECE]] for i in starts]
        places = np.concatenate([np.unique(piece, axis=0) for piece in pieces])
        return tuple(Cell(*map(int, place)) for place in np.unique(places, axis=0))

    def batch(self, index: int) -> Batch:
        """Batch number ``index``."""
        where = slice(int(self.bounds[index]), int(self.bounds[index + 1]))
        return Batch(self.shift[where], self.image[where], bool(self.reset_before[index]), bool(self.adapt[index]))

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of everything in the stream, in hexadecimal."""
        digest = hashlib.sha256()
        names = [s.id for s in self.shifts]
        segments = [(s.name, s.visit, s.first, s.last, *_unless("stream", s.role)) for s in self.segments]
        graded = _unless(None, self.graded_after)
        digest.update(json.dumps([names, segments, *graded], separators=(",", ":")).encode())
        for array in (self.shift, self.image, self.bounds, self.reset_before, self.adapt):
            digest.update(np.ascontiguousarray(array).data)
        if self.visits is not None and not np.array_equal(self.visits, self._visit_of_segments()):
            digest.update(b"visit")  # only where it is not trivial, so that earlier digests stay
            digest.update(np.ascontiguousarray(self.visits, dtype=np.int16).data)
        if self.grades is not None and not self.grades.all():
            digest.update(b"graded")
            digest.update(np.ascontiguousarray(self.grades, dtype=bool).data)
        return digest.hexdigest()


_PIECE = 1 << 20  # images


def _unless(trivial: Any, value: Any) -> list[Any]:
    """The value, where it is not the trivial one."""
    return [] if value == trivial else [value]


@functools.lru_cache(maxsize=64)
def subset(images: int, size: int | None, data_seed: int) -> np.ndarray:
    """(size,) int32 sorted image indices drawn by ``data_seed``; a smaller subset lies inside a larger one."""
    if size is None or size >= images:
        return np.arange(images, dtype=np.int32)
    order = np.random.default_rng(derived_seed("subset", data_seed)).permutation(images)
    return np.sort(order[:size]).astype(np.int32)
