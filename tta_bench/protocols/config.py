"""The Config of a protocol: the keys that every kind has under a suite's ``protocol:``.

Any number under ``adapt`` and any field marked :data:`ONE_OR_MORE` takes one value or a list; a list makes a row of
the results for each value.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tta_bench.errors import refused
from tta_bench.protocols.words import advice
from tta_bench.registry import Portable

MEASURE = "measure"  # in place of a value that a run measures
Conflict = tuple[str, str, str]  # key, what is wrong with it, how to fix it


@dataclass(frozen=True)
class _Varied:
    """Marks a field of which a suite may give several values: each makes rows of the results."""


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise PydanticCustomError("twice", "{value} is listed twice", {"value": repr(twice[0])})
    return values


def _count(value: Any) -> int | None:
    if value == "all" or value is None:
        return None
    if type(value) is not int or value < 1:
        raise PydanticCustomError("count", "give a number of images, or all")
    return value


LONGEST = 100_000_000  # images of a stream: 1.6 GB of indices
ONE_OR_MORE = (BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct), _Varied())
_VARIED_RULE = (Field(min_length=1), AfterValidator(_distinct), _Varied())
_Positive = Annotated[int, Field(ge=1)]


class _Nested(BaseModel):
    """Base of the mappings within a protocol: unknown keys are refused, those not given are not written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer
    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class ResetEvery(_Nested):
    """Reset whenever a number of batches has been adapted on (RDumb, Press et al. 2023, arXiv 2306.05401: 1000).

    Attributes:
        every: number of adapting batches.
    """

    every: _Positive


class AdaptRule(_Nested):
    """Which batches of a part are adapted on; the rest is predicted with the latest state.

    Three rules: ``first`` with or without ``classes``, ``every``, and ``eta`` with ``cost_ratio`` and perhaps ``skipped``.

    Attributes:
        first: images of the part, in its order; with ``classes``, of these classes alone, moved to the front.
        classes: how many classes, drawn by the seed, the first images are of (BoTTA).
        every: a batch adapts when its number in the part is a multiple of it (periodic adaptation).
        eta: speed of the stream relative to a plain forward pass, 0 to skip nothing (time-constrained evaluation,
            Alfarra et al. 2024, arXiv 2304.04795).
        cost_ratio: time of an adapting step relative to a plain forward pass; a list is used one after another for the
            adapting batches of the whole stream, its last repeated; "measure": the run measures it for each method and
            source model before it plans their trials.
        skipped: "predict" skipped batches with the latest state, or count them at "chance": they are shown to no network,
            and their expected error is that of random answers (single_model of Alfarra et al.).
    """

    first: Annotated[int | None, BeforeValidator(_count)] = None
    classes: _Positive | None = None
    every: _Positive | None = None
    eta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    cost_ratio: Annotated[Any, AfterValidator(lambda value: _cost_ratio(value))] = None
    skipped: Literal["predict", "chance"] = "predict"

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = self.model_fields_set
        rules = [name for name in ("first", "every", "eta") if name in given]
        if len(rules) != 1:
            what = f"gives two rules, {' and '.join(rules)}" if rules else "gives no rule"
            raise refused("rule", what, (), None, "one of first (with or without classes), every, eta with cost_ratio")
        for name, needed in (("classes", "first"), ("cost_ratio", "eta"), ("eta", "cost_ratio"), ("skipped", "eta")):
            if name in given and needed not in given:
                raise refused("rule", f"{name} needs {needed}", (name,), None, f"write: {{{name}: …, {needed}: …}}")
        if self.skipped == "predict":  # the default is not written, so that keys and settings do not depend on it
            given.discard("skipped")
        return self

    @property
    def cost_ratios(self) -> tuple[float, ...]:
        """The cost ratios in order, at least one."""
        return self.cost_ratio if isinstance(self.cost_ratio, tuple) else (self.cost_ratio,)


def _cost_ratio(value: Any) -> Any:
    """A number, a tuple of numbers, or "measure"."""
    values = _listed(value)
    if value != MEASURE and not (values and all(type(v) in (int, float) and 0 <= v < float("inf") for v in values)):
        raise PydanticCustomError("cost_ratio", "give a number from 0 on, a list of them, or measure")
    return values if isinstance(value, list | tuple) else value


def _rules(value: Any) -> Any:
    """A mapping for each combination of the values that are lists; those of ``cost_ratio`` belong to one rule."""
    if not isinstance(value, Mapping):
        return _listed(value)
    lists = {n: v for n, v in value.items() if n != "cost_ratio" and isinstance(v, list | tuple)}
    return tuple({**value, **dict(zip(lists, chosen, strict=True))} for chosen in itertools.product(*lists.values()))


class Probe(_Nested):
    """A shift that is shown after each part, to see what was forgotten.

    Attributes:
        shift: its id; it is taken out of the other shifts.
        adapt: whether probes are adapted on; otherwise they are only predicted, and the state is left untouched.
        images: of each probe; null: all.
    """

    shift: str
    adapt: bool = False
    images: _Positive | None = None


_Reset = Annotated[
    Annotated[Literal["never", "segment", "batch"], Tag("word")] | Annotated[ResetEvery, Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, Mapping | ResetEvery) else "word"),
]


