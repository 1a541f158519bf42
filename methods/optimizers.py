"""Built-in optimizers: PyTorch's, with the hyperparameters that the papers use as defaults."""

from __future__ import annotations

import torch
from pydantic import Field

from tta_bench import adapter


class SGD(torch.optim.SGD):
    """Stochastic gradient descent: buf ← momentum·buf + g, θ ← θ − lr·buf (the first step: buf = g)."""

    class Config(adapter.Config):
        """Attributes: lr, momentum, weight_decay, nesterov: as in :class:`torch.optim.SGD`."""

        lr: float = Field(gt=0)
        momentum: float = Field(0.9, ge=0, lt=1)
        weight_decay: float = Field(0.0, ge=0)
        nesterov: bool = False


class Adam(torch.optim.Adam):
    """Adam (Kingma and Ba 2015)."""

    class Config(adapter.Config):
        """Attributes: lr, betas, eps, weight_decay: as in :class:`torch.optim.Adam`."""

        lr: float = Field(gt=0)
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)
        weight_decay: float = Field(0.0, ge=0)
