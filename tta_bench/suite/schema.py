"""The schema of a suite: typed, validated models of its parts. Unknown keys are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny
from pydantic_core import PydanticCustomError

from tta_bench.data.base import DataConfig
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.errors import near_miss
from tta_bench.models import ModelConfig
from tta_bench.protocols.config import ONE_OR_MORE, ProtocolConfig
from tta_bench.registry import DATASETS, MODELS, PROTOCOLS
from tta_bench.run.precision import PRECISIONS
from tta_bench.streams import CLEAN, Shift, shift_of
from tta_bench.suite.parts import by_plugin


def _corruption(name: str) -> str:
    if name != "clean" and name not in NAMES:
        raise PydanticCustomError("unknown_corruption", "unknown corruption '{name}'",
                                  {"name": name, "hint": near_miss(name, ["clean", *NAMES])})  # fmt: skip
    return name


def is_shift(shift: Shift) -> bool:
    """Whether a suite can have the shift: clean images, or a known corruption at a severity."""
    return shift == CLEAN or (shift.name in NAMES and shift.severity in range(1, 6))


def _precision(name: str) -> str:
    if name not in PRECISIONS:
        raise PydanticCustomError("unknown_precision", "unknown precision '{name}'",
                                  {"name": name, "hint": near_miss(name, list(PRECISIONS))})  # fmt: skip
    return name


def named(value: Any) -> Any:
    """A method given by its name alone as a mapping."""
    return {"name": value} if isinstance(value, str) else value


def _distinct(values: list[Any]) -> list[Any]:
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
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
    """

    name: str
    label: str | None = None
    config: dict[str, Any] = {}
    per_model: dict[str, dict[str, Any]] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    def variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(label, fields from the grid) of each row."""
        label = self.label or self.name
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            shown = ",".join(f"{key}={value}" for key, value in chosen.items())
            yield (f"{label}[{shown}]" if shown else label), chosen


class Suite(Part):
    """One benchmark. The shipped suites explain every key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    plugins: list[str] = []
    data: Annotated[SerializeAsAny[DataConfig], by_plugin(DATASETS)]
    models: Annotated[list[Annotated[SerializeAsAny[ModelConfig], by_plugin(MODELS, "timm")]], Field(min_length=1)]
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(named)]], Field(min_length=1)]
    protocol: Annotated[
        SerializeAsAny[ProtocolConfig],
        by_plugin(PROTOCOLS, "reset"),
        Field(validate_default=True, default_factory=dict),
    ]
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], *ONE_OR_MORE] = (64,)
    corruptions: Annotated[
        list[Annotated[str, AfterValidator(_corruption)]], Field(min_length=1), AfterValidator(_distinct)
    ]
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1), AfterValidator(_distinct)] = [5]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)] = [0]
    precision: Annotated[tuple[Annotated[str, AfterValidator(_precision)], ...], *ONE_OR_MORE] = ("float32",)
    cache: Literal["on", "off"] = "on"

    def shifts(self) -> tuple[Shift, ...]:
        """All shifts, severity by severity, corruptions in the suite's order; ``clean`` once, at its first position."""
        return tuple(dict.fromkeys(shift for group in self.by_severity() for shift in group))

    def by_severity(self) -> list[tuple[Shift, ...]]:
        """The shifts of each severity, corruptions in the suite's order; the protocol's probe is among them."""
        probe = [shift_of(self.protocol.probe.shift)] if self.protocol.probe else []
        groups = [
            tuple(dict.fromkeys([*(CLEAN if n == CLEAN.name else Shift(n, s) for n in self.corruptions), *probe]))
            for s in self.severities
        ]
        return list(dict.fromkeys(groups))

    def axes(self) -> tuple[str, ...]:
        """The names of the axes that the suite varies, besides shifts and seeds."""
        own = {"batch_size": self.batch_size, "precision": self.precision}
        return (*(name for name, values in own.items() if len(values) > 1), *self.protocol.axes())