class ProtocolConfig(Portable, BaseModel):
    """What a suite says of a protocol; every kind adds what it needs. Unknown keys are refused.

    A field annotated ``Annotated[tuple[T, ...], *ONE_OR_MORE]`` takes one value or a list; a list makes a row of the
    results for each value.

    Attributes:
        kind: the registered name.
        variant: the published sequence that is followed bit for bit, one of ``variants``; null: the harness's own order.
        adapt_images: how many images of a segment are adapted on before the rest is predicted with the frozen result:
            whole batches, or "all" (null); all values are also graded on the same images. ``adapt: {first: n}`` is the
            same.
        adapt: another rule for which batches are adapted on; null: all.
        reset: when the method starts anew: "never", before each "segment" (probes excepted), before each "batch"
            (episodic; ``episodic: true`` is the same), or ``{every: k}``; null: the kind's default.
        window: with a batch size of 1: each batch is the latest ``window`` images, of which the newest is graded; every
            ``window`` images the method adapts (WINDOW_LENGTH of mariodoebler/test-time-adaptation).
        probe: a shift shown after each part, to measure forgetting.
        shift_order: "seed": the seed draws the order of the shifts, as in CoTTA's ten orders of ImageNet-C; null: the
            suite's order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    variants: ClassVar[tuple[str, ...]] = ()
    kind: str
    variant: str | None = None
    adapt_images: Annotated[tuple[Annotated[int | None, BeforeValidator(_count)], ...], *ONE_OR_MORE] = (None,)
    adapt: Annotated[tuple[AdaptRule | None, ...], BeforeValidator(_rules), *_VARIED_RULE] = (None,)
    reset: _Reset | None = None
    window: _Positive | None = None
    probe: Probe | None = None
    shift_order: Literal["seed"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _synonyms(cls, values: Any) -> Any:
        """``adapt: {first: n}`` as ``adapt_images: n``, and ``episodic: true`` as ``reset: batch``."""
        if not isinstance(values, Mapping):
            return values
        values, adapt = dict(values), values.get("adapt")
        if "adapt" in values and "adapt_images" in values:
            raise refused("both", "conflicts with adapt_images", ("adapt",), adapt, "give one of them")
        if isinstance(adapt, Mapping) and set(adapt) == {"first"}:
            values["adapt_images"] = values.pop("adapt")["first"]
        episodic = values.pop("episodic", False)
        if type(episodic) is not bool:
            raise refused("episodic", "give true or false", ("episodic",), episodic)
        if episodic and "reset" in values:
            raise refused("both", "conflicts with reset", ("episodic",), episodic, "episodic is reset: batch")
        return values | ({"reset": "batch"} if episodic else {})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, what, hint in self.conflicts():
            raise refused("conflict", what, (key,), getattr(self, key), hint)
        return self

    def conflicts(self) -> Iterator[Conflict]:
        """Values that do not combine: the key, what is wrong with it, and how to fix it."""
        if self.variant not in (None, type(self).model_fields["variant"].default, *self.variants):
            known = f"variants of {self.kind}: {', '.join(self.variants) or 'none'}"
            yield "variant", f"{self.kind} has no variant {self.variant!r}", advice(str(self.variant), known)
        if self.shift_order and self.variant:
            yield "shift_order", f"variant {self.variant} has an order of its own", "leave one of them out"
        if self.window and (self.adapt_images, self.adapt) != ((None,), (None,)):
            yield "window", "already sets which batches adapt", "leave adapt (or adapt_images) out"
        if self.window and self.probe:
            yield "window", "does not combine with a probe", "leave one of them out"

    @classmethod
    def varied(cls) -> list[str]:
        """Names of the fields of which a suite may give several values."""
        return [n for n, field in cls.model_fields.items() if any(isinstance(m, _Varied) for m in field.metadata)]

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The fields of which there are several values, with them."""
        return {name: values for name in self.varied() if len(values := getattr(self, name)) > 1}

    def combinations(self) -> int:
        """How many Configs :meth:`singles` has."""
        return math.prod(len(getattr(self, name)) for name in self.varied())

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
        """The values that differ from the defaults, single ones of lists, without ``kind``: they identify the protocol."""
        fields = type(self).model_fields
        return {n: value for n, value in self.values().items() if getattr(self, n) != fields[n].default}

    def values(self) -> dict[str, Any]:
        """All values in JSON's types, single ones of lists, without ``kind``."""
        values = self.model_dump(mode="json", exclude={"kind"})
        single = {n for n in self.varied() if len(values[n]) == 1}
        return {n: value[0] if n in single else value for n, value in values.items()}

    @property
    def measures_cost(self) -> bool:
        """Whether a run has to measure a cost ratio for any of its rules."""
        return any(rule is not None and rule.cost_ratio == MEASURE for rule in self.adapt)

    @property
    def counts_at_chance(self) -> bool:
        """Whether its only rule counts skipped batches at chance."""
        [rule] = self.adapt
        return rule is not None and rule.skipped == "chance"

    @property
    def cost_ratio(self) -> float | None:
        """The cost ratio of its only rule, where that has a single number."""
        [rule] = self.adapt
        return float(rule.cost_ratio) if rule and type(rule.cost_ratio) in (int, float) else None

    def with_cost_ratio(self, ratio: float) -> ProtocolConfig:
        """The same with ``ratio`` in place of "measure"."""
        rules = (r.model_copy(update={"cost_ratio": ratio}) if r and r.cost_ratio == MEASURE else r for r in self.adapt)
        return self.model_copy(update={"adapt": tuple(rules)})

    @property
    def measures_accuracy(self) -> bool:
        """Whether a run has to measure accuracies before it can make the stream."""
        return False

    def with_accuracy(self, matrices: Mapping[str, Any]) -> ProtocolConfig:
        """The same with measured accuracy matrices, by pair of corruptions, in place of "measure"."""
        return self

    def shift_severities(self, given: list[int]) -> list[int]:
        """The severities of the shifts that the protocol gets, from those that the suite gives."""
        return given

    @property
    def graded_after(self) -> int | None:
        """The largest number in ``adapt_images``, after which images are graded for ``error_after_pct``."""
        return max((count for count in self.adapt_images if count is not None), default=None)
