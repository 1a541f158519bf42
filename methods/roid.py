"""ROID: weight ensembling, diversity weighting, prior correction (Marsden et al. 2024, arXiv 2306.00650).

Objective: the sum over the kept images of w·(SLR + SCE), divided by the nominal batch size. SLR is the soft likelihood
ratio of the predictions, SCE the symmetric cross-entropy between predictions of the image and of a random augmentation;
gradients flow through both. w = exp(diversity·certainty/temperature) is constant; diversity, 1 − cos(m, p) with the moving
class probabilities m, and certainty, −H, are scaled to [0, 1] over the batch. Images whose diversity is below the batch's
mean are dropped. Adapted: weight and bias of all normalisation layers; BatchNorm with batch statistics, for
the augmentations those of the kept images; evaluation mode. After each step the weights are drawn towards the source by
1 − ``momentum_src``. The scores graded are the logits before the update, times the smoothed class prior.

Random draws: one augmentation T_roid a batch (``augmentation.py``).

Discrepancies between paper and code, and traps:

- the abstract's first version calls the prior correction additive, its last a reweighting; the code multiplies *logits*,
  so that a rare class's negative logit rises.
- the loss is divided by the nominal batch size, also in a short batch.
- where all scores of a batch are equal (a batch of one among others), the code divides 0 by 0 and destroys the model. Here
  the scaled scores are then 0: every w is 1 and no image is dropped; the statistic ``equal_scores`` counts such batches.
- without ``use_weighting`` the code stops with a NameError unless ``use_consistency`` is off, too; here every w is 1.
- PyTorch refuses batch statistics of one value: a single kept image fails on a BatchNorm network with 1×1 maps.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tta_bench.adapter import Preset
from tta_bench.methods.augmentation import augment
from tta_bench.methods.ensemble import blend
from tta_bench.methods.functional import softmax_entropy
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.methods.prior import prior_correction
from tta_bench.methods.soft_losses import soft_likelihood_ratio, symmetric_cross_entropy
from tta_bench.optimizers import OptimizerConfig


class RoidConfig(OptimizerConfig):
    """Attributes:
    optimizer_options: other fields of the optimizer's Config; SGD has Nesterov momentum unless they say otherwise.
    use_weighting: weight and drop images; without it every weight is 1.
    use_prior_correction: multiply the logits by the smoothed class prior.
    use_consistency: add the symmetric cross-entropy of augmentations.
    momentum_probs: momentum of the moving class probabilities.
    temperature: T of the weights.
    """

    lr: float = 2.5e-4
    use_weighting: bool = True
    use_prior_correction: bool = True
    use_consistency: bool = True
    momentum_probs: float = Field(0.9, ge=0, le=1)
    temperature: float = Field(1 / 3, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _nesterov(cls, values: Any) -> Any:
        options = values.get("optimizer_options", {})
        if values.get("optimizer", "sgd") != "sgd" or not isinstance(options, dict):
            return values
        return {**values, "optimizer_options": {"nesterov": options.get("momentum") != 0, **options}}


class Roid(NormAdapter):
    """Certain, diverse predictions through weighting, consistency and weight ensembling."""

    class Config(RoidConfig):
        """Attributes: momentum_src: share of the adapted weights after each step; the rest is the source's."""

        momentum_src: float = Field(0.99, ge=0, le=1)

    presets = {
        "imagenet_vit_b16": Preset({}, "mariodoebler/test-time-adaptation (cfgs/imagenet_c/roid.yaml), batch 64"),
        "imagenet_resnet50_bn": Preset({}, "mariodoebler/test-time-adaptation (cfgs/imagenet_c/roid.yaml), batch 64"),
        "cifar10": Preset(
            {"optimizer": "adam", "lr": 1e-3},
            "mariodoebler/test-time-adaptation (cfgs/cifar10_c/roid.yaml), batch 200",
        ),
    }

    def setup(self) -> None:
        super().setup()
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        classes = self.model.num_classes
        self.class_probabilities = self.model.mean.new_full((classes,), 1 / classes)
        self.source = [p.detach().clone() for p in self.parameters]
        self.kept, self.equal_scores = 0, torch.tensor(False)

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        weights, kept = self._weights(logits.detach())
        self.kept = len(kept)
        loss = (weights * soft_likelihood_ratio(logits[kept])).sum()
        if self.config.use_consistency:
            augmented = self.model(augment(x[kept], self.context.generator, "roid"))
            loss = loss + (weights * symmetric_cross_entropy(logits[kept], augmented)).sum()
        self.update(loss / self.context.batch_size)
        self.ensemble()
        return self._corrected(logits.detach())

    def ensemble(self) -> None:
        """Draw the weights towards the source."""
        blend(self.parameters, self.source, self.config.momentum_src)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return self._corrected(self.model(x))

    def _corrected(self, logits: Tensor) -> Tensor:
        return prior_correction(logits) if self.config.use_prior_correction else logits

    def _weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (K,) and indices (K,) of the kept images; updates the moving class probabilities with all of them."""
        if not self.config.use_weighting:
            return torch.ones_like(logits[:, 0]), torch.arange(len(logits), device=logits.device)
        probabilities, mean = logits.softmax(1), self.class_probabilities
        similarity = torch.nn.functional.cosine_similarity(mean.unsqueeze(0), probabilities, dim=1)
        scores = torch.stack([1 - similarity, -softmax_entropy(logits)])
        lowest, highest = scores.aminmax(dim=1, keepdim=True)
        equal = lowest == highest
        diversity, certainty = ((scores - lowest) / (highest - lowest)).masked_fill(equal, 0)
        self.equal_scores = equal.any()
        self.class_probabilities = mean.lerp(probabilities.mean(0), 1 - self.config.momentum_probs)
        kept = torch.nonzero(~(diversity < diversity.mean())).flatten()  # the host waits: only these are augmented
        return torch.exp(diversity * certainty / self.config.temperature)[kept], kept

    def stats(self) -> dict[str, float | Tensor]:
        """kept: images in the loss; equal_scores: 1 where diversities or certainties were all equal."""
        return {"kept": float(self.kept), "equal_scores": self.equal_scores.float()}
