"""What a protocol is: a rule that puts the images of some shifts in order, in parts.

A part becomes a segment: it is cut into batches, resets and adaptation flags are set, and that is the same for all
protocols (:mod:`tta_bench.protocols.assembly`).
"""

from __future__ import annotations

import abc
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tta_bench.registry import Portable
from tta_bench.streams import Shift, derived_seed


@dataclass(frozen=True)
class _Varied:
    """Marks a field of which a suite may give several values: each makes rows of the results."""


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise PydanticCustomError("twice", "{value} is listed twice", {"value": repr(twice[0])})
    return values


def _count(value: Any) -> int | None:
    if value == "all" or value is None:
        return None
    if type(value) is not int or value < 1:
        raise PydanticCustomError("count", "give a number of images, or all")
    return value


ONE_OR_MORE = (BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct), _Varied())


class ProtocolConfig(Portable, BaseModel):
    """What a suite says of its protocol; every kind adds what it needs. Unknown keys are refused.

    A field annotated ``Annotated[tuple[T, ...], *ONE_OR_MORE]`` takes one value or a list; a list makes a row of the
    results for each value.

    Attributes:
        kind: the registered name.
        adapt_images: how many images of a segment are adapted on before the rest is predicted with the frozen result:
            whole batches, or "all"; all values are graded on the same images besides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    adapt_images: Annotated[tuple[Annotated[int | None, BeforeValidator(_count)], ...], *ONE_OR_MORE] = (None,)

    @classmethod
    def varied(cls) -> list[str]:
        """Names of the fields of which a suite may give several values."""
        return [n for n, field in cls.model_fields.items() if any(isinstance(m, _Varied) for m in field.metadata)]

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The fields of which there are several values, with them."""
        return {name: values for name in self.varied() if len(values := getattr(self, name)) > 1}

    def singles(self) -> Iterator[ProtocolConfig]:
        """A Config for each combination of single values."""
        names = self.varied()
        for values in itertools.product(*(getattr(self, name) for name in names)):
            yield self.model_copy(update={n: (value,) for n, value in zip(names, values, strict=True)})

    def canonical(self) -> str:
        """JSON with its keys in order and nothing at its default, as a stream's spec holds it."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(values | {"kind": self.kind}, sort_keys=True, separators=(",", ":"))

    def parameters(self) -> dict[str, Any]:
        """The values that differ from the defaults, single ones of lists, without ``kind``: what tells protocols apart."""
        fields = type(self).model_fields
        return {n: value for n, value in self.all_parameters().items() if getattr(self, n) != fields[n].default}

    def all_parameters(self) -> dict[str, Any]:
        """:meth:`parameters` with those at their default."""
        values, varied = self.model_dump(mode="json", exclude={"kind"}), self.varied()
        return {n: value[0] if n in varied and len(value) == 1 else value for n, value in values.items()}

    @property
    def graded_after(self) -> int | None:
        """The largest number in ``adapt_images``, after which images are graded for ``error_after_pct``."""
        return max((count for count in self.adapt_images if count is not None), default=None)


@dataclass(frozen=True)
class Source:
    """What a protocol makes a stream from.

    Attributes:
        shifts: in the suite's order.
        labels: of each shift, (n,) int64 in data order; the order of images may depend on them, a method sees none.
        batch_size: images in a batch.
        seed: the trial's seed.
    """

    shifts: tuple[Shift, ...]
    labels: Sequence[np.ndarray]
    batch_size: int
    seed: int

    def rng(self, what: str, *axes: object) -> np.random.Generator:
        """A generator seeded by the seed and named axes: equal axes give equal draws, anything else others."""
        return np.random.default_rng(derived_seed(what, self.seed, *axes))

    def shuffled(self, name: str, visit: int, shifts: Sequence[int]) -> Part:
        """All images of some shifts, given by their positions, as one part in an order drawn for it."""
        sizes = [len(self.labels[number]) for number in shifts]
        shift = np.repeat(np.asarray(shifts, dtype=np.int16), sizes)
        image = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        order = self.rng("order", name, visit).permutation(len(image))
        return Part(name, visit, shift[order], image[order])


@dataclass(frozen=True)
class Part:
    """A named stretch of a stream, which becomes a segment.

    Attributes:
        name: of the segment.
        visit: how many earlier parts have the same name.
        shift: (n,) positions in ``Source.shifts`` of each image, in order.
        image: (n,) positions of the images in their shift's data order.
        visits: (n,) how often each image's shift was entered before, where that is not ``visit`` for all; else None.
    """

    name: str
    visit: int
    shift: np.ndarray
    image: np.ndarray
    visits: np.ndarray | None = None


class Protocol(abc.ABC):
    """Base class of every protocol. Subclass it, give it a ``name`` and a Config, implement ``parts``.

    Attributes:
        resets: whether a method is reset before each segment ("segment") or "never"; what lies between two resets is run
            as a trial of its own, so that it spreads over devices.
        by_severity: whether a suite's severities each make a stream; else one stream gets the shifts of all.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[ProtocolConfig]] = ProtocolConfig
    resets: Literal["segment", "never"] = "never"
    by_severity: ClassVar[bool] = True

    def __init__(self, config: ProtocolConfig):
        self.config: Any = config

    @abc.abstractmethod
    def parts(self, source: Source) -> Iterator[Part]:
        """The parts of the stream, in order.

        Raises:
            UsageError: the rule cannot be followed with these shifts and labels.
        """
