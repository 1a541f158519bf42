"""EATA: efficient test-time adaptation without forgetting (Niu et al. 2022, arXiv 2204.02610).

Objective (equation 8): that of ETA (see ``eta.py``) plus ``fisher_alpha``·Σ F·(θ − θ⁰)², the anti-forgetting regulariser
(section 4.2), always at full strength. F is estimated once from clean unlabelled source images (equation 9), with the
model's own predictions as labels.

Discrepancies between paper and code, besides ETA's: the code squares the gradient of each batch's mean loss, so F is not
the per-sample Fisher information, and a short last batch counts like a full one. ``fisher_clip_by_norm`` and
``scale_factor`` are unused there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Needs, Preset, SourceRequest
from tta_bench.methods.eta import Eta


class Eata(Eta):
    """ETA with a Fisher regulariser towards the source weights."""

    class Config(Eta.Config):
        """Attributes:
        fisher_alpha: β, the regulariser's strength.
        fisher_images: source images that F is estimated from, in batches of the test batch's size.
        """

        fisher_alpha: float = Field(2000.0, ge=0)
        fisher_images: int = Field(2000, ge=1)

    presets = {
        name: Preset({**preset.values, **({"fisher_alpha": 1.0} if name == "cifar10" else {})}, preset.citation)
        for name, preset in Eta.presets.items()
    }
    needs = Eta.needs | Needs(source_images=True)

    def setup(self) -> None:
        super().setup()
        self.source_parameters = [p.detach().clone() for p in self.parameters]

    def source_request(self) -> SourceRequest:
        return SourceRequest(self.config.fisher_images, self.context.batch_size)

    def prepare(self, source: Iterator[Tensor]) -> dict[str, Tensor]:
        """The diagonal F of each adapted parameter, under its place in ``named_parameters`` order."""
        total = [torch.zeros_like(p) for p in self.parameters]
        batches = 0
        for x in source:
            logits = self.model(x)
            loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
            for sum_, gradient in zip(total, torch.autograd.grad(loss, self.parameters), strict=True):
                sum_ += gradient.square()
            batches += 1
        return {str(i): sum_ / batches for i, sum_ in enumerate(total)}

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """Add those of the regulariser, 2·fisher_alpha·F·(θ − θ⁰), for all parameters at once.

        As a term of the loss it has two additions for each of the parameters, which a GPU runs one after another.
        """
        changes = torch._foreach_sub(self.parameters, self.source_parameters)
        fisher = [self.prepared[str(i)] for i in range(len(self.parameters))]
        gradients: list[Any] = [parameter.grad for parameter in self.parameters]  # prepare() refused one without
        torch._foreach_addcmul_(gradients, fisher, changes, value=2 * self.config.fisher_alpha)
