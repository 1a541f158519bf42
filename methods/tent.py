"""Tent: fully test-time adaptation by entropy minimization (Wang et al. 2021, arXiv 2006.10726).

Objective (section 3.1): the mean over the batch of the entropy of the predictions. Adapted (section 3.2): weight and
bias of the normalisation layers, BatchNorm with the statistics of the test batch. One step a batch; the scores graded
are those of the forward pass before the update (section 3.3).

Discrepancies between paper and code: the authors' repository adapts BatchNorm2d only; this, as SAR's code, GroupNorm and
LayerNorm, too. Their ImageNet script was never released: its hyperparameters are those of EATA's and SAR's code.
"""

from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Preset
from tta_bench.methods.functional import small_batch_lr_resnet, small_batch_lr_vit, softmax_entropy
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.optimizers import OptimizerConfig


class Tent(NormAdapter):
    """Entropy minimisation on the normalisation layers' affine parameters."""

    class Config(OptimizerConfig):
        """Attributes: steps: optimizer steps a batch; the last one's forward pass is what is graded."""

        lr: float = 2.5e-4
        steps: int = Field(1, ge=1)

    presets = {
        "imagenet_vit_b16": Preset({"lr": small_batch_lr_vit}, "SAR's code (main.py); FOA, arXiv 2404.01650, has 1e-3"),
        "imagenet_resnet50_gn": Preset({"lr": small_batch_lr_resnet}, "SAR's code (main.py)"),
        "imagenet_resnet50_bn": Preset({"lr": small_batch_lr_resnet}, "EATA's and SAR's code (main.py)"),
        "cifar10": Preset({"optimizer": "adam", "lr": 1e-3}, "Tent's code (cfgs/tent.yaml), batch 200"),
    }

    def step(self, x: Tensor) -> Tensor:
        for _ in range(self.config.steps):
            logits: Tensor = self.model(x)
            self.update(softmax_entropy(logits).mean())
        return logits.detach()
