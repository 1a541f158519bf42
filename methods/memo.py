"""MEMO: test-time robustness via adaptation and augmentation (Zhang, Levine and Finn 2022, arXiv 2110.09506).

Objective, for one image: the entropy of the mean of the probabilities of its ``num_views`` AugMix views (``augmix.py``).
Adapted: every parameter of the network, which stays in evaluation mode. BatchNorm2d blends the source's statistics with
those of each forward pass (``blended_bn.py``), with weight N/(N + 1) for the source, N = ``prior_strength``, however many
views there are.

Each image is adapted on alone, starting from the source weights: ``steps`` times, new views and an optimizer step; then
its scores, after the update, from a pass of the image itself, whose BatchNorm statistics are blended with those of this
one image. The scores thus do not depend on the batch size. The source weights are put back after each image, but not the
state of an adaptive optimizer: as in the authors' code, Adam's and AdamW's moments run on until a reset.

Discrepancies between published copies, of which this is the authors' code (``imagenet-exps`` and ``cifar-10-exps``):

- mariodoebler/test-time-adaptation has Nesterov's momentum 0.9, which in an episode of one step makes the learning rate
  1.9 times the stated one, and N = 9; adapts weights and biases only, without class token and position embedding; draws
  the views once and uses them in all steps; and takes several images in a batch for one.
- yuyongcan/Benchmark-TTA and LINs-lab/ttab take one step on the mean loss of a batch's images. Benchmark-TTA's best
  settings are 32 views with lr 2e-3 and N = 1 (CIFAR-10-C), or 5e-5 and N = 9 (ImageNet-C).
- the authors mix normalised images; mixed before normalisation they differ by about 1e-6, as the weights sum to 1.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from tta_bench.adapter import Adapter, Context, Needs, Preset, constant
from tta_bench.methods.augmix import PreAugmentation, augmix
from tta_bench.methods.blended_bn import blend_statistics
from tta_bench.methods.functional import no_statistics
from tta_bench.methods.transfer import to_device
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig


class Memo(Adapter):
    """Episodic adaptation of all weights to one image at a time."""

    class Config(OptimizerConfig):
        """Attributes:
        steps: optimizer steps an image, each with new views.
        num_views: V, views in a step.
        prior_strength: N, what the source's BatchNorm statistics count as, beside 1 for the pass's own; None: the
            source's alone.
        pre_augmentation: what a view starts with, besides a horizontal flip; "crop" is of the size of the image, padded
            by 4 pixels, "resized_crop" has 8 to 100 % of its area.
        """

        lr: float = 2.5e-4
        optimizer_options: dict[str, Any] = Field({}, validate_default=True)
        steps: int = Field(1, ge=1)
        num_views: int = Field(64, ge=1)
        prior_strength: float | None = Field(16.0, ge=0)
        pre_augmentation: PreAugmentation = "resized_crop"

        @field_validator("optimizer_options")
        @classmethod
        def _plain(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            """The published SGD has no momentum."""
            return {"momentum": 0.0, **options} if info.data.get("optimizer") == "sgd" else options

    presets = {
        "imagenet_resnet50_bn": Preset({}, "MEMO's code (imagenet-exps), ResNet-50"),
        "imagenet_resnet50_gn": Preset({}, "MEMO's code (imagenet-exps), its ResNet-50 with BatchNorm"),
        "imagenet_vit_b16": Preset(
            {"optimizer": "adamw", "lr": 1e-5, "optimizer_options": {"weight_decay": 0.01}},
            "MEMO's code (imagenet-exps), RVT*-small: the nearest published one",
        ),
        "cifar10": Preset(
            {"lr": 5e-3, "num_views": 32, "prior_strength": None, "pre_augmentation": "crop"},
            "MEMO's code (cifar-10-exps), ResNet-26 with GroupNorm",
        ),
    }
    needs = Needs(backward=True)

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        reason = super().skip(model, config, context)
        if reason or config.prior_strength is None:
            return reason
        return no_statistics(model, dataclasses.replace(context, batch_size=1))  # each image is scored alone

    def setup(self) -> None:
        self.source = constant(copy.deepcopy(self.model))
        self.model.requires_grad_(True)
        self.parameters = [*self.model.parameters()]
        self.optimizer = self.config.build(self.parameters)
        prior, self.blended = self.config.prior_strength, 0
        if prior is not None:
            self.blended = blend_statistics(self.model.net, lambda _images: 1 / (prior + 1))
        self.losses = torch.empty(0)
        self.compiled_batches = (self.config.num_views, 1)

    def step(self, x: Tensor) -> Tensor:
        scores, losses = [], []
        for image, on_host in zip(x.split(1), x.cpu(), strict=True):  # the host waits: the views are made there
            losses += [self._update(to_device(self.views(on_host), x.device).to(x)) for _ in range(self.config.steps)]
            scores.append(self.predict(image))
            self._restore()
        self.losses = torch.stack(losses).view(len(x), -1)
        return torch.cat(scores)

    def views(self, x: Tensor) -> Tensor:
        """New random views (V, 3, H, W) in [0, 1] of one image (3, H, W) in [0, 1], which is on the CPU."""
        return augmix(x, self.config.num_views, self.config.pre_augmentation, self.context.generator)

    def _update(self, views: Tensor) -> Tensor:
        """One optimizer step on the views; returns the loss."""
        loss = marginal_entropy(self.model(views))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def _restore(self) -> None:
        """Put the source weights back, all at once; no buffer has changed."""
        torch._foreach_copy_(self.parameters, [*self.source.parameters()])

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits with the present weights (the source's between two steps), each image alone where BatchNorm blends."""
        parts = x.split(1 if self.blended else len(x))
        return torch.cat([self.model(part) for part in parts])

    def stats(self) -> dict[str, Tensor]:
        """loss: its mean over the batch's images and their steps."""
        return {"loss": self.losses.mean()}


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the mean over the views of softmax(logits): (V, C) -> ()."""
    marginal = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    marginal = marginal.clamp(min=torch.finfo(logits.dtype).min)  # −∞·e^−∞ would be NaN
    return -(marginal * marginal.exp()).sum()
