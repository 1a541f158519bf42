"""The setting of a trial: what must agree for two numbers to share a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tta_bench.data.base import digest
from tta_bench.precision import Mode
from tta_bench.streams import StreamSpec


@dataclass(frozen=True)
class Setting:
    """What must agree for two numbers to share a table; all comparisons are grouped by it.

    Attributes:
        dataset: the data set's name in tables.
        protocol: the registered name.
        parameters: the protocol's parameters that are not at their default, as (name, value in JSON), by name.
        severities: those in the stream, ascending; none for clean images alone, which are shown with every severity.
        batch_size: images in a batch.
        precision, compile, deterministic: how the network computes, see :class:`tta_bench.precision.Mode`.
        mask: the class mask, where it is another than each shift's own classes: "none" for all of the source model's.
        varied: axes that the suite varies on purpose, as (name, value in JSON); captions show them even at their default.
            Not part of the comparison of settings: another suite may have fixed them.
    """

    dataset: str
    protocol: str
    parameters: tuple[tuple[str, str], ...] = ()
    severities: tuple[int | float, ...] = ()
    batch_size: int = 64
    precision: str = Mode.precision
    mask: str = ""
    compile: str = Mode.compile
    deterministic: bool = Mode.deterministic
    varied: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, equal for equal settings."""
        return digest(replace(self, varied=()).values())[:12]

    def values(self) -> dict[str, Any]:
        """All values by name, parameters under ``parameters``; as in the plan and in records."""
        varied = {"varied": _read(self.varied)} if self.varied else {}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("varied", *_LATER)}
        later = {name: value for name, default in _LATER.items() if (value := getattr(self, name)) != default}
        return plain | later | {"parameters": _read(self.parameters), "severities": list(self.severities)} | varied

    @property
    def text(self) -> str:
        """All values as text."""
        severities = [f"severity {', '.join(f'{s:g}' for s in self.severities)}"] if self.severities else []
        parts = [self.dataset, *severities, self.mask_told, f"protocol {self.protocol}", self.caption]
        parts.append(f"batch size {self.batch_size}")
        return ", ".join(part for part in [*parts, self.mode.text] if part)

    @property
    def mask_told(self) -> str:
        """The class mask where captions show it; else empty."""
        return f"class mask {self.mask}" if self.mask else ""

    @property
    def mode(self) -> Mode:
        """How the network computes."""
        return Mode(self.precision, self.compile, self.deterministic)

    @property
    def mode_told(self) -> str:
        """How the network computes, where captions show it; else empty."""
        return self.mode.text if not self.mode.is_default or vars(self.mode).keys() & dict(self.varied).keys() else ""

    @property
    def caption(self) -> str:
        """The parameters as text, with those at their default that the suite varies."""
        own = {name: value for name, value in self.varied if name not in _FIELDS}
        return _text(sorted({**own, **dict(self.parameters)}.items()))

    @property
    def varied_told(self) -> str:
        """The parameters, with the axes that the suite varies: ``batch_size 20, rounds 2``."""
        return _text(sorted({**dict(self.varied), **dict(self.parameters)}.items()))

    @property
    def told(self) -> str:
        """The parameters: ``rounds 3, delta 0.1``; empty where all are at their default."""
        return _text(self.parameters)

    @property
    def protocol_text(self) -> str:
        """The protocol with its parameters: ``continual, delta 0.1``."""
        return ", ".join(filter(None, [self.protocol, self.told]))

    def columns(self) -> dict[str, object]:
        """The values, except severities, as columns of a table."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "protocol_parameters": self.told,
            "batch_size": self.batch_size,
            **vars(self.mode),
            "class_mask": self.mask,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Setting:
        """The setting with these :meth:`values`."""
        items = {name: _items(values.get(name, {})) for name in ("parameters", "varied")}
        return cls(**{**values, **items, "severities": tuple(values["severities"])})

    def without(self, axis: str) -> Setting:
        """The setting without one parameter or field: settings that differ only in it become equal.

        An unknown name counts as a parameter at its default, since a setting does not know its protocol's parameters.

        Raises:
            KeyError: the field is not an axis.
        """
        blank: dict[str, Any] = {"severities": (), "batch_size": 0, **vars(Mode(precision=""))}
        varied = _without(self.varied, axis)
        if axis in blank:
            return replace(self, varied=varied, **{axis: blank[axis]})
        if axis in _FIELDS:
            raise KeyError(f"{axis} is not an axis")
        return replace(self, varied=varied, parameters=_without(self.parameters, axis))


_FIELDS = {each.name for each in fields(Setting)}
# Younger than the rest: left out at their default, so that earlier ids stay.
_LATER = {each.name: each.default for each in fields(Setting) if each.name in ("mask", "compile", "deterministic")}
_LEADING = ("first", "every", "eta", "shift")  # keys that name a rule, before those that qualify it


def setting_of(
    dataset: str, protocol: Any, spec: StreamSpec, mode: Mode, axes: Collection[str] = (), mask: str = ""
) -> Setting:
    """The setting of a trial.

    Args:
        dataset: its name in tables.
        protocol: the protocol's Config, with single values.
        spec: of its stream.
        mode: how the network computes.
        axes: parameters and fields that the suite varies on purpose.
        mask: the class mask, where it is not each shift's own classes.
    """
    severities = tuple(sorted({shift.severity for shift in spec.shifts if shift.severity is not None}))
    chosen = {**protocol.values(), "batch_size": spec.batch_size, **vars(mode)}
    varied = _items({name: value for name, value in chosen.items() if name in axes})
    parameters = _items(protocol.parameters())
    return Setting(
        dataset, protocol.kind, parameters, severities, spec.batch_size, mask=mask, varied=varied, **vars(mode)
    )


def words(name: str, value: Any) -> str:
    """A parameter's value in JSON as text; a rule like ``{first: 512, classes: 5}`` is ``first 512, classes 5``."""
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (key not in _LEADING, key))
        parts = [f"{key} {_in_rule(value[key])}" for key in keys]
        return ", ".join(parts).removeprefix("shift ")  # probe clean
    if isinstance(value, bool):
        return str(value).lower()  # as in a suite
    return "all" if (name, value) == ("adapt_images", None) else str(value)


def _in_rule(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "all" if value is None else json.dumps(value).removesuffix(".0")


def _text(items: Iterable[tuple[str, str]]) -> str:
    """Parameters as text."""
    return ", ".join(f"{name} {words(name, json.loads(value))}" for name, value in items)


def _without(items: tuple[tuple[str, str], ...], axis: str) -> tuple[tuple[str, str], ...]:
    return tuple(item for item in items if item[0] != axis)


def _read(items: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in items}


def _items(parameters: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(parameters[name], sort_keys=True)) for name in sorted(parameters))
