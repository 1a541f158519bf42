"""The schema of a suite: typed, validated models of its parts. Unknown keys are refused."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tta_bench.data.base import DataConfig
from tta_bench.errors import near_miss
from tta_bench.models import ModelConfig
from tta_bench.precision import PRECISIONS, Mode
from tta_bench.protocols.config import ONE_OR_MORE, ProtocolConfig
from tta_bench.registry import DATASETS, MODELS, PROTOCOLS
from tta_bench.streams import Shift
from tta_bench.suite.parts import by_plugin, config_class, registry_of, shifts_of

LONGEST_LABEL = 100  # characters; with the values of a grid behind it, three times as many
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def _corruption(name: str, info: ValidationInfo) -> str:
    known = shifts_of(info)
    if known is not None and name not in known:
        raise PydanticCustomError("unknown_corruption", "unknown corruption '{name}'",
                                  {"name": name, "hint": near_miss(name, known)})  # fmt: skip
    return name


def _precision(name: str) -> str:
    if name not in PRECISIONS:
        raise PydanticCustomError("unknown_precision", "unknown precision '{name}'",
                                  {"name": name, "hint": near_miss(name, list(PRECISIONS))})  # fmt: skip
    return name


def _run_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PydanticCustomError(
            "name", "give at most 100 letters, digits, _ . and -, beginning with a letter, digit or _",
            {"hint": "the run's folder, results/<name>, is called by it"},
        )  # fmt: skip
    return name


def label_fault(label: str, most: int) -> str | None:
    """What is wrong with a row's label, which tables, figures and commands have to show; None: nothing."""
    if not label or label != label.strip():
        return "is empty, or begins or ends with a space"
    if len(label) > most:
        return f"is longer than {most} characters"
    if odd := next((char for char in label if not char.isprintable()), None):
        return f"has a character that cannot be shown, U+{ord(odd):04X}"
    return None


def _label(label: str) -> str:
    if fault := label_fault(label, LONGEST_LABEL):
        raise PydanticCustomError("label", "the label {fault}", {"fault": fault})
    return label


def named(value: Any) -> Any:
    """A method given by its name alone as a mapping."""
    return {"name": value} if isinstance(value, str) else value


def _distinct(values: list[Any]) -> list[Any]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise PydanticCustomError("repeated", "{value} is listed twice", {"value": repr(repeated[0])})
    return values


class Part(BaseModel):
    """Base of the suite's parts: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodEntry(Part):
    """A method with its hyperparameters.

    Attributes:
        name: the registered name.
        label: the row's name in tables; the method's own name by default.
        config: fields of the method's Config; ``{model}`` in a string is replaced by the source model's name.
        per_model: model name to fields that override ``config``.
        grid: field to list of values; each combination is a row.
        papers: publications, by their names in the file of published numbers, whose hyperparameters these are; the report
            counts them as the published ones beside these numbers.
    """

    name: str
    label: Annotated[str, AfterValidator(_label)] | None = None
    config: dict[str, Any] = {}
    per_model: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    papers: list[str] = []

    def rows(self) -> int:
        """Number of rows of the grid."""
        return math.prod(len(values) for values in self.grid.values())

    def variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(label, fields from the grid) of each row."""
        label = self.label or self.name
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            shown = ",".join(f"{key}={value}" for key, value in chosen.items())
            yield (f"{label}[{shown}]" if shown else label), chosen


_BatchSizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], *ONE_OR_MORE]
_Corruptions = Annotated[
    list[Annotated[str, AfterValidator(_corruption)]], Field(min_length=1), AfterValidator(_distinct)
]
_Severities = Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1), AfterValidator(_distinct)]
_Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]

OVERRIDES = ("batch_size", "corruptions", "severities", "seeds")  # keys of the suite that an entry may set for itself


