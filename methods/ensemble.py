"""Weight ensembling: moving averages of networks' parameters, in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def blend(targets: Iterable[Tensor], others: Iterable[Tensor], momentum: float) -> None:
    """target ← momentum·target + (1 − momentum)·other, for each pair; nothing where the momentum is 1."""
    if momentum == 1:  # 0·NaN would spread
        return
    targets = [*targets]
    torch._foreach_mul_(targets, momentum)
    torch._foreach_add_(targets, [*others], alpha=1 - momentum)
