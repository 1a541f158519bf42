"""The optimizer AdamW."""

from __future__ import annotations

import torch
from pydantic import Field

from tta_bench import adapter


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): the decay pulls towards 0, not the source weights."""

    class Config(adapter.Config):
        """Attributes: lr, betas, eps, weight_decay: as in :class:`torch.optim.AdamW`."""

        lr: float = Field(gt=0)
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)
        weight_decay: float = Field(0.01, ge=0)
