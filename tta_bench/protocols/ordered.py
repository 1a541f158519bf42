"""Protocols that say which shifts each part is of; how its images are ordered is the harness's own rule, or a variant's.

The own order is i.i.d., or with ``delta`` correlated by label: 0 sorts by label, a positive number draws in RoTTA's
form how much of each class comes when (Dirichlet concentration: NOTE's and MD's delta, RoTTA's gamma, ttab's
non_iid_ness). Small is strongly correlated.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tta_bench.protocols.base import Outline, Part, Protocol, Source
from tta_bench.protocols.config import ONE_OR_MORE, Conflict, ProtocolConfig
from tta_bench.protocols.published import md
from tta_bench.protocols.published.chunks import MAX_SLOTS, by_class, by_slot

DeltaRule = Literal["free", "positive", "needed", "none"]
Published = Callable[[Any, Source, Sequence[Outline]], Iterator[Part]]


class OrderedConfig(ProtocolConfig):
    """Attributes: delta: Dirichlet concentration of labels over time, small is strongly correlated; 0: sorted by label;
    null: i.i.d.
    """

    deltas: ClassVar[Mapping[str, DeltaRule]] = {}  # what each variant takes
    delta: Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, ...], *ONE_OR_MORE] = (None,)

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        rule = self.deltas.get(self.variant, "none") if self.variant else "free"
        given = [delta for delta in self.delta if delta is not None]
        if rule == "none" and given:
            yield "delta", f"variant {self.variant} has none", "leave one of them out"
        if rule == "needed" and None in self.delta:
            yield "variant", f"{self.variant} needs delta", "for example delta: 0.1"
        if rule in ("positive", "needed") and 0 in given:
            yield "delta", f"variant {self.variant} has no order sorted by label", "give a positive number"


class PublishedByMd(OrderedConfig):
    """Attributes: images: of variant md, how many are drawn of each part (its NUM_EX); null: all."""

    images: Annotated[int, Field(ge=1)] | None = None

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.images is not None and self.variant != "md":
            yield "images", "only variant md has it", "a suite limits images by data: {max_images: …}"


class Ordered(Protocol):
    """Base of these protocols.

    Attributes:
        published: variant to the rule of its authors' code.
    """

    published: ClassVar[Mapping[str, Published]] = {}

    @abc.abstractmethod
    def outlines(self, source: Source) -> list[Outline]:
        """The parts in order.

        Raises:
            UsageError: the rule cannot be followed with these shifts.
        """

    def parts(self, source: Source) -> Iterator[Part]:
        rule = self.published.get(self.config.variant, own)
        return rule(self.config, source, self.outlines(source))

    def probe(self, source: Source, visit: int) -> Part:
        if self.config.variant != "md":
            return super().probe(source, visit)
        [delta] = self.config.delta
        return md.part(source, Outline(source.shifts[0].id, visit, [0]), delta, self.config.probe.images)


def each_shift(source: Source, visit: int = 0) -> list[Outline]:
    """A part for each shift, named by its id."""
    return [Outline(shift.id, visit, [number]) for number, shift in enumerate(source.shifts)]


def own(config: Any, source: Source, outlines: Sequence[Outline]) -> Iterator[Part]:
    """The harness's own order of each part."""
    [delta] = config.delta
    for outline in outlines:
        pool, generator = source.pool(outline.shifts), source.rng("order", outline.name, outline.visit)
        order = _correlated(generator, pool.label, delta) if delta else generator.permutation(len(pool.image))
        if delta == 0:
            order = order[np.argsort(pool.label[order], kind="stable")]
        yield pool.part(outline.name, outline.visit, order)


def _correlated(generator: np.random.Generator, label: np.ndarray, delta: float) -> np.ndarray:
    """Labels in at most 100 slots, classes that are absent included."""
    classes = 1 + int(label.max())
    members, proportions = [], []
    for rows in by_class(label, classes):
        members.append(generator.permutation(rows))
        proportions.append(generator.dirichlet(np.repeat(delta, min(classes, MAX_SLOTS))))
    return by_slot(generator, members, np.array(proportions))
