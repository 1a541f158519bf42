"""Tent in the form in which methods are published, and the five lines that make a method of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tta_bench.adapter import wrap

_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


class Tent(nn.Module):
    """Adapts a network by entropy minimisation in each forward pass."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.model, self.optimizer = model, optimizer
        self.model_state = copy.deepcopy(model.state_dict())
        self.optimizer_state = copy.deepcopy(optimizer.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        entropy = -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean()
        entropy.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return outputs

    def reset(self) -> None:
        self.model.load_state_dict(self.model_state, strict=True)
        self.optimizer.load_state_dict(self.optimizer_state)


def configure_model(model: nn.Module) -> nn.Module:
    model.train()
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(True)
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return model


def collect_params(model: nn.Module) -> tuple[list[nn.Parameter], list[str]]:
    named = [(f"{m}.{p}", value) for m, module in model.named_modules() if isinstance(module, _NORMS)
             for p, value in module.named_parameters()]  # fmt: skip
    return [value for _, value in named], [name for name, _ in named]


def build(net: nn.Module, config: Any) -> nn.Module:
    net = configure_model(net)
    return Tent(net, torch.optim.SGD(collect_params(net)[0], config.lr, momentum=0.9))


tent_authors = wrap("tent-authors", build, hyperparameters={"lr": 2.5e-4})
