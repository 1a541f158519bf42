"""The parts of a suite that plugins define: what stands under ``data``, ``protocol`` and in ``models`` is read by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, PlainValidator, ValidationInfo

from tta_bench.errors import UsageError, refused
from tta_bench.protocols.words import advice
from tta_bench.registry import PROTOCOLS, Kind, Registry, installed


def config_class(kind: Kind, value: Any, registry: Registry, default: str | None = None) -> type[BaseModel] | None:
    """The Config of the plugin that ``value`` (a mapping) names under ``kind``; None where it names none that loads."""
    name = value.get("kind", default) if isinstance(value, Mapping) else None
    try:
        return registry.load(name, kind).Config if isinstance(name, str) else None  # type: ignore[no-any-return]
    except UsageError:
        return None


def read(kind: Kind, value: Any, registry: Registry, default: str | None = None) -> Any:
    """A part as the Config of the plugin that it names under ``kind``.

    Args:
        kind: of the plugin.
        value: a mapping of plain values, as YAML gives them.
        registry: where plugins are found.
        default: the plugin of a mapping that names none.

    Raises:
        pydantic.ValidationError: with every problem of the mapping.
    """
    if not isinstance(value, Mapping):
        raise refused("mapping", "give a mapping of keys to values", (), value)
    name = value.get("kind", default)
    if name is None:
        known = registry.names(kind)
        raise refused("missing_kind", "missing key 'kind'", ("kind",), value, "one of: " + ", ".join(known))
    try:
        cls: type[BaseModel] = registry.load(str(name), kind).Config
    except UsageError as error:
        problem = error.problems[0]
        hint = advice(str(name), problem.hint) if kind is PROTOCOLS else problem.hint
        raise refused("unknown_kind", problem.message, ("kind",), name, hint) from error
    # JSON mode is strict about types ("5" is no number, true is none either) yet takes lists for tuples
    return cls.model_validate_json(json.dumps({**value, "kind": name}), strict=True)


def by_plugin(kind: Kind, default: str | None = None) -> PlainValidator:
    """Has a suite's field read by the plugin of ``kind`` that it names; validation's context holds the ``registry``."""

    def validated(value: Any, info: ValidationInfo) -> Any:
        return read(kind, value, (info.context or {}).get("registry") or installed(), default)

    return PlainValidator(validated)
