"""Optimizers by name: any objective can be run with any registered optimizer.

An optimizer is a ``torch.optim.Optimizer`` with a ``Config`` (its hyperparameters, ``lr`` among them), registered under
the entry points ``tta_bench.optimizers``; it is built as ``cls(parameters, **config)``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field, model_validator

from tta_bench.adapter import Config
from tta_bench.errors import UsageError
from tta_bench.registry import OPTIMIZERS, Registry


@functools.cache
def _registry() -> Registry:
    return Registry(OPTIMIZERS)


def optimizer_class(name: str) -> Any:
    """The optimizer class registered as ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    try:
        return _registry().load(name)
    except UsageError as error:
        raise ValueError(str(error)) from error


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

    @model_validator(mode="after")
    def _fill_up(self) -> OptimizerConfig:
        options = self._full_options().model_dump(exclude={"lr"})
        object.__setattr__(self, "optimizer_options", options)  # the model is frozen for everybody else
        return self

    def _full_options(self) -> Config:
        config: Config = optimizer_class(self.optimizer).Config(lr=self.lr, **self.optimizer_options)
        return config

    def files(self) -> dict[str, str]:
        return super().files() | {f"optimizer_options.{k}": v for k, v in self._full_options().files().items()}

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        optimizer: torch.optim.Optimizer = optimizer_class(self.optimizer)(
            parameters, lr=self.lr, **self.optimizer_options
        )
        return optimizer
