"""SAR: sharpness-aware and reliable entropy minimisation (Niu et al. 2023, arXiv 2302.12400).

Objective (equations 2 to 5): the mean entropy of the reliable samples (entropy below E0 = 0.4·ln(classes)), at the point
to which sharpness-aware minimisation moves the weights (ρ = 0.05). Adapted: weight and bias of the normalisation layers
before the last stage of a network (the last quarter of a ViT's blocks); BatchNorm with batch statistics. Two forward and
backward passes and one update a batch; the scores graded are those of the first pass. Recovery (section 3.2): when a
moving mean of the second loss falls below 0.2, the model is reset.

Discrepancies between paper and code (``variant: official`` is the code, ``paper`` the paper):

- a recovery, in the code, restores the weights but not SGD's momentum, and the low moving mean is written back after it,
  so that the recovery can trigger again; the paper forgets both. ``reset()`` from outside keeps the momentum, too.
- a batch from which every sample is filtered out still takes an optimizer step in the code, with zero gradients, so that
  the momentum moves the weights; in the paper it does nothing.
- the code's constructor takes the recovery threshold and ignores it; 0.2 is literal there.
- the paper freezes the last stage; the code layers of certain names (``early_norms.py`` has the rule). ``frozen: names``
  follows the code to the letter, ``frozen: structure`` finds the last stage of any network. Both freeze the same layers
  in ResNets and timm's 12-block ViTs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Declared, Preset
from tta_bench.methods import transfer
from tta_bench.methods.early_norms import EarlyNormAdapter, EarlyNormConfig, lr_resnet, lr_vit
from tta_bench.methods.functional import default_margin, mean_of, softmax_entropy

_MOMENTUM = 0.9  # of the moving mean of the loss
_EPS = 1e-12  # beside the gradient's norm


class Sar(EarlyNormAdapter):
    """Entropy minimisation on reliable samples at a sharpness-aware point, with recovery."""

    class Config(EarlyNormConfig):
        """Attributes:
        entropy_margin: E0 in nats; None means 0.4·ln(classes).
        rho: radius of the sharpness-aware perturbation.
        recovery_threshold: the moving mean below which the model is reset.
        variant: what a recovery resets, and what an empty selection does; see the file's docstring.
        """

        lr: float = 2.5e-4
        entropy_margin: float | None = None
        rho: float = Field(0.05, ge=0)
        recovery_threshold: float = 0.2
        variant: Literal["official", "paper"] = "official"

    presets = {
        "imagenet_vit_b16": Preset({"lr": lr_vit}, "SAR's code (main.py)"),
        "imagenet_resnet50_gn": Preset({"lr": lr_resnet}, "SAR's code (main.py)"),
        "imagenet_resnet50_bn": Preset({"lr": lr_resnet}, "SAR's code (main.py)"),
        "cifar10": Preset({"lr": 1e-3}, "mariodoebler/test-time-adaptation (cfgs/cifar10_c/sar.yaml), batch 200"),
    }
    reset_keeps = ("optimizer.state",)

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """``variant: paper`` forgets everything."""
        keeps = cls.reset_keeps if config.variant == "official" else ()
        return dataclasses.replace(super().declared(config), reset_keeps=keeps)

    def setup(self) -> None:
        super().setup()
        self.margin = default_margin(self.model, self.config.entropy_margin)
        self.moving_loss: float | None = None
        self.kept, self.recovered = torch.tensor(0), False

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        entropy = softmax_entropy(logits)
        reliable = entropy < self.margin
        self.kept, self.recovered = reliable.sum(), False
        scores: Tensor = logits.detach()
        if self.config.variant == "paper" and not reliable.any():
            return scores
        mean_of(entropy, reliable).backward()  # of nothing it is NaN, its gradients zero: as the published code has it
        start = self._perturb()
        entropy = softmax_entropy(self.model(x))
        loss = self._descend(mean_of(entropy, reliable & (entropy < self.margin)), start)
        self._recover_if_collapsed(loss)
        return scores

    @torch.no_grad()
    def _perturb(self) -> list[Tensor]:
        """Go ρ along the gradient; returns the weights before."""
        start = [p.detach().clone() for p in self.parameters]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm(p=2)
        torch._foreach_add_(self.parameters, torch._foreach_mul(gradients, self.config.rho / (norm + _EPS)))
        self.optimizer.zero_grad()
        return start

    def _descend(self, loss: Tensor, start: list[Tensor]) -> float:
        """Take the optimizer step from the weights before, with the gradient at the perturbed point; returns the loss.

        The recovery needs its value on the host, which waits for it while the device is busy with the backward pass.
        """
        fetched = transfer.fetch(loss)
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, start)
        value = float(fetched())
        if not (self.config.variant == "paper" and math.isnan(value)):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _recover_if_collapsed(self, loss: float) -> None:
        mean = self.moving_loss
        if not math.isnan(loss):
            mean = loss if mean is None else _MOMENTUM * mean + (1 - _MOMENTUM) * loss
        self.moving_loss = mean
        if mean is None or mean >= self.config.recovery_threshold:
            return
        kept = self.kept
        self.reset()
        self.kept, self.recovered = kept, True
        if self.config.variant == "official":
            self.moving_loss = mean  # the published wrapper writes the low value back

    def stats(self) -> dict[str, float | Tensor]:
        """kept: reliable samples; recoveries: 1 where this step ended in a recovery."""
        return {"kept": self.kept, "recoveries": float(self.recovered)}
