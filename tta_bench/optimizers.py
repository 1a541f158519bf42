"""Optimizers by name: any method's objective can be run with any registered optimizer.

An optimizer is a ``torch.optim.Optimizer`` with a ``Config`` (its hyperparameters, including ``lr``), registered in the
entry-point group ``tta_bench.optimizers``; it is built as ``cls(parameters, **config)``.

Optionally, it has a class attribute ``needs`` (:class:`Needs`), a method ``stats()`` like an adapter's, and, if it is
learned, an attribute ``provenance`` (the origin of its checkpoint). The harness finds the optimizers on an adapter and
records all three, so methods need not forward them.
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
from tta_bench.registry import OPTIMIZERS, PluginEntry, Registry, installed


class OptimizerConfig(Config):
    """Hyperparameters of a method that takes optimizer steps.

    Attributes:
        optimizer: a registered name ("sgd", "adam", …).
        lr: learning rate.
        optimizer_options: other fields of that optimizer's Config; recorded with its defaults filled in.
    """

    optimizer: str = "sgd"
    lr: float = Field(gt=0)
    optimizer_options: dict[str, Any] = {}
    _entry: PluginEntry = PrivateAttr()

    @model_validator(mode="after")
    def _fill_in(self, info: ValidationInfo) -> OptimizerConfig:
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
            text = ("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
                              for e in error.errors()))  # fmt: skip
            raise ValueError(f"optimizer {self.optimizer}: {text}") from error
        object.__setattr__(self, "optimizer_options", options)  # the model is frozen
        return self

    def _full(self) -> Config:
        """The optimizer's Config; fields that the method's Config also has (``lr``) take the method's values."""
        cls: type[Config] = self.optimizer_class().Config
        own = {name: getattr(self, name) for name in cls.model_fields if name in type(self).model_fields}
        return cls(**{**self.optimizer_options, **own})

    def files(self) -> dict[str, str]:
        own = type(self).model_fields
        return super().files() | {f"optimizer_options.{k}": v for k, v in self._full().files().items() if k not in own}

    def plugins(self) -> dict[str, PluginEntry]:
        return {"optimizer": self._entry}

    def optimizer_class(self) -> Any:
        """The registered class of ``optimizer``."""
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
    """The optimizers among an adapter's attributes, and in lists, tuples and dicts among them, by attribute.

    Names are ``optimizer``, ``optimizers_0``, ``by_name_student``; an optimizer with two names has the first.
    """
    by_id: dict[int, tuple[str, torch.optim.Optimizer]] = {}
    for name, item in _within(adapter):
        if isinstance(item, torch.optim.Optimizer):
            by_id.setdefault(id(item), (name, item))
    return dict(by_id.values())


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
    """Statistics of an adapter's last step and of its optimizers'; those of several have the optimizer's name as prefix.

    Raises:
        ValueError: two of them use the same key.
    """
    statistics: dict[str, float | Tensor] = dict(adapter.stats())
    sources: dict[str, Any] = {name: o for name, o in found_on(adapter).items() if hasattr(o, "stats")}
    for attribute, optimizer in sources.items():
        prefix = f"{attribute}_" if len(sources) > 1 else ""
        own = {f"{prefix}{name}": value for name, value in optimizer.stats().items()}
        if both := sorted(statistics.keys() & own):
            which = f"{type(adapter).__name__}.stats() and its optimizer {type(optimizer).__name__}"
            raise ValueError(
                f"{which} both return {both[0]!r}: the harness adds an optimizer's statistics; rename the method's"
            )
        statistics |= own
    return statistics


def checkpoint_origin(adapter: Adapter) -> str:
    """The origin of an adapter's checkpoint, or else of its optimizers' checkpoints."""
    origins = (_origin(optimizer, adapter.model) for optimizer in found_on(adapter).values())
    return adapter.checkpoint_origin() or "; ".join(dict.fromkeys(filter(None, origins)))


def _origin(optimizer: torch.optim.Optimizer, model: SourceModel) -> str:
    provenance: Mapping[str, str] | None = getattr(optimizer, "provenance", None)
    if provenance is None:
        return ""
    if not provenance:
        return "no provenance"
    own = provenance.get("weights_sha256") == model.weights_sha256
    summary = provenance.get("summary", "")
    return summary if own or not model.weights_sha256 else f"{summary}; made for another source model"
