"""Tent in the form ``TTAMethod(cfg, model, num_classes)``: a base class configures, collects, copies and resets."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from tent_authors import collect_params, configure_model
from torch import Tensor, nn

from tta_bench.adapter import wrap


class TTAMethod(nn.Module):
    """Base of the methods; ``model`` normalises its input itself."""

    def __init__(self, cfg: Any, model: nn.Module, num_classes: int):
        super().__init__()
        self.cfg, self.num_classes = cfg, num_classes
        self.model = configure_model(model)
        self.optimizer = torch.optim.SGD(collect_params(model)[0], cfg.OPTIM.LR, momentum=cfg.OPTIM.BETA)
        self.states = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.cfg.OPTIM.STEPS):
            outputs = self.forward_and_adapt(x)
        return outputs

    def forward_and_adapt(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        for target, state in zip((self.model, self.optimizer), self.states, strict=True):
            target.load_state_dict(copy.deepcopy(state))


class Tent(TTAMethod):
    def forward_and_adapt(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        (-(outputs.softmax(1) * outputs.log_softmax(1)).sum(1)).mean(0).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return outputs


def build(net: Any, config: Any) -> nn.Module:
    cfg = SimpleNamespace(OPTIM=SimpleNamespace(LR=config.lr, BETA=config.beta, STEPS=config.steps))
    return Tent(cfg, net, net.num_classes)


cfg_tent = wrap("cfg-tent", build, hyperparameters={"lr": 2.5e-4, "beta": 0.9, "steps": 1}, normalised=False)
