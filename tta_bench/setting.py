"""The setting of a trial: what must agree for two numbers to stand in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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
    """

    dataset: str
    protocol: str
    parameters: tuple[tuple[str, str], ...] = ()
    severities: tuple[int | float, ...] = ()
    batch_size: int = 64
    precision: str = "float32"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, equal for equal settings."""
        return digest(self.values())[:12]

    def values(self) -> dict[str, Any]:
        """All values by name, parameters under ``parameters``; as plan and records hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "parameters": {name: json.loads(value) for name, value in self.parameters},
            "severities": list(self.severities),
        }

    @property
    def text(self) -> str:
        """All values in words."""
        severities = [f"severity {', '.join(f'{s:g}' for s in self.severities)}"] if self.severities else []
        parts = [self.dataset, *severities, f"protocol {self.protocol}", self.told, f"batch size {self.batch_size}"]
        return ", ".join(part for part in [*parts, self.precision] if part)

    @property
    def precision_told(self) -> str:
        """The precision where captions tell it; else empty."""
        return self.precision if self.precision != "float32" else ""

    @property
    def told(self) -> str:
        """The parameters in words: ``rounds 3, delta 0.1``; empty where all are at their default."""
        return ", ".join(f"{name} {json.loads(value)}" for name, value in self.parameters)

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
        return cls(**{**values, "parameters": _items(values["parameters"]), "severities": tuple(values["severities"])})

    def without(self, axis: str) -> Setting:
        """The same without one value, a parameter or a field: settings that differ in it alone become equal.

        Any other name counts as a parameter at its default: a setting does not know which parameters its protocol has.

        Raises:
            KeyError: a field that is no axis.
        """
        blank: dict[str, Any] = {"severities": (), "batch_size": 0, "precision": ""}
        if axis in blank:
            return replace(self, **{axis: blank[axis]})
        if axis in {field.name for field in fields(self)}:
            raise KeyError(f"{axis} is no axis")
        return replace(self, parameters=tuple(item for item in self.parameters if item[0] != axis))


def setting_of(dataset: str, protocol: Any, spec: StreamSpec, precision: str) -> Setting:
    """The setting of a trial with the stream of ``spec``; ``protocol`` is its Config, with single values."""
    severities = sorted({shift.severity for shift in spec.shifts if shift.severity is not None})
    return Setting(dataset, protocol.kind, _items(protocol.parameters()), tuple(severities), spec.batch_size, precision)


def _items(parameters: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(parameters[name], sort_keys=True)) for name in sorted(parameters))
