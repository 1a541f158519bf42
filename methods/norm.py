"""Norm: BatchNorm with statistics of the test images (Nado et al. 2020, arXiv 2006.10963; Schneider et al. 2020, arXiv
2006.16971). Objective: none. Adapted: no parameter; only the statistics that every BatchNorm2d normalises with.

- ``statistics: batch``: the batch's own mean and biased variance, as Tent's code has it (``norm.py``). Running buffers
  drift (momentum 0.1) but never reach an output. Discrepancy: Tent's code also forces eps to 1e-5, which costs networks
  that were trained with a larger one (EfficientNet has 1e-3) several points; ``eps: null`` keeps each layer's own.
- ``statistics: blend``: (1 − α)·source + α·batch, for mean and variance (Schneider et al., equation 1; see
  ``blended_bn.py``), with α = n / (N + n) for a batch of n images and a prior of N, or a fixed ``alpha``. The batch's
  variance is the unbiased one, as re-implementations have it, so α = 1 is not ``batch``. Nothing outlives a batch.
- ``statistics: running``: a first pass in training mode updates the running statistics (momentum 0.1, unbiased variance),
  a second one in evaluation mode is graded; what was seen before stays until a reset.

Published values: Schneider et al. choose the prior N for each batch size; MEMO's code has N = 16 for one image.
mariodoebler/test-time-adaptation has α = 0.1 at batch 1 (``norm_alpha.yaml``, CIFAR-10-C and ImageNet-C), and runs
``running`` as ``BNEMA`` at batch 200 or 64; its settings without resets carry the statistics from shift to shift.
yuyongcan/Benchmark-TTA has α = 0.1, on ImageNet-C at batch 64, too. LINs-lab/ttab names the complement: its
``adapt_prior`` is 1 − α, by default 0. There are no presets: a preset would change which form a suite runs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tta_bench import adapter
from tta_bench.adapter import Adapter, Context, Needs
from tta_bench.methods.blended_bn import blend_statistics
from tta_bench.methods.functional import no_statistics
from tta_bench.models import MissingPart, SourceModel

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

        def weight(self, images: int) -> float:
            """α for a batch of so many images."""
            return images / (self.prior + images) if self.alpha is None else self.alpha

    needs = Needs(norm_kinds=("batch",))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or no_statistics(model, context)

    def setup(self) -> None:
        self.layers = [m for m in self.model.net.modules() if isinstance(m, nn.BatchNorm2d)]
        if not self.layers:
            raise MissingPart("the model has no BatchNorm2d layer")
        if self.config.statistics == "blend":
            blend_statistics(self.model.net, self.config.weight)
            return
        for layer in self.layers:
            layer.momentum = _MOMENTUM
            if self.config.statistics == "batch":
                layer.train()
                layer.eps = self.config.eps or layer.eps

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        if self.config.statistics == "running":
            self.model.train()
            self.model(x)
            self.model.eval()
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
