"""ETA: EATA without the regulariser (Niu et al. 2022, arXiv 2204.02610, section 4.1).

Objective (equations 1 to 5): the mean over the selected samples S2 of e^(E0 − H)·H, the weight detached. S1: entropy H
below E0 = 0.4·ln(classes). S2: of those, |cos(m, p)| below ``d_margin``, m being the moving mean of the selected samples'
probabilities (all of S1 while there is none). Adapted: weight and bias of the normalisation layers; BatchNorm with batch
statistics. A batch of which nothing is selected takes no step. The scores graded are those before the update.

Discrepancies between paper and code: the paper's reset forgets everything; the authors' ``reset()`` restores weights and
optimizer but leaves m, so that it leaks from one shift to the next (``variant: official``; ``paper`` forgets it). The
mean is over S2 alone, not over the batch. The class's default E0, ln(1000)/2 − 1, is overridden by their main program.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from tta_bench.adapter import Declared, Preset
from tta_bench.methods.functional import (
    default_margin,
    mean_of,
    small_batch_lr_resnet,
    small_batch_lr_vit,
    softmax_entropy,
)
from tta_bench.methods.norm_layers import NormAdapter
from tta_bench.optimizers import OptimizerConfig

_MOMENTUM = 0.9  # of the moving mean probability


class Eta(NormAdapter):
    """Entropy minimisation on reliable, non-redundant samples."""

    class Config(OptimizerConfig):
        """Attributes:
        entropy_margin: E0 in nats; None means 0.4·ln(classes).
        d_margin: largest |cosine| with the moving mean probability.
        variant: what ``reset()`` clears; see the file's docstring.
        """

        lr: float = 2.5e-4
        entropy_margin: float | None = None
        d_margin: float = 0.05
        variant: Literal["official", "paper"] = "official"

    presets = {
        "imagenet_vit_b16": Preset({"lr": small_batch_lr_vit}, "SAR's code (main.py)"),
        "imagenet_resnet50_gn": Preset({"lr": small_batch_lr_resnet}, "SAR's code (main.py)"),
        "imagenet_resnet50_bn": Preset({"lr": small_batch_lr_resnet}, "EATA's and SAR's code (main.py)"),
        "cifar10": Preset(
            {"optimizer": "adam", "lr": 1e-3, "d_margin": 0.4},
            "mariodoebler/test-time-adaptation (cfgs/cifar10_c/eata.yaml), batch 200",
        ),
    }
    reset_keeps = ("moving_probability",)

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """``variant: paper`` forgets everything."""
        keeps = cls.reset_keeps if config.variant == "official" else ()
        return dataclasses.replace(super().declared(config), reset_keeps=keeps)

    def setup(self) -> None:
        super().setup()
        self.margin = default_margin(self.model, self.config.entropy_margin)
        self.moving_probability: Tensor | None = None
        self.kept = torch.tensor(0)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        entropy = softmax_entropy(logits)
        scores: Tensor = logits.detach()
        probabilities = scores.softmax(1)
        selected = self._select(probabilities, entropy.detach())
        self.kept = selected.sum()
        weights = torch.exp(self.margin - entropy.detach())
        if self.update(mean_of(weights * entropy, selected), selected):
            self._move_mean(probabilities, selected)
        return scores

    def _select(self, probabilities: Tensor, entropy: Tensor) -> Tensor:
        """S2 as a mask (B,)."""
        reliable = entropy < self.margin
        if self.moving_probability is None:
            return reliable
        mean = self.moving_probability.unsqueeze(0)
        similarity = torch.nn.functional.cosine_similarity(mean, probabilities, dim=1)
        return reliable & (similarity.abs() < self.config.d_margin)

    def _move_mean(self, probabilities: Tensor, selected: Tensor) -> None:
        """Update the moving mean with the probabilities that S2 had in the forward pass before the update."""
        now = mean_of(probabilities, selected.unsqueeze(1))
        mean = self.moving_probability
        self.moving_probability = now if mean is None else _MOMENTUM * mean + (1 - _MOMENTUM) * now

    def stats(self) -> dict[str, float | Tensor]:
        """kept: samples that entered the loss."""
        return {"kept": self.kept}
