"""CoTTA: continual test-time domain adaptation (Wang et al. 2022, arXiv 2203.13591).

Objective: the cross-entropy between a student and its mean teacher (section 3.2). Where the source model is unsure,
that is, where the mean of its confidences over the batch is below ``ap``, the teacher's logits are averaged over 32
augmented passes (section 3.3). Adapted: every weight and bias of the network; BatchNorm uses batch statistics in
student, teacher and source model. After each update the teacher moves towards the student, and a random fraction
``rst`` of the student's weights is restored to the source's (section 3.4). The scores graded are the teacher's, before
the update.

The authors' repository has two versions, which differ in ``loss`` and ``always_augment``: the ImageNet version (the
defaults) and the CIFAR version (preset ``cifar10``), whose loss is not symmetric, and which makes the augmented passes
in every batch and discards those that it does not need. Other copies:

- mariodoebler/test-time-adaptation runs in evaluation mode, makes no needless passes, also on CIFAR, and draws no
  masks if ``rst`` is 0. Otherwise it equals the ImageNet version.
- FOA's copy for ViTs augments images that are already normalised, which clips them to [0, 1]; this is not reproduced.

On a network without BatchNorm the teacher equals the student until the first averaged batch, so that until then the
gradient of ``cross_entropy`` is exactly zero. A mean confidence is never below 1/classes, so that a smaller ``ap`` has
no effect.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from tta_bench.adapter import Needs, Preset, constant
from tta_bench.methods import transfer
from tta_bench.methods.augmentation import augment
from tta_bench.methods.ensemble import blend
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.methods.soft_losses import soft_cross_entropy, symmetric_cross_entropy
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig


def weights_and_biases(model: SourceModel) -> list[nn.Parameter]:
    """Every parameter that its own module calls ``weight`` or ``bias``, in ``named_modules`` order."""
    owned = (item for module in model.modules() for item in module.named_parameters(recurse=False))
    return [parameter for name, parameter in owned if name in ("weight", "bias")]


class Cotta(NormAdapter):
    """A student of a weight- and augmentation-averaged teacher, with stochastic restoration."""

    class Config(OptimizerConfig):
        """Attributes:
        mt: momentum of the teacher's weights.
        rst: probability with which a weight is restored after an update.
        ap: the source model's mean confidence below which the teacher's predictions are averaged.
        n_augmentations: augmented passes that are averaged.
        loss: "symmetric" is the mean of the cross-entropy and of that with student and teacher exchanged.
        always_augment: make the augmented passes in every batch, even if their average is not used.
        """

        lr: float = 0.01
        optimizer_options: dict[str, Any] = Field({}, validate_default=True)
        mt: float = Field(0.999, ge=0, le=1)
        rst: float = Field(0.001, ge=0, le=1)
        ap: float = 0.1
        n_augmentations: int = Field(32, ge=1)
        loss: Literal["cross_entropy", "symmetric"] = "symmetric"
        always_augment: bool = False

        @field_validator("optimizer_options")
        @classmethod
        def _nesterov(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            """The published SGD has Nesterov's momentum; ``nesterov: false``, or no momentum, turns it off."""
            own = {"nesterov": True} if info.data.get("optimizer") == "sgd" and options.get("momentum") != 0 else {}
            return {**own, **options}

    presets = {
        "imagenet_resnet50_bn": Preset({}, "CoTTA's code (imagenet/cotta.py and cfgs), batch 64"),
        "imagenet_vit_b16": Preset(
            {"lr": 5e-3, "optimizer_options": {"nesterov": False}},
            "FOA's code (its copy of CoTTA), batch 64; FOA, arXiv 2404.01650, has lr 0.05 and rst 0.01",
        ),
        "cifar10": Preset(
            {"optimizer": "adam", "lr": 1e-3, "rst": 0.01, "ap": 0.92, "loss": "cross_entropy", "always_augment": True},
            "CoTTA's code (cifar/cfgs/cifar10/cotta.yaml), batch 200",
        ),
    }
    needs = Needs(backward=True)

    def setup(self) -> None:
        super().setup()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.anchor = constant(copy.deepcopy(self.model)).train()
        self.loss, self.confidence, self.averaged = torch.tensor(0.0), 0.0, False
        self.augmentations, self.restored = 0, 0

    def choose_parameters(self) -> list[nn.Parameter]:
        self.model.requires_grad_(False)
        return [parameter.requires_grad_() for parameter in weights_and_biases(self.model)]

    def step(self, x: Tensor) -> Tensor:
        target = self._teacher_logits(x)
        logits = self.model(x)
        symmetric = self.config.loss == "symmetric"
        loss = (symmetric_cross_entropy if symmetric else soft_cross_entropy)(logits, target).mean()
        self.update(loss)
        self.loss = loss.detach()
        blend(self.teacher.parameters(), self.model.parameters(), self.config.mt)
        self._restore()
        return target

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The teacher's logits."""
        logits: Tensor = self.teacher(x)
        return logits

    @torch.no_grad()
    def _teacher_logits(self, x: Tensor) -> Tensor:
        """The teacher's logits (B, C), averaged over augmentations where the source model is unsure."""
        confidence = transfer.fetch(self.anchor(x).softmax(1).amax(1).mean())
        passes = self._augmented_passes(x) if self.config.always_augment else []
        self.confidence = confidence()  # the host waits: the threshold decides which passes there are
        self.averaged = self.confidence < self.config.ap
        if self.averaged and not passes:
            passes = self._augmented_passes(x)
        self.augmentations = len(passes)
        return torch.stack(passes).mean(0) if self.averaged else self.predict(x)

    def _augmented_passes(self, x: Tensor) -> list[Tensor]:
        """The teacher's logits (B, C) for each of so many random augmentations of a batch."""
        views = (augment(x, self.context.generator, "cotta") for _ in range(self.config.n_augmentations))
        return [self.teacher(view) for view in views]

    @torch.no_grad()
    def _restore(self) -> None:
        """Restore a random fraction of the student's weights; the draws are float32 in any precision."""
        self.restored = 0
        for parameter, source in zip(self.parameters, weights_and_biases(self.anchor), strict=True):
            mask = torch.rand(parameter.shape, generator=self.context.generator) < self.config.rst
            parameter.copy_(source.where(transfer.to_device(mask, source.device), parameter))
            self.restored += int(mask.sum())

    def stats(self) -> dict[str, float | Tensor]:
        """loss; anchor_confidence: the source model's; augmented: 1 where the averaged teacher was used; augmentations:
        augmented passes; restored: weights restored to the source's."""
        return {
            "loss": self.loss,
            "anchor_confidence": self.confidence,
            "augmented": float(self.averaged),
            "augmentations": float(self.augmentations),
            "restored": float(self.restored),
        }
