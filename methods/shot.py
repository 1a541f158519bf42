"""SHOT-IM, online: information maximisation with a frozen classifier (Liang et al. 2020, arXiv 2002.08546).

Objective: the mean entropy of the predictions minus the entropy of their mean over the batch, p̄. The paper's SHOT is
offline, with many epochs over the whole target set; what online tables call SHOT-IM is one of two re-implementations, each
with ``steps`` optimizer steps a batch:

- ``variant: official``, of matsuolab/T3A (``domainbed/adapt_algorithms.py``): adapts every parameter but those of the last
  linear layer; evaluation mode, so that BatchNorm keeps the source's statistics. The scores graded are the logits of the
  last pass, which precedes the last update.
- ``variant: lame``, of fiveai/LAME (``src/adaptation/shot.py``): adapts weight and bias of every BatchNorm2d; these layers
  use batch statistics while adapting, with momentum 0, so that the running ones stay the source's. The scores graded are
  probabilities of one more pass, **after the update**, in evaluation mode.

Discrepancies between published copies:

- eps in the logarithms: none in the first term and 1e-5 in the second (T3A), 1e-10 in both (LAME), 1e-5 in both (the
  authors'). Each variant has its own.
- the default optimizer is T3A's, Adam; LAME's is SGD without momentum, with weight decay 1e-4 (towards 0, not towards the
  source). ``variant: lame`` alone does not change the optimizer: the preset names it. With that preset, ``variant:
  official`` needs ``optimizer``, ``lr`` and ``optimizer_options`` beside it.
- SHOT's pseudo-labels (the authors', LINs-lab/ttab) are not part of SHOT-IM. ttab adapts in training mode.

The second term pushes the predictions of a batch apart, also where it holds few classes. In a batch of one image both
entropies are the same, and only rounding is learned from.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tta_bench.adapter import Adapter, Context, Declared, Needs, Preset
from tta_bench.methods.functional import no_statistics, softmax_entropy
from tta_bench.models import SourceModel
from tta_bench.optimizers import OptimizerConfig


class Shot(Adapter):
    """Certain predictions of each image, diverse ones of the batch."""

    class Config(OptimizerConfig):
        """Attributes:
        variant: what is adapted and graded, and the loss's eps; see the file's docstring.
        steps: optimizer steps a batch.
        """

        optimizer: str = "adam"
        lr: float = 5e-5
        variant: Literal["official", "lame"] = "official"
        steps: int = Field(1, ge=1)

    presets = {
        "imagenet_resnet50_bn": Preset(
            {
                "variant": "lame",
                "optimizer": "sgd",
                "lr": 1e-3,
                "optimizer_options": {"momentum": 0.0, "weight_decay": 1e-4},
            },
            "LAME's code (src/adaptation/shot.py and the configuration's defaults), batch 16",
        )
    }
    needs = Needs(backward=True)

    @classmethod
    def declared(cls, config: Any) -> Declared:
        """``variant: lame`` needs BatchNorm and returns probabilities."""
        declared = super().declared(config)
        if config.variant == "official":
            return declared
        needs = dataclasses.replace(declared.needs, norm_kinds=("batch",))
        return dataclasses.replace(declared, needs=needs, outputs="probabilities")

    @classmethod
    def skip(cls, model: SourceModel, config: Any, context: Context) -> str | None:
        if (reason := super().skip(model, config, context)) or config.variant == "official":
            return reason
        if not any(layer.affine for layer in _batch_norms(model)):
            return "the model has no BatchNorm2d layer with weight and bias"
        return no_statistics(model, context)

    def setup(self) -> None:
        self.layers: list[nn.BatchNorm2d] = []  # those that use batch statistics while adapting
        if self.config.variant == "lame":
            self.layers = _batch_norms(self.model)
        for layer in self.layers:
            layer.momentum = 0.0
        self.optimizer = self.config.build(parameter.requires_grad_() for parameter in self._parameters())
        self.losses: list[Tensor] = []
        self.marginal_entropy = self.model.mean.new_zeros(())

    def _parameters(self) -> list[nn.Parameter]:
        if self.config.variant == "lame":
            return [p for layer in self.layers if layer.affine for p in (layer.weight, layer.bias)]
        frozen = {id(p) for classifier in self.model.classifiers() for p in classifier.parameters()}
        return [p for p in self.model.parameters() if id(p) not in frozen]

    def step(self, x: Tensor) -> Tensor:
        self.losses = []
        for layer in self.layers:
            layer.train()
        for _ in range(self.config.steps):
            logits: Tensor = self.model(x)
            self._update(self._loss(logits))
        for layer in self.layers:
            layer.eval()
        return logits.detach() if self.config.variant == "official" else self.predict(x)

    def _loss(self, logits: Tensor) -> Tensor:
        """The mean entropy minus that of the mean prediction, in nats, with the variant's eps."""
        probabilities = logits.softmax(1)
        if self.config.variant == "official":
            entropy, marginal_entropy = softmax_entropy(logits), _entropy(probabilities.mean(0), 1e-5)
        else:
            entropy, marginal_entropy = _entropy(probabilities, 1e-10), _entropy(probabilities.mean(0), 1e-10)
        self.marginal_entropy = marginal_entropy.detach()
        return entropy.mean() - marginal_entropy

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())

    def stats(self) -> dict[str, float | Tensor]:
        """loss: the mean over the batch's steps; marginal_entropy: of the mean prediction at the last of them, in nats."""
        loss = torch.stack(self.losses).mean() if self.losses else float("nan")
        return {"loss": loss, "marginal_entropy": self.marginal_entropy}


def _batch_norms(model: SourceModel) -> list[nn.BatchNorm2d]:
    return [module for module in model.net.modules() if isinstance(module, nn.BatchNorm2d)]


def _entropy(probabilities: Tensor, eps: float) -> Tensor:
    """−Σ p·log(p + eps) over the last dimension: (..., C) -> (...)."""
    return -(probabilities * (probabilities + eps).log()).sum(-1)
