"""RDumb: ETA with a full reset at regular intervals (Press et al. 2023, arXiv 2306.05401).

Objective: that of ETA (see ``eta.py``). Adapted: weight and bias of the normalisation layers; BatchNorm with batch
statistics. After every ``reset_every`` batches (1,000 in the paper), with or without a step, weights, optimizer and moving
mean probability return to their initial state. The scores graded are those before the update.

Discrepancies between copies: the authors' code (oripress/CCC, ``models/rdumb.py``) adapts BatchNorm2d only, takes
0.4·ln(1000) as E0 whatever the number of classes, and has no reset from outside. mariodoebler/test-time-adaptation resets
after a batch rather than before the next (the same scores) and uses Nesterov momentum (``optimizer_options: {nesterov:
true}``); a reset from outside does not clear its count of batches (``variant: official``; ``paper`` clears it). Unlike
ETA's, RDumb's resets always clear the moving mean probability.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from tta_bench.adapter import Preset
from tta_bench.methods.eta import Eta


class RDumb(Eta):
    """ETA with a full reset at regular intervals."""

    class Config(Eta.Config):
        """Attributes:
        reset_every: number of batches between two resets.
        variant: whether a reset from outside clears the count of batches ("paper") or not ("official").
        """

        reset_every: int = Field(1000, ge=1)

    presets = {
        "imagenet_resnet50_bn": Preset({"lr": 2.5e-4}, "RDumb's code (oripress/CCC, models/rdumb.py), batch 64"),
        "cifar10": Preset(
            {"optimizer": "adam", "lr": 1e-3, "d_margin": 0.4},
            "mariodoebler/test-time-adaptation (cfgs/cifar10_c/rdumb.yaml), batch 200",
        ),
    }
    reset_keeps = ("batches",)

    def setup(self) -> None:
        super().setup()
        self.batches, self.restarted = 0, False

    def step(self, x: Tensor) -> Tensor:
        restart = self.batches > 0 and self.batches % self.config.reset_every == 0
        if restart:
            self.reset()
        self.batches, self.restarted = self.batches + 1, restart
        return super().step(x)

    def stats(self) -> dict[str, float | Tensor]:
        """kept: samples that entered the loss; resets: 1 where the model was reset before this batch."""
        return {**super().stats(), "resets": float(self.restarted)}
