"""The setting of a trial: what must agree for two numbers to stand in one table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tta_bench.data.base import digest
from tta_bench.streams import StreamSpec


@dataclass(frozen=True)
class Setting:
    """What must agree for two numbers to stand in one table; everything that compares numbers groups them by it.

    Attributes:
        dataset: how tables call the data set.
        protocol: the registered name.
        parameters: the protocol's parameters that are not at their default, as (name, value in JSON), by name.
        severities: those that occur in the stream, ascending; none where it has clean images alone, which then stand
            beside every severity.
        batch_size: images in a batch.
        precision: in which the network computes.
        varied: what the suite varies on purpose, as (name, value in JSON): told in captions also where it is at its
            default. No part of what settings are compared by: another suite may have fixed it.
    """

    dataset: str
    protocol: str
    parameters: tuple[tuple[str, str], ...] = ()
    severities: tuple[int | float, ...] = ()
    batch_size: int = 64
    precision: str = "float32"
    varied: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, equal for equal settings."""
        return digest(replace(self, varied=()).values())[:12]

    def values(self) -> dict[str, Any]:
        """All values by name, parameters under ``parameters``; as plan and records hold them."""
        varied = {"varied": _read(self.varied)} if self.varied else {}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "varied"}
        return plain | {"parameters": _read(self.parameters), "severities": list(self.severities)} | varied

    @property
    def text(self) -> str:
        """All values in words."""
        severities = [f"severity {', '.join(f'{s:g}' for s in self.severities)}"] if self.severities else []
        parts = [self.dataset, *severities, f"protocol {self.protocol}", self.caption, f"batch size {self.batch_size}"]
        return ", ".join(part for part in [*parts, self.precision] if part)

    @property
    def precision_told(self) -> str:
        """The precision where captions tell it; else empty."""
        return self.precision if self.precision != "float32" or "precision" in dict(self.varied) else ""

    @property
    def caption(self) -> str:
        """The parameters in words, with those at their default that the suite varies."""
        own = {name: value for name, value in self.varied if name not in _FIELDS}
        return _words(sorted({**own, **dict(self.parameters)}.items()))

    @property
    def varied_told(self) -> str:
        """All that the suite varies, in words: ``batch_size 20, rounds 2``."""
        return _words(self.varied)

    @property
    def told(self) -> str:
        """The parameters in words: ``rounds 3, delta 0.1``; empty where all are at their default."""
        return _words(self.parameters)

    def columns(self) -> dict[str, object]:
        """The values, but for severities, as columns of a table."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "protocol_parameters": self.told,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Setting:
        """The setting that :meth:`values` gave."""
        items = {name: _items(values.get(name, {})) for name in ("parameters", "varied")}
        return cls(**{**values, **items, "severities": tuple(values["severities"])})

    def without(self, axis: str) -> Setting:
        """The same without one value, a parameter or a field: settings that differ in it alone become equal.

        Any other name counts as a parameter at its default: a setting does not know which parameters its protocol has.

        Raises:
            KeyError: a field that is no axis.
        """
        blank: dict[str, Any] = {"severities": (), "batch_size": 0, "precision": ""}
        varied = _without(self.varied, axis)
        if axis in blank:
            return replace(self, varied=varied, **{axis: blank[axis]})
        if axis in _FIELDS:
            raise KeyError(f"{axis} is no axis")
        return replace(self, varied=varied, parameters=_without(self.parameters, axis))


_FIELDS = {each.name for each in fields(Setting)}


def setting_of(dataset: str, protocol: Any, spec: StreamSpec, precision: str, axes: Collection[str] = ()) -> Setting:
    """The setting of a trial.

    Args:
        dataset: how tables call it.
        protocol: the protocol's Config, with single values.
        spec: of its stream.
        precision: in which the network computes.
        axes: what the suite varies on purpose.
    """
    severities = tuple(sorted({shift.severity for shift in spec.shifts if shift.severity is not None}))
    chosen = {**protocol.values(), "batch_size": spec.batch_size, "precision": precision}
    varied = _items({name: value for name, value in chosen.items() if name in axes})
    parameters = _items(protocol.parameters())
    return Setting(dataset, protocol.kind, parameters, severities, spec.batch_size, precision, varied)


def _words(items: Iterable[tuple[str, str]]) -> str:
    """Parameters as a suite spells them; without a number of images adapted on there is no limit to it."""
    known = ((name, json.loads(value)) for name, value in items)
    return ", ".join(f"{name} {'all' if (name, value) == ('adapt_images', None) else value}" for name, value in known)


def _without(items: tuple[tuple[str, str], ...], axis: str) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in items if item[0] != axis)


def _read(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in items}


def _items(parameters: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(parameters[name], sort_keys=True)) for name in sorted(parameters))
