"""Norm: BatchNorm with the statistics of the test batch (Nado et al. 2020, arXiv 2006.10963; Schneider et al. 2020).

Objective: none. Adapted: nothing is learned; every BatchNorm2d normalises with the batch's own mean and biased
variance, eps 1e-5, as Tent's code has it (``norm.py``). Running buffers drift (momentum 0.1) but never reach an output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tta_bench.adapter import Adapter, Needs


class Norm(Adapter):
    """Test-batch normalisation statistics."""

    needs = Needs(norm_kinds=("batch",))

    def setup(self) -> None:
        for module in self.model.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.eps, module.momentum = 1e-5, 0.1

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
