"""Norm: BatchNorm with the statistics of the test batch (Nado et al. 2020, arXiv 2006.10963; Schneider et al. 2020).

Objective: none. Adapted: nothing is learned; every BatchNorm2d normalises with the batch's own mean and biased
variance, as Tent's code has it (``norm.py``). Running buffers drift (momentum 0.1) but never reach an output.

Discrepancy: Tent's code also forces eps to 1e-5, which costs networks that were trained with a larger one (EfficientNet
has 1e-3) several points; ``eps: null`` keeps each layer's own.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from tta_bench import adapter
from tta_bench.adapter import Adapter, Needs


class Norm(Adapter):
    """Test-batch normalisation statistics."""

    class Config(adapter.Config):
        """Attributes: eps: added to every BatchNorm's variance; None keeps each layer's own."""

        eps: float | None = Field(1e-5, gt=0)

    needs = Needs(norm_kinds=("batch",))

    def setup(self) -> None:
        for module in self.model.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.eps, module.momentum = self.config.eps or module.eps, 0.1

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The same scores as ``step``; the running buffers, which never reach an output, are put back."""
        layers = [m for m in self.model.net.modules() if isinstance(m, nn.BatchNorm2d)]
        kept = [{name: buffer.clone() for name, buffer in m.named_buffers()} for m in layers]
        scores: Tensor = self.model(x)
        for layer, buffers in zip(layers, kept, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        return scores
