"""Optimizers by name: any objective can be run with any registered optimizer.

An optimizer is a ``torch.optim.Optimizer`` with a ``Config`` (its hyperparameters, ``lr`` among them), registered under
the entry points ``tta_bench.optimizers``; it is built as ``cls(parameters, **config)``.

It may also have ``needs`` (a class attribute, :class:`Needs`), a method ``stats()`` as an adapter has, and the attribute
``provenance`` of a learned one: what its checkpoint says of its origin. The harness finds optimizers on an adapter by
itself and records all three, so that no method has to pass them on.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from tta_bench.adapter import Adapter, Config, Needs
from tta_bench.errors import UsageError, refused
from tta_bench.models import SourceModel
from tta_bench.registry import OPTIMIZERS, Entry, Registry, installed


class OptimizerConfig(Config):
    """Hyperparameters of a method that takes optimizer steps.

    Attributes:
        optimizer: a registered name ("sgd", "adam", …).
        lr: learning rate.
        optimizer_options: further fields of that optimizer's Config; filled up with its defaults, so that what is
            recorded is what ran.
    """

    optimizer: str = "sgd"
    lr: float = Field(gt=0)
    optimizer_options: dict[str, Any] = {}
    _entry: Entry = PrivateAttr()

    @model_validator(mode="after")
    def _fill_up(self, info: ValidationInfo) -> OptimizerConfig:
        registry: Registry = (info.context or {}).get("registry") or installed()
        try:
            self._entry = registry.entry(self.optimizer, OPTIMIZERS)
            self._entry.load()
        except UsageError as error:
            [problem] = error.problems
            raise refused("unknown_plugin", problem.message, ("optimizer",), self.optimizer, problem.hint) from error
        try:
            options = self._full().model_dump(exclude=set(type(self).model_fields))
        except ValidationError as error:
            said = ("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
                              for e in error.errors()))  # fmt: skip
            raise ValueError(f"optimizer {self.optimizer}: {said}") from error
        object.__setattr__(self, "optimizer_options", options)  # the model is frozen for everybody else
        return self

    def _full(self) -> Config:
        """The optimizer's hyperparameters; those that the method's Config has too (``lr``) are the method's."""
        cls: type[Config] = self.optimizer_class().Config
        own = {name: getattr(self, name) for name in cls.model_fields if name in type(self).model_fields}
        return cls(**{**self.optimizer_options, **own})

    def files(self) -> dict[str, str]:
        own = type(self).model_fields
        return super().files() | {f"optimizer_options.{k}": v for k, v in self._full().files().items() if k not in own}

    def plugins(self) -> dict[str, Entry]:
        return {"optimizer": self._entry}

    def optimizer_class(self) -> Any:
        """The class that is registered as ``optimizer``."""
        return self._entry.load()

    def keyed(self) -> dict[str, Any]:
        own = type(self).model_fields
        options = {name: value for name, value in self._full().keyed().items() if name not in own}
        values = {name: value for name, value in super().keyed().items() if name != "optimizer_options"}
        return values | ({"optimizer_options": options} if options else {})

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        optimizer: torch.optim.Optimizer = self.optimizer_class()(parameters, **self._full().model_dump())
        return optimizer


def found_on(adapter: Adapter) -> dict[str, torch.optim.Optimizer]:
    """Each optimizer that is an attribute of an adapter, or lies in a list, tuple or dict that is one, by its place.

    Places are ``optimizer``, ``optimizers_0``, ``by_name_student``; an optimizer in two of them counts in the first.
    """
    found: dict[int, tuple[str, torch.optim.Optimizer]] = {}
    for place, item in _within(adapter):
        if isinstance(item, torch.optim.Optimizer):
            found.setdefault(id(item), (place, item))
    return dict(found.values())


def _within(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    for name, value in vars(adapter).items():
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        yield from ((f"{name}_{key}", item) for key, item in items)
        yield name, value


def needs(adapter: Adapter) -> Needs:
    """What an adapter and its optimizers need together."""
    own = [getattr(optimizer, "needs", Needs()) for optimizer in found_on(adapter).values()]
    return functools.reduce(operator.or_, own, adapter.needs)


def stats(adapter: Adapter) -> dict[str, float | Tensor]:
    """What an adapter says about its last step, and what its optimizers say; of several, under their places' names.

    Raises:
        ValueError: two of them say something under one name.
    """
    said: dict[str, float | Tensor] = dict(adapter.stats())
    speaking: dict[str, Any] = {place: o for place, o in found_on(adapter).items() if hasattr(o, "stats")}
    for place, optimizer in speaking.items():
        prefix = f"{place}_" if len(speaking) > 1 else ""
        more = {f"{prefix}{name}": value for name, value in optimizer.stats().items()}
        if both := sorted(said.keys() & more):
            which = f"{type(adapter).__name__}.stats() and its optimizer {type(optimizer).__name__}"
            raise ValueError(
                f"{which} both say {both[0]!r}: the harness adds what an optimizer says; rename the method's"
            )
        said |= more
    return said


def checkpoint_origin(adapter: Adapter) -> str:
    """Where checkpoints come from: what the adapter says, or else what its optimizers' say of themselves."""
    said = (_origin(optimizer, adapter.model) for optimizer in found_on(adapter).values())
    return adapter.checkpoint_origin() or "; ".join(dict.fromkeys(filter(None, said)))


def _origin(optimizer: torch.optim.Optimizer, model: SourceModel) -> str:
    provenance: Mapping[str, str] | None = getattr(optimizer, "provenance", None)
    if provenance is None:
        return ""
    if not provenance:
        return "no provenance"
    own = provenance.get("weights_sha256") == model.weights_sha256
    summary = provenance.get("summary", "")
    return summary if own or not model.weights_sha256 else f"{summary}; made for another source model"
