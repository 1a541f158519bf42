"""An optimizer: steps of one length, whatever the gradient's."""

from typing import Any

import torch

from tta_bench import adapter


class Sign(torch.optim.Optimizer):
    """θ ← θ − lr·sign(g)."""

    name = "sign"

    class Config(adapter.Config):
        lr: float

    def __init__(self, parameters: Any, lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
