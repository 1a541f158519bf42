"""torch-ttt's Tent: an engine adapts a copy of the network to each batch, and returns the scores with its loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tta_bench.adapter import Needs, wrap


class Scores(nn.Module):
    """The scores of an engine, without the loss."""

    def __init__(self, engine: nn.Module):
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.engine(x)[0]
        return scores


def build(net: nn.Module, config: Any) -> nn.Module:
    from torch_ttt.engine.tent_engine import TentEngine  # here, so that a missing package is a skipped row

    options = {"lr": config.lr, "num_steps": config.num_steps, "copy_model": config.copy_model}
    return Scores(TentEngine(net, options)).eval()


torch_ttt_tent = wrap(
    "torch-ttt-tent", build, hyperparameters={"lr": 1e-2, "num_steps": 3, "copy_model": True},
    needs=Needs(backward=True, norm_kinds=("batch",), packages=("torch-ttt", "einops")), reset="rebuild",
    predict=lambda scores, x: scores.engine.model(x),
)  # fmt: skip
