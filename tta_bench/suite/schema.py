"""What a suite may say: its parts as typed, validated models. Unknown keys are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tta_bench.data import DataSpec
from tta_bench.data.corrupt.corruptions import NAMES
from tta_bench.errors import near_miss
from tta_bench.streams import CLEAN, Shift


def _corruption(name: str) -> str:
    if name != "clean" and name not in NAMES:
        raise PydanticCustomError("unknown_corruption", "unknown corruption '{name}'",
                                  {"name": name, "hint": near_miss(name, ["clean", *NAMES])})  # fmt: skip
    return name


def named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _distinct(values: list[Any]) -> list[Any]:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise PydanticCustomError("twice", "{value} is listed twice", {"value": repr(twice[0])})
    return values


class Part(BaseModel):
    """Base of the suite's parts: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(Part):
    """A source model; see :class:`tta_bench.models.ModelSpec` for what each field means."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$")]
    timm: str | None = None
    architecture: str | None = None
    weights: str | None = None
    options: dict[str, Any] = {}
    stem: Literal["cifar"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: Annotated[int, Field(ge=1)] | None = None
    preset: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> ModelEntry:
        if (self.timm is None) == (self.architecture is None):
            raise PydanticCustomError("origin", "give either timm: (a full tag) or architecture: (with weights:)")
        if self.architecture and None in (self.weights, self.mean, self.std):
            raise PydanticCustomError("origin", "architecture: needs weights:, mean: and std: beside it")
        return self


class MethodEntry(Part):
    """A method with its hyperparameters.

    Attributes:
        name: the registered name.
        label: the row's name in tables; the method's own name by default.
        config: fields of the method's Config; ``{model}`` in a text stands for the source model's name.
        per_model: model name to further fields, which win over ``config``.
        grid: field to list of values; one row for each combination.
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


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _count(value: Any) -> int | None:
    if value == "all":
        return None
    if type(value) is not int or value < 1:
        raise PydanticCustomError("count", "give a number of images, or all")
    return value


class Protocol(Part):
    """The rule that makes a stream.

    Attributes:
        kind: "reset" before every shift, or "continual" (never).
        adapt_images: how many images of a shift are adapted on before the rest is predicted with the frozen result: whole
            batches, or "all"; a list makes a row of the results for each, all graded on the same images besides.
    """

    kind: Literal["reset", "continual"] = "reset"
    adapt_images: Annotated[
        list[Annotated[int | None, BeforeValidator(_count)]],
        BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct),
    ] = [None]  # fmt: skip

    @property
    def graded_after(self) -> int | None:
        """The largest number in ``adapt_images``, after which images are graded for ``error_after_pct``."""
        return max((count for count in self.adapt_images if count is not None), default=None)


class Suite(Part):
    """One benchmark. The shipped suites comment every key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    plugins: list[str] = []
    data: DataSpec
    models: Annotated[list[ModelEntry], Field(min_length=1)]
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(named)]], Field(min_length=1)]
    protocol: Protocol = Protocol()
    batch_size: Annotated[int, Field(ge=1)] = 64
    corruptions: Annotated[
        list[Annotated[str, AfterValidator(_corruption)]], Field(min_length=1), AfterValidator(_distinct)
    ]
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1), AfterValidator(_distinct)] = [5]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)] = [0]
    precision: Literal["float32", "float64"] = "float32"
    cache: Literal["on", "off"] = "on"

    def shifts(self) -> tuple[Shift, ...]:
        """All shifts, severity by severity, corruptions in the suite's order; ``clean`` once, where it stands first."""
        found = [
            CLEAN if corruption == "clean" else Shift(corruption, severity)
            for severity in self.severities
            for corruption in self.corruptions
        ]
        return tuple(dict.fromkeys(found))
