"""A method: one step towards confident predictions, with whatever optimizer."""

import torch

from tta_bench.adapter import Adapter, Needs
from tta_bench.methods.functional import adapt_norm_affine, softmax_entropy
from tta_bench.optimizers import OptimizerConfig


class Sharpen(Adapter):
    """Minimises the entropy of the predictions."""

    name = "sharpen"
    needs = Needs(backward=True, norm_kinds=("batch",))

    class Config(OptimizerConfig):
        lr: float = 1e-3

    def setup(self) -> None:
        self.optimizer = self.config.build(adapt_norm_affine(self.model))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        softmax_entropy(logits).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()
