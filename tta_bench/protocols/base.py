"""What a protocol is: a rule that puts the images of some shifts in order, in parts.

A part becomes a segment: it is cut into batches, resets and adaptation flags are set, and that is the same for all
protocols (:mod:`tta_bench.protocols.assembly`).
"""

from __future__ import annotations

import abc
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from tta_bench.errors import Problem, UsageError, text_of
from tta_bench.files import expanded, is_file
from tta_bench.protocols.config import ProtocolConfig, ResetEvery
from tta_bench.streams import Shift, derived_seed


def refusal(key: str, message: str, hint: str = "") -> UsageError:
    """What to raise where a rule cannot be followed; ``key`` of the protocol is at fault."""
    return UsageError(Problem(message, where=key, hint=hint))


def loaded(key: str, path: str) -> Any:
    """The array of an ``.npy``, or the mapping of arrays of an ``.npz``, that ``key`` names.

    Raises:
        UsageError: there is no such file, or NumPy cannot read it.
    """
    file = expanded(path)
    if not is_file(file):
        raise refusal(key, f"no such file: {path}", f"relative paths start at {pathlib.Path.cwd()}")
    try:
        content = np.load(file, allow_pickle=False)
        return content if isinstance(content, np.ndarray) else dict(content)
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = text_of(error) or type(error).__name__
        raise refusal(key, f"{path} cannot be read: {reason}", "give an .npy or .npz that numpy.save wrote") from error


@dataclass(frozen=True)
class Pool:
    """Images of one or more shifts, shift by shift, each in data order.

    Attributes:
        shift: (n,) int16 positions in ``Source.shifts``.
        image: (n,) int32 positions in their shift's data order.
        label: (n,) class indices.
    """

    shift: np.ndarray
    image: np.ndarray
    label: np.ndarray

    def part(self, name: str, visit: int, order: Any) -> Part:
        """A part of the images at the positions ``order`` (m,)."""
        return Part(name, visit, self.shift[order], self.image[order])


@dataclass(frozen=True)
class Source:
    """What a protocol makes a stream from.

    Attributes:
        shifts: in the suite's order, without the probe's.
        labels: of each shift, (n,) int64 in data order; the order of images may depend on them, a method sees none.
        batch_size: images in a batch.
        seed: the trial's seed.
        probe: labels of the probe's shift; None where there is no probe.
    """

    shifts: tuple[Shift, ...]
    labels: Sequence[np.ndarray]
    batch_size: int
    seed: int
    probe: np.ndarray | None = None

    @property
    def all_labels(self) -> list[np.ndarray]:
        """Labels of all shifts, the probe's last."""
        return [*self.labels, *([] if self.probe is None else [self.probe])]

    @property
    def classes(self) -> int:
        """1 + the largest label of all shifts, the probe's included."""
        return 1 + max(int(labels.max()) for labels in self.all_labels)

    def rng(self, what: str, *axes: object) -> np.random.Generator:
        """A generator seeded by the seed and named axes: equal axes give equal draws, anything else others."""
        return np.random.default_rng(derived_seed(what, self.seed, *axes))

    def random_state(self) -> np.random.RandomState:
        """``RandomState(seed)``, as ``np.random.seed`` in published code sets it.

        Raises:
            UsageError: the seed does not fit.
        """
        if self.seed >= 2**32:
            what = f"seed {self.seed}: published code takes seeds below 2**32"
            raise refusal("variant", what, "choose smaller seeds, or leave variant out")
        return np.random.RandomState(self.seed)

    def pool(self, shifts: Sequence[int]) -> Pool:
        """All images of some shifts, given by their positions."""
        labels = [self.labels[number] for number in shifts]
        sizes = [len(of_shift) for of_shift in labels]
        shift = np.repeat(np.asarray(shifts, dtype=np.int16), sizes)
        image = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        return Pool(shift, image, np.concatenate(labels))

    def shuffled(self, name: str, visit: int, shifts: Sequence[int]) -> Part:
        """All images of some shifts, given by their positions, as one part in an order drawn for it."""
        pool = self.pool(shifts)
        return pool.part(name, visit, self.rng("order", name, visit).permutation(len(pool.image)))


@dataclass(frozen=True)
class Batches:
    """How a part is cut, where its protocol says so itself.

    Attributes:
        starts: (batches,) int64, where each begins in the part; the first at 0.
        reset_before, adapt: (batches,) bool.
        graded: (n,) bool, false for images that are only context.
    """

    starts: np.ndarray
    reset_before: np.ndarray
    adapt: np.ndarray
    graded: np.ndarray


@dataclass(frozen=True)
class Part:
    """A named stretch of a stream, which becomes a segment.

    Attributes:
        name: of the segment.
        visit: how many earlier parts have the same name.
        shift: (n,) positions in ``Source.shifts`` of each image, in order.
        image: (n,) positions of the images in their shift's data order.
        visits: (n,) how often each image's shift was entered before, where that is not ``visit`` for all; else None.
        compounds: what ``shift`` has positions in, where a protocol makes other shifts from the images of the source's
            only one, and this is its only part; else None.
        batches: its batches with their flags; None where the batch size and the suite's rules say them.
    """

    name: str
    visit: int
    shift: np.ndarray
    image: np.ndarray
    visits: np.ndarray | None = None
    compounds: tuple[Shift, ...] | None = None
    batches: Batches | None = None

    def __getitem__(self, rows: Any) -> Part:
        """The part of some of its images: a slice, or their positions in order."""
        visits = None if self.visits is None else self.visits[rows]
        return replace(self, shift=self.shift[rows], image=self.image[rows], visits=visits)


def joined(parts: Sequence[Part], name: str = "stream") -> Part:
    """One part of several, whose batches are cut across their borders; each image keeps the visit of its own."""
    visits = np.concatenate([np.full(len(part.image), part.visit, dtype=np.int16) for part in parts])
    shift, image = (np.concatenate([getattr(part, field) for part in parts]) for field in ("shift", "image"))
    return Part(name, 0, shift, image, visits)


class Protocol(abc.ABC):
    """Base class of every protocol. Subclass it, give it a ``name`` and a Config, implement ``parts``.

    Attributes:
        resets: whether a method is reset before each segment ("segment") or "never", where the suite does not say; what
            lies between two resets is run as a trial of its own, so that it spreads over devices.
        by_severity: whether a suite's severities each make a stream; else one stream gets the shifts of all.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[ProtocolConfig]] = ProtocolConfig
    resets: Literal["segment", "never"] = "never"
    by_severity: ClassVar[bool] = True

    def __init__(self, config: ProtocolConfig):
        self.config: Any = config

    @property
    def reset(self) -> str | ResetEvery:
        """When a method is reset: what the suite says, or ``resets``."""
        return self.config.reset or self.resets  # type: ignore[no-any-return]

    @abc.abstractmethod
    def parts(self, source: Source) -> Iterator[Part]:
        """The parts of the stream, in order, without probes.

        Raises:
            UsageError: the rule cannot be followed with these shifts and labels.
        """

    def probe(self, source: Source, visit: int) -> Part:
        """The probe that follows a part: of the first images in an i.i.d. order.

        Args:
            source: of the probe's shift alone.
            visit: how many probes came before.
        """
        return source.shuffled(source.shifts[0].id, visit, [0])[: self.config.probe.images]


@dataclass(frozen=True)
class Outline:
    """A part before its images are put in order. Attributes: name and visit; shifts: positions in ``Source.shifts``."""

    name: str
    visit: int
    shifts: Sequence[int]
