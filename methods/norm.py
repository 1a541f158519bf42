"""Norm: BatchNorm with statistics of the test images (Nado et al. 2020, arXiv 2006.10963; Schneider et al. 2020, arXiv
2006.16971). Objective: none. Adapted: no parameter; only the statistics that every BatchNorm2d normalises with.

- ``statistics: batch``: the batch's own mean and biased variance, as Tent's code has it (``norm.py``). Running buffers
  drift (momentum 0.1) but never reach an output. Discrepancy: Tent's code also forces eps to 1e-5, which costs networks
  that were trained with a larger one (EfficientNet has 1e-3) several points; ``eps: null`` keeps each layer's own.
- ``statistics: blend``: (1 − α)·source + α·batch, for mean and variance (Schneider et al., equation 1), with
  α = n / (N + n) for a batch of n images and a prior of N, or a fixed ``alpha``. The batch's variance is the unbiased
  one, as re-implementations have it, so α = 1 is not ``batch``.
- ``statistics: running``: a first pass updates the running statistics (momentum 0.1, unbiased variance), a second one in
  evaluation mode is graded; what was seen before stays until a reset.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tta_bench import adapter
from tta_bench.adapter import Adapter, Context, Needs
from tta_bench.methods.functional import no_statistics
from tta_bench.models import SourceModel

_MOMENTUM = 0.1


class Norm(Adapter):
    """Normalisation statistics of the test images."""

    class Config(adapter.Config):
        """Attributes:
        statistics: "batch", "blend" or "running"; see the file's docstring.
        prior: N, what the source statistics count as, in images ("blend").
        alpha: weight of the batch in place of n / (N + n) ("blend").
        eps: added to every variance ("batch"); None keeps each layer's own, as the other two forms do.
        """

        statistics: Literal["batch", "blend", "running"] = "batch"
        prior: float = Field(16.0, ge=0)
        alpha: float | None = Field(None, ge=0, le=1)
        eps: float | None = Field(1e-5, gt=0)

    needs = Needs(norm_kinds=("batch",))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or no_statistics(model, context)

    def setup(self) -> None:
        self.layers = [m for m in self.model.net.modules() if isinstance(m, nn.BatchNorm2d)]
        for layer in self.layers:
            layer.momentum = _MOMENTUM
            if self.config.statistics == "batch":
                layer.train()
                layer.eps = self.config.eps or layer.eps
            elif self.config.statistics == "blend":
                layer.register_forward_pre_hook(_Blend(layer, self._weight))

    def _weight(self, images: int) -> float:
        """α for a batch of so many images."""
        alpha: float | None = self.config.alpha
        return images / (self.config.prior + images) if alpha is None else alpha

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        if self.config.statistics == "running":
            for layer in self.layers:
                layer.train()
            self.model(x)
            for layer in self.layers:
                layer.eval()
        scores: Tensor = self.model(x)
        return scores

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The scores with the present statistics; buffers that the pass changes are put back."""
        kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in self.layers]
        scores: Tensor = self.model(x)
        for layer, buffers in zip(self.layers, kept, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        return scores


class _Blend:
    """Before a layer in evaluation mode runs: write the blend of source and batch statistics into its buffers."""

    def __init__(self, layer: nn.BatchNorm2d, weight: Any):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self.mean, self.variance = layer.running_mean.clone(), layer.running_var.clone()
        self.weight = weight

    def __call__(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        [x] = inputs
        alpha = self.weight(len(x))
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(self.mean.lerp(x.mean((0, 2, 3)), alpha))
        layer.running_var.copy_(self.variance.lerp(x.var((0, 2, 3), unbiased=True), alpha))
