"""The parts of a suite that plugins validate: ``data``, ``protocol`` and each of ``models``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import BaseModel, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from tta_bench.data.base import DataConfig
from tta_bench.errors import UsageError, refused
from tta_bench.protocols.words import advice
from tta_bench.registry import DATASETS, PROTOCOLS, PluginKind, Registry, installed


def config_class(
    kind: PluginKind, value: Any, registry: Registry, default: str | None = None
) -> type[BaseModel] | None:
    """The Config of the plugin named by ``kind`` in ``value``; None where there is no name or it cannot be loaded."""
    name = value.get("kind", default) if isinstance(value, Mapping) else None
    try:
        return registry.load(name, kind).Config if isinstance(name, str) else None  # type: ignore[no-any-return]
    except UsageError:
        return None


def read(kind: PluginKind, value: Any, registry: Registry, default: str | None = None) -> Any:
    """A part, validated by the Config of the plugin that it names.

    Args:
        kind: kind of plugin.
        value: a mapping of plain YAML values; its key ``kind`` is the plugin's name.
        registry: the plugins.
        default: the plugin of a mapping without ``kind``.

    Raises:
        pydantic.ValidationError: with all problems of the mapping.
    """
    if not isinstance(value, Mapping):
        raise refused("mapping", "must be a mapping of keys to values", (), value)
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
    # JSON mode is strict about types ("5" and true are not numbers) but accepts lists as tuples
    return cls.model_validate_json(json.dumps({**value, "kind": name}), strict=True)


def known_shifts(value: Any, registry: Registry) -> list[str] | None:
    """What a suite with this ``data`` may list under ``corruptions``; None where the data are invalid, so not known.

    Kinds of data with the usual corruptions are known even then.
    """
    usual = DataConfig.model_construct(kind="").shift_names()
    try:
        return list(read(DATASETS, value, registry).shift_names())
    except (pydantic.ValidationError, PydanticCustomError):
        config = config_class(DATASETS, value, registry)
        own = config is not None and getattr(config, "shift_names", None) is not DataConfig.shift_names
        return None if own else list(usual)


def shifts_of(info: ValidationInfo) -> list[str] | None:
    """What a suite may list under ``corruptions``, from its validation's context; None: not known."""
    return (info.context or {}).get("shifts")


def registry_of(info: ValidationInfo) -> Registry:
    """The plugins of a suite's validation: those in its context, or the installed ones."""
    return (info.context or {}).get("registry") or installed()


def by_plugin(kind: PluginKind, default: str | None = None) -> PlainValidator:
    """Validate a suite's field with :func:`read`; the validation context has the ``registry``."""

    def validated(value: Any, info: ValidationInfo) -> Any:
        return read(kind, value, registry_of(info), default)

    return PlainValidator(validated)