class ProtocolEntry(Part):
    """An entry of ``protocol``: the protocol's own keys, beside those that it sets in place of the suite's.

    A key that the protocol has itself is the protocol's: the ``severities`` of gradual are the steps of its walk.

    Attributes:
        config: the protocol's own keys.
        batch_size, corruptions, severities, seeds: as in the suite; None: the suite's.
    """

    config: Annotated[SerializeAsAny[ProtocolConfig], by_plugin(PROTOCOLS, "reset")]
    batch_size: _BatchSizes | None = None
    corruptions: _Corruptions | None = None
    severities: _Severities | None = None
    seeds: _Seeds | None = None

    @model_validator(mode="before")
    @classmethod
    def _separated(cls, value: Any, info: ValidationInfo) -> Any:
        """The protocol's own keys moved to ``config``."""
        if not isinstance(value, Mapping):
            return {"config": value}
        config = config_class(PROTOCOLS, value, registry_of(info), "reset")
        own = config.model_fields if config else {}
        overrides = {name: value[name] for name in OVERRIDES if name in value and name not in own}
        return {**overrides, "config": {name: item for name, item in value.items() if name not in overrides}}

    @model_serializer
    def _together(self) -> dict[str, Any]:
        overrides = {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
        return {**self.config.model_dump(mode="json"), **overrides}


@dataclass(frozen=True)
class Evaluation:
    """A protocol with everything that it is run with.

    Attributes:
        index: of its entry under ``protocol``.
        protocol: its Config.
        data: the suite's, which knows the shifts.
        batch_size, corruptions, severities, seeds: its entry's, or the suite's.
        modes: how networks compute: the suite's precisions, each with its values of ``compile`` and ``deterministic``.
    """

    index: int
    protocol: ProtocolConfig
    data: DataConfig
    batch_size: tuple[int, ...]
    corruptions: list[str]
    severities: list[int]
    seeds: list[int]
    modes: tuple[Mode, ...]

    def shifts(self) -> tuple[Shift, ...]:
        """All shifts, severity by severity, corruptions in their order; those without a severity once, first come."""
        return tuple(dict.fromkeys(shift for group in self.by_severity() for shift in group))

    def by_severity(self) -> list[tuple[Shift, ...]]:
        """The shifts of each severity, corruptions in their order; the protocol's probe is among them."""
        probe = [shift] if self.protocol.probe and (shift := self.data.shift_named(self.protocol.probe.shift)) else []
        groups = [
            tuple(dict.fromkeys([*(self.data.shift(name, severity) for name in self.corruptions), *probe]))
            for severity in self.severities
        ]
        return list(dict.fromkeys(groups))

    def axes(self) -> tuple[str, ...]:
        """The names of the axes that are varied, besides shifts and seeds."""
        own = {name: {getattr(mode, name) for mode in self.modes} for name in vars(Mode())}
        several = (name for name, values in {"batch_size": self.batch_size, **own}.items() if len(values) > 1)
        return (*several, *self.protocol.axes())

    def step_size(self, batch_size: int) -> int:
        """How many images a method adapts on at a time: the batch size, or the length of a window."""
        return self.protocol.window or batch_size


class Suite(Part):
    """One benchmark. The shipped suites explain every key."""

    name: Annotated[str, AfterValidator(_run_name)]
    plugins: list[str] = []
    data: Annotated[SerializeAsAny[DataConfig], by_plugin(DATASETS)]
    models: Annotated[list[Annotated[SerializeAsAny[ModelConfig], by_plugin(MODELS, "timm")]], Field(min_length=1)]
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(named)]], Field(min_length=1)]
    protocol: Annotated[
        tuple[ProtocolEntry, ...],
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else (value,)),
        Field(min_length=1, validate_default=True, default_factory=dict),
    ]
    batch_size: _BatchSizes = (64,)
    corruptions: _Corruptions
    severities: _Severities = [5]
    seeds: _Seeds = [0]
    precision: Annotated[tuple[Annotated[str, AfterValidator(_precision)], ...], *ONE_OR_MORE] = (Mode.precision,)
    compile: Annotated[tuple[Literal["off", "on"], ...], *ONE_OR_MORE] = (Mode.compile,)  # type: ignore[assignment]
    deterministic: Annotated[tuple[bool, ...], *ONE_OR_MORE] = (Mode.deterministic,)
    cache: Literal["on", "off"] = "on"
    per_image: Annotated[int, Field(ge=0)] = 1_000_000

    @field_serializer("protocol")
    def _one_or_more(self, entries: tuple[ProtocolEntry, ...]) -> Any:
        """A mapping where there is one entry, as suites write it."""
        written = [entry.model_dump(mode="json") for entry in entries]
        return written if len(written) > 1 else written[0]

    def evaluations(self) -> list[Evaluation]:
        """Each protocol with everything that it is run with, in the suite's order."""
        return [self._evaluation(index, entry) for index, entry in enumerate(self.protocol)]

    def _evaluation(self, index: int, entry: ProtocolEntry) -> Evaluation:
        severities = entry.config.shift_severities(entry.severities or self.severities)
        return Evaluation(
            index,
            entry.config,
            self.data,
            entry.batch_size or self.batch_size,
            entry.corruptions or self.corruptions,
            severities,
            entry.seeds or self.seeds,
            tuple(Mode(*values) for values in itertools.product(self.precision, self.compile, self.deterministic)),
        )

    def shifts(self) -> tuple[Shift, ...]:
        """The shifts of all protocols, each once."""
        return tuple(dict.fromkeys(shift for each in self.evaluations() for shift in each.shifts()))

    def axes(self) -> tuple[str, ...]:
        """The names of the axes that any protocol varies, besides shifts and seeds."""
        return tuple(dict.fromkeys(name for each in self.evaluations() for name in each.axes()))
