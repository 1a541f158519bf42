"""Tent: fully test-time adaptation by entropy minimization (Wang et al. 2021, arXiv 2006.10726).

Objective (section 3.1): the mean over the batch of the entropy of the predictions. Adapted (section 3.2): weight and
bias of the normalisation layers, BatchNorm with the statistics of the test batch. One step a batch; the scores graded
are those of the forward pass before the update (section 3.3).

Discrepancies between paper and code: the authors' repository adapts BatchNorm2d only; later re-implementations (SAR's,
and this one) adapt GroupNorm and LayerNorm too, so that networks without BatchNorm can be adapted at all. The ImageNet
script was never released: the ImageNet hyperparameters are those of EATA's and SAR's code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tta_bench.adapter import Adapter, Context, Needs, Preset
from tta_bench.methods.functional import (
    adapt_norm_affine,
    no_statistics,
    small_batch_lr_resnet,
    small_batch_lr_vit,
    softmax_entropy,
    use_batch_statistics,
)
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig


class Tent(Adapter):
    """Entropy minimisation on the normalisation layers' affine parameters."""

    class Config(OptimizerConfig):
        """Attributes: steps: optimizer steps a batch; the last one's forward pass is what is graded."""

        lr: float = 2.5e-4
        steps: int = 1

    presets = {
        "imagenet_vit_b16": Preset({"lr": small_batch_lr_vit}, "SAR's code (main.py); FOA, arXiv 2404.01650, has 1e-3"),
        "imagenet_resnet50_gn": Preset({"lr": small_batch_lr_resnet}, "SAR's code (main.py)"),
        "imagenet_resnet50_bn": Preset({"lr": small_batch_lr_resnet}, "EATA's and SAR's code (main.py)"),
        "cifar10": Preset({"optimizer": "adam", "lr": 1e-3}, "Tent's code (cfgs/tent.yaml), batch 200"),
    }
    needs = Needs(backward=True, norm_kinds=("batch", "group", "layer"))

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        return super().skip(model, config, context) or no_statistics(model, context)

    def setup(self) -> None:
        self.model.train()
        use_batch_statistics(self.model)
        self.optimizer = self.config.build(adapt_norm_affine(self.model))

    def step(self, x: Tensor) -> Tensor:
        logits: Any = None
        for _ in range(self.config.steps):
            logits = self.model(x)
            softmax_entropy(logits).mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        scores: Tensor = logits.detach()
        return scores
