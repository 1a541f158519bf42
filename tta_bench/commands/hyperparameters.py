"""A Config's fields as a user reads them: type, default in YAML, description."""

from __future__ import annotations

import inspect
import itertools
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from tta_bench.adapter import is_file
from tta_bench.protocols import ProtocolConfig
from tta_bench.registry import Registry

_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


class Hyperparameter(NamedTuple):
    """A field; ``default`` is "default VALUE", with the value in YAML, as a suite gives it, or "required"."""

    name: str
    type: str
    default: str
    description: str


def hyperparameters(
    config: type[BaseModel], registry: Registry, example: Mapping[str, Any] | None = None
) -> list[Hyperparameter]:
    """The fields of a Config, in its order, those of nested mappings after theirs (``adapt``, ``adapt.first``, …).

    Args:
        config: the class.
        registry: the plugins that fields may name.
        example: values of the fields that a suite has to give. Defaults may depend on them.
    """
    given, descriptions = example or {}, _descriptions(config)
    values = defaults(config, registry, given)
    varied = config.varied() if issubclass(config, ProtocolConfig) else []
    fields = []
    for name, field in config.model_fields.items():
        default = values[name][0] if name in varied and name in values else values.get(name)
        fields.append(
            Hyperparameter(
                name,
                f"{_element(field)}, or a list" if name in varied else _type(field),
                "required" if name in given or field.is_required() else f"default {as_yaml(default)}",
                descriptions.get(name, ""),
            )
        )
        for nested in _nested(field.annotation):
            fields += [each._replace(name=f"{name}.{each.name}") for each in hyperparameters(nested, registry)]
    return fields


def defaults(config: type[BaseModel], registry: Registry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each field, where ``given`` values are set; a required field that is not given has none."""
    try:
        return dict(config.model_validate(given, context={"registry": registry}))
    except ValidationError:
        fields = config.model_fields.items()
        return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


def as_yaml(value: Any) -> str:
    """A value on one line, as a suite spells it."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _type(field: FieldInfo) -> str:
    kind = "file" if is_file(None, field.metadata) else _annotation(field.annotation)
    return ", ".join([kind, *_bounds(field.metadata)])


def _element(field: FieldInfo) -> str:
    """The type of one value where a suite may give a list of them."""
    return _annotation(get_args(field.annotation)[0])


def _bounds(marks: Iterable[Any]) -> list[str]:
    """``≥ 0``, … of an annotation's marks."""
    plain = itertools.chain.from_iterable(mark.metadata if isinstance(mark, FieldInfo) else [mark] for mark in marks)
    return [
        f"{sign} {getattr(mark, name):g}"
        for mark in plain for name, sign in _BOUNDS.items() if getattr(mark, name, None) is not None
    ]  # fmt: skip


def _nested(annotation: Any) -> Iterator[type[BaseModel]]:
    """The mappings with fields of their own within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _nested(argument)


def _annotation(annotation: Any) -> str:
    """An annotation as a reader of YAML spells it: ``float ≥ 0 | null``, ``file | null``, ``batch | blend``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return "file" if is_file(annotation) else " ".join([_annotation(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_annotation, arguments))
    if origin in (list, tuple):
        return f"list of {_annotation(arguments[0])}" if arguments else "list"
    if origin is dict or annotation is dict or next(_nested(annotation), None):
        return "mapping"
    if annotation is Any:
        return "any"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _descriptions(config: type[BaseModel]) -> dict[str, str]:
    """Each field's own description, or what the docstring of its class or of a base says of it."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        texts |= dict(documented(cls.__dict__.get("__doc__") or "", "Attributes", config.model_fields))
    return texts | {name: field.description for name, field in config.model_fields.items() if field.description}


def section(docstring: str, title: str) -> str:
    """The text of a section (``Attributes:``, ``Example:``, …) of a docstring; empty where there is none."""
    return inspect.cleandoc(docstring).partition(f"{title}:")[2].partition("\n\n")[0]


def documented(docstring: str, title: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The items of a docstring's section; one may describe several names (``lr, eps: …``).

    A section on one line separates its items by semicolons.
    """
    name = "|".join(map(re.escape, names))
    _, *parts = re.split(rf"(?:^|;|\n)\s*((?:{name})(?:, (?:{name}))*):\s", section(docstring, title))
    for heads, text in zip(parts[::2], parts[1::2], strict=True):
        for head in heads.split(", "):
            yield head, " ".join(text.split())
