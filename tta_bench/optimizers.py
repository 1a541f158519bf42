"""Optimizers by name: any objective can be run with any registered optimizer.

An optimizer is a ``torch.optim.Optimizer`` with a ``Config`` (its hyperparameters, ``lr`` among them), registered under
the entry points ``tta_bench.optimizers``; it is built as ``cls(parameters, **config)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from tta_bench.adapter import Config
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


def checkpoint_origin(optimizer: torch.optim.Optimizer, model: SourceModel) -> str:
    """What a learned optimizer's checkpoint says of its origin (its attribute ``provenance``); empty for any other."""
    provenance: Mapping[str, str] | None = getattr(optimizer, "provenance", None)
    if provenance is None:
        return ""
    if not provenance:
        return "no provenance"
    own = provenance.get("weights_sha256") == model.weights_sha256
    said = provenance.get("summary", "")
    return said if own or not model.weights_sha256 else f"{said}; made for another source model"


def optimizer_stats(optimizer: torch.optim.Optimizer) -> Mapping[str, float | Tensor]:
    """What an optimizer says about its last step (its method ``stats``), for an adapter's ``stats``."""
    stats: Any = getattr(optimizer, "stats", dict)
    found: Mapping[str, float | Tensor] = stats()
    return found
